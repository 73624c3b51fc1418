"""flanneld restores its filter rules with each engine after damage by other programs."""

import itertools
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

HEALED_S = 60.0
"""Deadline of a repair. The requirement is one second, but other programs may load the machine."""

FLANNELD = Path(sys.executable).with_name("flanneld")
IPTABLES, NFTABLES = '{"Network":"10.100.0.0/16"}', '{"Network":"10.100.0.0/16","EnableNFTables":true}'
hosts = itertools.cycle(["docker1", "docker2", "docker3", "docker4"])
"""Yield the hosts in turn, because flanneld treats many repairs on one host as a fight with another
program."""


@pytest.fixture(scope="module")
def masked(overlay) -> None:
    """All four hosts with --ip-masq."""
    overlay.lab.each(lambda host: start(overlay, host, "--ip-masq"))


@pytest.fixture
def alone(overlay) -> Iterator[Host]:
    """The last host without flanneld, as before its first start, before and after the test."""
    host = overlay.hosts["docker4"]
    if host.name in overlay.daemons:
        clean_up(overlay, host)
    yield host
    clean_up(overlay, host)


_CLAIM = re.compile(r"^table ip pyflannel-device-.*?^}\n", re.MULTILINE | re.DOTALL)


def start(overlay, host: Host, *flags: str, prefix: Sequence[str] = ()) -> Program:
    command = [*prefix, str(FLANNELD), f"--store={overlay.etcd.url}", *flags]
    overlay.daemons[host.name] = host.start_service(command, name="flanneld")
    return overlay.daemons[host.name]


def clean_up(overlay, host: Host) -> None:
    host.flannelctl("--store", overlay.etcd.url, "cleanup")


def ruleset(host: Host) -> list[str]:
    """Return every line of the rules, sorted, because the order of chains depends on the order of creation.

    The daemon's claim of a device name and the elements of sets are omitted.
    """
    listed = host.run(["nft", "--stateless", "--terse", "list", "ruleset"]).stdout
    return sorted(_CLAIM.sub("", listed).splitlines())


def saved(host: Host) -> list[str]:
    """Return the output of iptables-save without the times."""
    lines = host.run(["iptables-save"]).stdout.splitlines()
    return [re.sub(r"\[\d+:\d+\]", "", line) for line in lines if not line.startswith("#")]


def wait_rules(host: Host, expected: list[str], deadline_s: float = HEALED_S) -> None:
    wait_until(lambda: ruleset(host) == expected, what=f"{host.name} has its rules", deadline_s=deadline_s)


def repair_time_s(host: Host, words: str) -> float:
    """Damage the rules of a host. Return the seconds until the rules were repaired."""
    before = ruleset(host)
    host.run(["sh", "-c", words])
    began = time.monotonic()
    wait_rules(host, before)
    return time.monotonic() - began


DAMAGE = {
    "nft flush ruleset": "nft flush ruleset",
    "iptables -F": "iptables -F",
    "nat flushed": "iptables -t nat -F",
    "chain deleted": "printf '*filter\\n-F FORWARD\\n-F FLANNEL-FWD\\n-X FLANNEL-FWD\\nCOMMIT\\n'"
    " | iptables-restore --noflush",  # immediately: a rule that is repaired in between cannot be deleted
    "jump deleted": "iptables -t nat -F POSTROUTING",
    "a foreign rule in an owned chain": "iptables -I FLANNEL-FWD -d 10.100.0.0/16 -j DROP",
    "one rule deleted": "iptables -t nat -D FLANNEL-POSTRTG 5",
}


@pytest.mark.parametrize("words", DAMAGE.values(), ids=list(DAMAGE))
def test_flushed_rules_are_restored(overlay, masked, figures, request, words: str) -> None:
    host = overlay.hosts[next(hosts)]
    said = len(overlay.log(host))

    took_s = repair_time_s(host, words)

    overlay.wait_logged(host, "Repaired ", "iptables chain FLANNEL-", after=said)
    figures(f"{request.node.callspec.id}: back after {took_s * 1e3:.0f} ms")


def test_a_foreign_rule_in_an_owned_chain_is_reported(overlay, masked) -> None:
    host = overlay.hosts["docker3"]
    said = len(overlay.log(host))

    repair_time_s(host, "iptables -A FLANNEL-FWD -s 192.0.2.66 -j DROP")

    overlay.wait_logged(host, "foreign rule '-s 192.0.2.66/32 -j DROP'", after=said)


def test_a_jump_behind_a_drop_is_moved_before_the_drop(overlay, masked) -> None:
    host = overlay.hosts["docker2"]
    jump = '-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD'

    host.run(["iptables", "-I", "FORWARD", "-j", "DROP"])
    wait_until(
        lambda: (
            [line for line in saved(host) if line.startswith("-A FORWARD")] == [jump, "-A FORWARD -j DROP"]
        ),
        what="the jump decides",
        deadline_s=HEALED_S,
    )

    host.run(["iptables", "-D", "FORWARD", "-j", "DROP"])


def test_the_config_chooses_the_engine_of_every_host(overlay, masked) -> None:
    """The hosts change to nftables and back. No rule of the other engine remains, and a flush is repaired."""
    before = {host.name: ruleset(host) for host in overlay.hosts.values()}

    overlay.etcd.etcdctl("put", f"{PREFIX}/config", NFTABLES)
    for host in overlay.hosts.values():
        wait_until(
            lambda host=host: "flannel-ipv4" in str(ruleset(host)) and "FLANNEL" not in str(ruleset(host)),
            what=f"{host.name} in nftables",
            deadline_s=HEALED_S,
        )
    host = overlay.hosts["docker1"]
    said = len(overlay.log(host))
    repair_time_s(host, "nft flush ruleset")
    overlay.wait_logged(host, "Repaired ", "nftables table flannel-ipv4: missing", after=said)

    overlay.etcd.etcdctl("put", f"{PREFIX}/config", IPTABLES)
    for host in overlay.hosts.values():
        wait_rules(host, before[host.name])


@pytest.mark.parametrize("config", [IPTABLES, NFTABLES], ids=["iptables", "nftables"])
def test_cleanup_leaves_the_rules_as_they_were(overlay, alone: Host, config: str) -> None:
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
    alone.run(["iptables", "-A", "FORWARD", "-s", "192.0.2.7", "-j", "ACCEPT"])
    before = ruleset(alone), saved(alone)

    start(overlay, alone, "--ip-masq")
    assert "masquerade" in str(ruleset(alone))
    clean_up(overlay, alone)

    assert (ruleset(alone), saved(alone)) == before
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", IPTABLES)


def test_disabled_options_remove_their_rules(overlay, alone: Host) -> None:
    before = ruleset(alone)

    start(overlay, alone, "--ip-masq").stop()
    assert alone.subnet_env()["FLANNEL_IPMASQ"] == "true"
    with_both = ruleset(alone)
    start(overlay, alone).stop()
    assert alone.subnet_env()["FLANNEL_IPMASQ"] == "false"
    assert "FLANNEL-FWD" in str(ruleset(alone))
    assert "FLANNEL-POSTRTG" not in str(ruleset(alone))
    start(overlay, alone, "--ip-masq", "--iptables-forward-rules=false").stop()
    assert "FLANNEL-FWD" not in str(ruleset(alone))
    start(overlay, alone, "--iptables-forward-rules=false", "--guard=off").stop()
    assert ruleset(alone) == before
    start(overlay, alone, "--ip-masq")

    assert ruleset(alone) == with_both


def test_a_stopped_daemon_leaves_its_rules(overlay, alone: Host) -> None:
    daemon = start(overlay, alone, "--ip-masq")
    before = ruleset(alone)

    daemon.stop()
    assert ruleset(alone) == before
    daemon = start(overlay, alone, "--ip-masq")
    daemon.kill()

    assert ruleset(alone) == before


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (IPTABLES, "iptables is not installed"),
        (NFTABLES, "nft is not installed"),
    ],
)
def test_a_missing_program_is_logged_once_and_packets_arrive(
    overlay, alone: Host, config: str, missing: str
) -> None:
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
    said = len(overlay.log(alone))

    daemon = alone.start(
        ["env", "PATH=/nowhere", str(FLANNELD), f"--store={overlay.etcd.url}", "--ip-masq"], name="flanneld"
    )
    overlay.wait_logged(alone, missing, after=said)
    overlay.wait_status(alone, lambda status: missing in str(status.waiting_for), "waits for them")

    lines = [line for line in overlay.log(alone)[said:].splitlines() if missing in line]
    assert len(lines) == 1
    assert lines[0].startswith("E")
    assert alone.routes("10.100.0.0/16")
    assert alone.subnet_env()["FLANNEL_MTU"] == "1472"
    daemon.stop()
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", IPTABLES)


def test_a_held_xtables_lock_is_reported_and_awaited(overlay, alone: Host) -> None:
    """Legacy iptables has the xtables lock.

    While the lock is held, flanneld repairs links and routes. flanneld repairs the rules when the lock is
    free.
    """
    bin_dir = "/run/legacy"
    script = (
        f"mkdir -p {bin_dir}; for each in iptables ip6tables; do for part in '' -save -restore; do"
        f" ln -sf /usr/sbin/$each-legacy$part {bin_dir}/$each$part; done; done; touch /run/xtables.lock"
    )
    alone.run(["sh", "-c", script])
    holder = alone.start(["flock", "--no-fork", "/run/xtables.lock", "sleep", "1000"], name="holder")
    holds = Path(f"/proc/{holder.pid}/comm")
    wait_until(lambda: holds.read_text() == "sleep\n", what="the lock is held", deadline_s=HEALED_S)
    said = len(overlay.log(alone))
    environment = ["env", f"PATH={bin_dir}:/usr/sbin:/usr/bin:/sbin:/bin"]

    daemon = alone.start(
        [*environment, str(FLANNELD), f"--store={overlay.etcd.url}", "--ip-masq"], name="flanneld"
    )
    overlay.wait_logged(alone, "holds the xtables lock", after=said)
    wait_until(lambda: alone.routes("10.100.0.0/16"), what="the route", deadline_s=HEALED_S)
    alone.run(["ip", "link", "set", "flannel0", "down"])
    wait_until(lambda: alone.routes("10.100.0.0/16"), what="the route again", deadline_s=HEALED_S)
    lines = [line for line in overlay.log(alone)[said:].splitlines() if "xtables lock" in line]
    assert len(lines) == 1
    assert "sleep (pid" in lines[0]
    holder.kill()
    overlay.wait_ready(alone)

    rules = alone.run(["iptables-legacy-save"]).stdout
    assert "-A POSTROUTING -m comment" in rules
    assert "-A FORWARD -m comment" in rules
    daemon.stop()
    alone.run(
        [
            "env",
            environment[1],
            str(FLANNELD.with_name("flannelctl")),
            "--store",
            overlay.etcd.url,
            "cleanup",
        ]
    )
    assert "FLANNEL" not in alone.run(["iptables-legacy-save"]).stdout


def test_two_daemons_have_separate_rules(overlay, alone: Host) -> None:
    """The names of the second daemon's chains contain its device.

    A cleanup of the second daemon keeps the chains of the first daemon.
    """
    other = "/coreos.com/other"
    overlay.etcd.etcdctl(
        "put", f"{other}/config", '{"Network":"10.101.0.0/16","Backend":{"Type":"udp","Port":8286}}'
    )
    places = ["--run-dir=/run/other", "--state-dir=/var/lib/other", "--subnet-file=/run/other/subnet.env"]
    start(overlay, alone, "--ip-masq")
    before = ruleset(alone)

    store = overlay.etcd.url.replace(PREFIX, other)
    command = [str(FLANNELD), f"--store={store}", "--ip-masq", *places]
    alone.start_service(command, name="flanneld-other")
    names = {line.split()[0] for line in saved(alone) if line.startswith(":FLANNEL")}
    both = ruleset(alone)

    assert names == {":FLANNEL-FWD", ":FLANNEL-POSTRTG", ":FLANNEL-FWD-1", ":FLANNEL-POSTRTG-1"}
    alone.run(["iptables", "-F", "FLANNEL-FWD-1"])
    wait_rules(alone, both)
    alone.flannelctl("--store", store, "cleanup", *places)
    assert ruleset(alone) == before
