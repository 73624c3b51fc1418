"""flannelctl doctor on real hosts: faults of flanneld, its leases, its config, its store and its peers."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.doctor import DEADLINE_S, examine, joined_pair, problems, without_problems
from testlab.documents import read_document
from testlab.faults import paused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture(scope="module")
def host(overlay) -> Host:
    """One of two hosts of a vxlan network, with a bridge like Docker's."""
    return joined_pair(overlay, "vxlan")[0]


@pytest.fixture
def healthy(overlay, host: Host) -> Iterator[Host]:
    """The host without findings, before and after the test."""
    with without_problems(overlay, host):
        yield host


def test_peers_without_traffic_are_reported(overlay, healthy: Host) -> None:
    overlay.put_peers("host-gw", 1)
    overlay.wait_status(healthy, lambda status: bool(status.refused_peers), "refuses a peer")

    found = examine(healthy)["peers-refused"]

    assert found["cause"] == "1 of 2 peers are refused and unreachable"
    assert found["evidence"] == ["10.100.128.0/28 at 10.10.10.2: Ignoring non-vxlan subnet: type=host-gw"]
    overlay.etcd.etcdctl("del", "/coreos.com/network/subnets/10.100.128.0-28")
    overlay.wait_status(healthy, lambda status: not status.refused_peers, "refuses no peer")


def test_a_lease_with_the_mac_address_of_a_peer_does_not_affect_the_peer(overlay, healthy: Host) -> None:
    """The peer that published the address first remains. The other peer is refused, and doctor names both
    peers.
    """
    (peer,) = json.loads(healthy.run(["flannelctl", "--json", "peers"]).stdout)["peers"]
    key = "/coreos.com/network/subnets/" + peer["subnet"].replace("/", "-")
    lease = json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key))
    vtep, copy = lease["BackendData"]["VtepMAC"], {**lease, "PublicIP": "10.10.10.77"}
    before = healthy.run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout

    overlay.etcd.etcdctl("put", "/coreos.com/network/subnets/10.100.0.0-28", json.dumps(copy))
    overlay.wait_status(healthy, lambda status: bool(status.refused_peers), "refuses the copy")

    (said,) = examine(healthy)["peers-refused"]["evidence"]
    name = peer["host_name"]
    assert said.startswith(f"10.100.0.0/28 at {name} (10.10.10.77): its VtepMAC {vtep} is also that of")
    assert f"also that of {peer['subnet']} at {name} ({peer['public_ip']}), which published it first" in said
    assert healthy.run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout == before
    assert peer["public_ip"] in before
    overlay.etcd.etcdctl("del", "/coreos.com/network/subnets/10.100.0.0-28")
    overlay.wait_status(healthy, lambda status: not status.refused_peers, "refuses no peer")


def test_two_running_hosts_with_one_address_are_reported_once(overlay, healthy: Host) -> None:
    """Both hosts report the common address, with a remedy."""
    other = overlay.hosts["docker4"]
    overlay.daemons[other.name] = other.start_flanneld(
        f"--store={overlay.etcd.url}", f"--public-ip={healthy.address}", "--iface=eth0"
    )
    for host in (healthy, other):
        overlay.wait_status(host, lambda status: bool(status.refused_peers), "refuses the other")

        found = json.loads(host.run(["flannelctl", "--json", "doctor"], check=False).stdout)["findings"]

        words = ("share an address", "an address of this host")
        told = [one for one in found if any(word in json.dumps(one) for word in words)]
        assert [one["code"] for one in told] == ["peers-refused"]
        assert "give one of them its own address (--public-ip, --iface)" in told[0]["evidence"][0]
    other.flannelctl("--store", overlay.etcd.url, "cleanup")
    overlay.wait_status(  # a deleted lease remains valid for some seconds
        healthy, lambda status: not status.refused_peers and not status.warnings, "refuses no peer"
    )


def test_an_invalid_network_config_is_reported_with_the_valid_values(overlay, healthy: Host) -> None:
    before = healthy.flannelctl("config", "get").strip()
    overlay.etcd.etcdctl("put", "/coreos.com/network/config", before.replace("{", '{"SubnetLen":"24",', 1))
    overlay.wait_status(healthy, lambda status: bool(status.warnings), "warns")

    found = examine(healthy)["bad-config"]

    overlay.etcd.etcdctl("put", "/coreos.com/network/config", before)
    assert found["cause"].endswith('waits for a valid network config: not a prefix length: SubnetLen="24"')
    assert found["fix"].startswith(
        "Write SubnetLen as a whole number without quotes, for example 24 for /24."
    )
    assert found["fix"].endswith("'flannelctl config set FILE' writes it.")
    overlay.wait_status(healthy, lambda status: not status.warnings, "warns of nothing")


def test_an_unknown_key_is_reported_once_in_each_place(overlay, healthy: Host) -> None:
    """The key is accepted, as by the original, and the host is ready."""
    before = healthy.flannelctl("config", "get").strip()
    overlay.etcd.etcdctl("put", "/coreos.com/network/config", before.replace("{", '{"SubnetLne":20,', 1))
    text = "SubnetLne has no effect: the network config knows Network, SubnetLen, "
    status = overlay.wait_status(
        healthy, lambda status: any(text in note for note in status.backend.notes), "has a note of it"
    )

    found = [one for one in examine(healthy).values() if text in one["cause"]]

    overlay.etcd.etcdctl("put", "/coreos.com/network/config", before)
    assert status.is_ready
    assert [one["code"] for one in found] == ["backend-note"]
    assert overlay.log(healthy).count(text) == 1
    overlay.wait_status(healthy, lambda status: not status.backend.notes, "has no note of it")


@pytest.mark.parametrize("kind", ["udp", "host-gw", "vxlan"])
def test_a_healthy_host_has_no_findings_with_any_backend(overlay, host: Host, kind: str) -> None:
    overlay.set_backend(kind)

    overlay.wait_status(
        host,
        lambda status: status.is_ready and status.backend.type == kind and not status.refused_peers,
        f"runs {kind}, and so do its peers",
    )
    assert not problems(host)


def test_status_and_doctor_report_a_network_without_a_free_subnet(overlay, healthy: Host) -> None:
    """A host joins while another host has the only available subnet."""
    other = overlay.hosts["docker4"]
    before = overlay.etcd.etcdctl("get", "--print-value-only", f"{PREFIX}/config")
    only = str(healthy.lease().network_address)
    ends = {"SubnetMin": only, "SubnetMax": only}
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", json.dumps({**json.loads(before), **ends}))
    overlay.daemons[other.name] = other.launch_flanneld(f"--store={overlay.etcd.url}")
    text = "no /28 is free in 10.100.0.0/16"
    status = overlay.wait_status(
        other, lambda status: bool(status.lease and status.lease.trouble), "has no lease"
    )

    found = examine(other, exit_code=1)

    assert status.lease.trouble.text == text
    assert text in other.flannelctl("status", check=False)
    assert found["no-free-subnet"]["cause"] == f"flanneld has no lease: {text}"
    assert "not-ready" not in found
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", before.strip())
    overlay.wait_ready(other)
    assert not problems(other)
    other.flannelctl("--store", overlay.etcd.url, "cleanup")


def has_only_the_note_of_the_mtu(status: Any) -> bool:
    """Return whether the change of the backend is complete. A change in progress has another note."""
    notes = status.backend.notes
    return len(notes) == 1 and "Backend.MTU" in notes[0]


def test_an_unusual_state_of_the_backend_is_reported(overlay, healthy: Host) -> None:
    """An MTU that the underlay does not support is an unusual state."""
    overlay.set_backend("vxlan", MTU=9000)
    overlay.wait_status(healthy, has_only_the_note_of_the_mtu, "notes only the MTU")

    found = examine(healthy)["backend-note"]

    assert found["severity"] == "info"
    assert "Backend.MTU is 9000, and eth0 carries up to 1500" in found["cause"]
    overlay.set_backend("vxlan")
    overlay.wait_status(healthy, lambda status: not status.backend.notes, "has no note")


def test_doctor_reports_the_object_that_another_program_keeps_changing(overlay, healthy: Host) -> None:
    delete = "while :; do ip address flush dev flannel.1 2>/dev/null; sleep 0.02; done"
    opponent = healthy.start(["sh", "-c", delete], name="opponent")
    try:
        overlay.wait_status(healthy, lambda status: bool(status.reconcile.held), "is in a fight", DEADLINE_S)
        named: list[dict[str, Any]] = []

        def is_named() -> bool:
            """Between two repairs, the fight is briefly invisible."""
            said = json.loads(healthy.flannelctl("--json", "doctor", check=False))
            named[:] = [one for one in said["findings"] if one["code"] == "fight"]
            return bool(named)

        wait_until(is_named, what="doctor names the fight", deadline_s=DEADLINE_S)
    finally:
        opponent.kill()

    assert named[0]["severity"] == "error"
    assert any("on flannel.1: missing" in line for line in named[0]["evidence"])


def test_an_unreachable_store_is_reported(overlay, healthy: Host) -> None:
    with paused(overlay.etcd_program):
        overlay.wait_status(healthy, lambda status: not status.store.is_connected, "misses it", DEADLINE_S)
        found = examine(healthy, exit_code=1)["store-away"]

    assert overlay.etcd.url in found["evidence"][0]
    again = overlay.wait_status(healthy, lambda status: status.is_ready, "is ready again", DEADLINE_S)
    assert again.store is not None
    assert again.store.last_error
    assert again.store.last_error_age_s is not None


def test_without_a_daemon_the_rest_of_the_host_is_examined(overlay, healthy: Host) -> None:
    overlay.daemons[healthy.name].kill()
    healthy.run(["ip", "route", "add", "10.100.250.0/28", "via", "10.10.10.77"])

    found = examine(healthy, exit_code=1)

    healthy.run(["ip", "route", "delete", "10.100.250.0/28"])
    assert found.keys() - {"backend-note"} == {"daemon-away", "left-by-original"}
    overlay.join(healthy)


def test_a_stopped_daemon_is_found_and_the_command_continues_it(overlay, healthy: Host) -> None:
    with paused(overlay.daemons[healthy.name]):
        found = examine(healthy, exit_code=1)["daemon-away"]
        healthy.run(["sh", "-c", found["fix"]])

        assert re.fullmatch(r"kill -CONT \d+", found["fix"])
        assert "is stopped" in found["cause"]
        assert examine(healthy).keys() <= {"backend-note"}


def test_a_daemon_that_can_open_no_file_is_found_and_the_command_repairs_it(healthy: Host) -> None:
    pid = healthy.run(["cat", "/run/flannel/flanneld.lock"]).stdout.split()[0]
    healthy.run(["prlimit", "--pid", pid, "--nofile=5:"])
    (found,) = problems(healthy)
    healthy.run(["sh", "-c", found["fix"]])

    assert found["code"] == "files-exhausted"
    assert found["evidence"][0] == f"/proc/{pid}/limits: Max open files 5"
    assert found["evidence"][2].startswith("consequence: flanneld does not respond: ")


_WRITER = "while :; do etcdctl --endpoints={} {} {} {} >/dev/null; sleep 0.2; done"


def _by_code(host: Host) -> dict[str, dict[str, Any]]:
    return {one["code"]: one for one in problems(host)}


@pytest.mark.parametrize(
    ("verb", "value", "code"),
    [("put", '{"PublicIP":"10.10.10.77"}', "lease-taken"), ("del", "", "lease-deleted")],
)
def test_a_program_that_writes_the_lease_of_this_host_again_and_again_is_found(
    overlay, healthy: Host, verb: str, value: str, code: str
) -> None:
    lease = healthy.lease()
    key = f"/coreos.com/network/subnets/{str(lease).replace('/', '-')}"
    endpoint = overlay.etcd.url.removeprefix("etcd://").partition("/")[0]
    words = [f"http://{endpoint}", verb, key, shlex.quote(value) if value else ""]
    writer = overlay.lab.router.start(
        ["env", "ETCDCTL_API=3", "sh", "-c", _WRITER.format(*words)], name=f"writer of {code}"
    )
    try:
        wait_until(lambda: code in _by_code(healthy), what="doctor names the writes", deadline_s=DEADLINE_S)
        found = _by_code(healthy)
    finally:
        writer.kill()

    assert code in found
    assert [one for one, it in found.items() if it["severity"] == "error"] == [code]
    assert str(lease) in found[code]["fix"]
    if code == "lease-taken":
        assert "again and again" in found[code]["cause"]
        healthy.run(["flannelctl", "leases", "release", str(lease), "--force", "--yes"])


def test_a_user_without_permission_gets_the_reason(healthy: Host) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "flannelctl"]

    said = {
        verb: healthy.run([*nobody, *verb.split()], check=False)
        for verb in ("doctor", "status", "ping docker2", "trace 10.100.1.1")
    }

    assert "this user has no permission to ask flanneld" in said["doctor"].stdout
    assert "    do: Run flannelctl as root" in said["doctor"].stdout
    assert "peers" not in said["status"].stdout
    for verb in ("ping docker2", "trace 10.100.1.1"):
        assert said[verb].returncode == 3
        assert "Run flannelctl as root" in said[verb].stderr


def test_remains_of_the_original_are_found_on_a_host_without_pyflannel(overlay) -> None:
    """All remains are found, and doctor recommends cleanup."""
    host = overlay.hosts["docker3"]
    rules = "*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j FLANNEL-FWD\nCOMMIT\n"
    host.run(["iptables-restore", "--noflush"], text=rules)
    host.run(["ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472"])

    found = examine(host, exit_code=1)["left-by-original"]

    assert found["evidence"] == ["link flannel.1", "iptables chain FLANNEL-FWD in filter"]
    assert found["fix"] == "flannelctl cleanup"
    host.flannelctl("--store", overlay.etcd.url, "cleanup", check=False)
    wait_until(
        lambda: examine(host, exit_code=1).keys() == {"daemon-away"},
        what="it is clean",
        deadline_s=DEADLINE_S,
    )


def plan(host: Host, *words: str, exit_code: int = 0) -> Any:
    ran = host.run(["flannelctl", "plan", "--json", *words], check=False)
    assert ran.returncode == exit_code, ran.stdout + ran.stderr
    return read_document(["plan"], ran.stdout)


def test_the_plan_of_another_config_is_shown_and_nothing_is_changed(overlay, healthy: Host) -> None:
    """A config that is invalid, or that the host would refuse, has no plan."""
    before = healthy.routes()
    assert plan(healthy) == {"waits_for": None, "changes": []}

    config = overlay.config(SubnetLen=28, Backend={"Type": "vxlan", "MTU": 1400})
    changes = {one["text"]: one["action"] for one in plan(healthy, "--config", config)["changes"]}
    assert changes["link flannel.1: mtu 1450, wanted 1350"] == "change"
    assert "file /run/flannel/subnet.env: its text differs" in changes

    config = overlay.config(SubnetLen=28, Backend={"Type": "host-gw"})
    shown = healthy.flannelctl("plan", "--config", config).splitlines()
    assert shown[-1].endswith(" to remove")
    elsewhere = json.dumps({"Network": "10.200.0.0/16"})
    refused = plan(healthy, "--config", elsewhere, exit_code=2)["error"]["message"]
    assert refused.startswith("this host would keep its config, and wait for a network config that admits")
    assert plan(healthy, "--config", "{", exit_code=2)["error"]
    assert plan(healthy) == {"waits_for": None, "changes": []}
    assert healthy.routes() == before


def test_events_are_followed_while_they_happen(healthy: Host) -> None:
    """The damage is repeated until flannelctl has started."""
    program = healthy.start(["flannelctl", "events", "--since", "0s", "--follow"], name="events")
    shown = healthy.directory / "log/events.log"

    def is_shown() -> bool:
        healthy.run(["ip", "link", "set", "flannel.1", "mtu", "1234"])
        return "mtu 1234" in shown.read_text()

    try:
        wait_until(is_shown, what="the repair is shown", deadline_s=DEADLINE_S)
    finally:
        program.kill()
    lines = [line for line in shown.read_text().splitlines() if "mtu 1234" in line]
    assert lines[0].endswith("  repaired  link flannel.1: mtu 1234, wanted 1450")


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), Path("libfaketimeMT.so.1"))


def test_a_clock_that_differs_from_those_of_the_peers_is_reported(healthy: Host) -> None:
    """The clock of flannelctl is changed. The clock of the machine, with which the peer answers, does not
    change.
    """
    variables = [f"LD_PRELOAD={FAKETIME}", "FAKETIME=+90s", "FAKETIME_DONT_FAKE_MONOTONIC=1"]

    ran = healthy.run(["env", *variables, "flannelctl", "doctor", "--json"], check=False)

    (found,) = [one for one in read_document(["doctor"], ran.stdout)["findings"] if one["severity"] != "info"]
    assert (found["code"], found["severity"]) == ("clock-skew", "warning")
    (line,) = found["evidence"]
    assert re.fullmatch(r"the clock of 10\.10\.10\.102 is (89|90|91) s behind the clock of this host", line)
