"""flannelctl cleanup: the host is as if flannel had never been there."""

import contextlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.host import Host
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 30.0
OF_THE_LAB = {"log", "run/notify", ".overlay", "cgroup"}
"""Where the lab itself writes: logs of the programs, and the notices of those that start."""


@pytest.fixture(scope="module", autouse=True)
def at_rest(overlay) -> None:
    """No host has an address under way; no daemon has ever run."""
    for host in overlay.hosts.values():
        wait_until(
            lambda host=host: "tentative" not in str(overlay.state(host)),
            what=f"{host.name} is at rest",
            deadline_s=DEADLINE_S,
        )


def traces(overlay, host: Host) -> dict[str, Any]:
    """Return all that a program can leave on a host: the network, processes, filters, settings, files."""
    settings = host.run(["sh", "-c", "sysctl --all --ignore 2>/dev/null | grep '^net.ipv[46].conf'"])
    return {
        **overlay.state(host),
        "processes": sorted(" ".join(command) for command in host.commands() if command[0] not in _SHOWING),
        "filters": host.run(["nft", "list", "ruleset"]).stdout,
        "settings": settings.stdout.splitlines(),
        "files": sorted(files(host.directory)),
    }


def wait_as_before(overlay, host: Host, before: dict[str, Any]) -> None:
    """Return once the host is as it was; the processes that ended may take a moment to be gone."""
    with contextlib.suppress(LabError):
        wait_until(lambda: traces(overlay, host) == before, what="no trace", deadline_s=DEADLINE_S)
    assert traces(overlay, host) == before


_SHOWING = {"bash", "tr", "sleep"}  # the lab's own first process, and what looks for processes


def files(directory: Path) -> list[str]:
    found = []
    for path in directory.rglob("*"):
        name = str(path.relative_to(directory))
        if not any(name == own or name.startswith(f"{own}/") for own in OF_THE_LAB):
            found.append(f"{stat.filemode(path.lstat().st_mode)} {name}")
    return found


def leases(overlay) -> dict[str, Any]:
    """Return every lease in the store, by key."""
    answer = overlay.etcd.etcdctl(
        "get", "--prefix", "/coreos.com/network/subnets/", "--print-value-only=false"
    )
    lines = answer.splitlines()
    return {key: json.loads(value) for key, value in zip(lines[::2], lines[1::2], strict=True)}


@pytest.mark.parametrize("daemon", ["runs", "was terminated", "was killed"])
def test_cleanup_leaves_no_trace(overlay, daemon: str) -> None:
    """Nothing but the logs, whether the daemon runs or not; the lease is gone from the store too."""
    host = overlay.hosts["docker1"]
    before = traces(overlay, host)
    overlay.join(host)
    assert traces(overlay, host) != before
    if daemon == "was terminated":
        overlay.daemons[host.name].stop()
    elif daemon == "was killed":
        overlay.daemons[host.name].kill()

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    assert leases(overlay) == {}
    assert "removed link flannel0" in said
    assert "removed lease " in said
    assert overlay.daemons[host.name].wait() is not None


@pytest.mark.parametrize(
    "damage", ["pkill -STOP -x flannel-forward", "rm -r /run/flannel"], ids=["stands still", "has no socket"]
)
def test_cleanup_ends_a_forwarder_that_answers_nobody(overlay, damage: str) -> None:
    host = overlay.hosts["docker2"]
    before = traces(overlay, host)
    overlay.join(host)
    overlay.daemons[host.name].kill()
    host.run(["sh", "-c", damage])

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    assert re.search(r"removed forwarder \(pid \d+\), which answered nobody", said)


def test_cleanup_of_a_clean_host_does_nothing(overlay) -> None:
    host = overlay.hosts["docker2"]
    before = traces(overlay, host)

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    assert "nothing of flannel was here" in said


def test_cleanup_leaves_what_others_have(overlay) -> None:
    """A route over our device goes with it; devices, files and routes of others stay."""
    host = overlay.hosts["docker3"]
    foreign = [
        "link add decoy0 type veth peer name decoy1",
        "link set decoy0 up",
        "address add 10.7.0.1/24 dev decoy0",
        "route add 10.100.250.0/24 dev decoy0",
        "tuntap add mode tun name flannel9",
    ]
    host.run(["ip", "-batch", "-"], text="\n".join(foreign) + "\n")
    host.run(["sh", "-c", "mkdir -p /run/flannel && echo mine >/run/flannel/mine"])
    before = traces(overlay, host)
    overlay.join(host)

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    assert "kept directory /run/flannel, which holds other files" in said


def test_a_kept_lease_is_taken_again(overlay) -> None:
    """`--keep-lease`: the host is clean but for its identity, and the next start has the same subnet."""
    host = overlay.hosts["docker4"]
    before = traces(overlay, host)
    overlay.join(host)
    subnet = host.lease()

    host.flannelctl("--store", overlay.etcd.url, "cleanup", "--keep-lease")

    after = traces(overlay, host)
    kept = set(after.pop("files")) - set(before.pop("files"))
    assert after == before
    assert {name.split()[1] for name in kept} == {
        "var/lib/flannel",
        "var/lib/flannel/identity.json",
        "var/lib/flannel/last-known.json",
    }
    assert f"/coreos.com/network/subnets/{subnet.network_address}-{subnet.prefixlen}" in leases(overlay)
    overlay.join(host)
    assert host.lease() == subnet
    assert f"Found lease ({subnet}) for current IP" in overlay.log(host)
