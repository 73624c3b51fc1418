"""flannelctl cleanup restores the host to the state before its first flanneld."""

import contextlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
PEERS = 40
REMOVED = {
    "udp": ["link flannel0", f"{PEERS} peers of the forwarder"],
    "vxlan": ["link flannel.1", f"{PEERS} routes"],
    "host-gw": [f"{PEERS} routes"],
}
"""Log lines about some of the removed objects."""

OF_THE_LAB = {"log", "run/notify", ".overlay", "cgroup"}
"""Files that the lab itself writes: logs of the programs, and notifications of starting programs."""


@pytest.fixture(scope="module", autouse=True)
def at_rest(overlay) -> None:
    """All addresses of the hosts are final, and no daemon has ever run."""
    for host in overlay.hosts.values():
        overlay.wait_at_rest(host)


def traces(overlay, host: Host) -> dict[str, Any]:
    """Return everything that a program can leave on a host: network, processes, filters, settings, files."""
    settings = host.run(["sh", "-c", "sysctl --all --ignore 2>/dev/null | grep '^net.ipv[46].'"])
    permanent = ["ip", "-json", "neigh", "show", "nud", "permanent"]
    shown = {
        "neighbours": json.loads(host.run(permanent).stdout or "[]"),
        "FDB": json.loads(host.run(["bridge", "-json", "fdb", "show"]).stdout or "[]"),
        "next hops": host.run(["ip", "nexthop", "show"]).stdout,
        "queues": host.run(["tc", "qdisc", "show"]).stdout,
        "programs": host.run(["sh", "-c", "tc filter show dev eth0 ingress; ls -R /sys/fs/bpf"]).stdout,
    }
    return {
        **shown,
        **overlay.state(host),
        "processes": sorted(" ".join(command) for command in host.commands() if command[0] not in _SHOWING),
        "filters": host.run(["nft", "list", "ruleset"]).stdout,
        "settings": [line for line in settings.stdout.splitlines() if not _MOVING.search(line)],
        "files": sorted(files(host.directory)),
    }


def wait_as_before(overlay, host: Host, before: dict[str, Any]) -> None:
    """Wait until the host has the same traces as before. An ended process may need a moment to disappear."""
    with contextlib.suppress(LabError):
        wait_until(lambda: traces(overlay, host) == before, what="no trace", deadline_s=DEADLINE_S)
    assert traces(overlay, host) == before


_MOVING = re.compile(r"nf_conntrack_count|neigh|route|dentry")
"""Counters, and values that the kernel adapts."""

_SHOWING = {"bash", "tr", "sleep"}  # the first process of the lab, and the search for processes


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


@pytest.mark.parametrize(
    ("backend", "daemon"),
    [
        ("udp", "runs"),
        ("udp", "was terminated"),
        ("udp", "was killed"),
        ("vxlan", "runs"),
        ("vxlan", "was killed"),
        ("host-gw", "was terminated"),
        ("host-gw", "was killed"),
    ],
)
def test_cleanup_leaves_no_trace(overlay, backend: str, daemon: str) -> None:
    """Only the logs remain, whether the daemon runs or not. The lease is removed from the store, too."""
    host = overlay.hosts["docker1"]
    overlay.set_backend(backend)
    overlay.put_peers(backend, PEERS)
    others = leases(overlay)
    before = traces(overlay, host)
    overlay.join(host)
    wait_until(
        lambda: reachable_peers(overlay, host, backend) == PEERS,
        what="all objects of each peer",
        deadline_s=DEADLINE_S,
    )
    assert traces(overlay, host) != before
    if daemon == "was terminated":
        overlay.daemons[host.name].stop()
    elif daemon == "was killed":
        overlay.daemons[host.name].kill()

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    assert leases(overlay) == others
    for what in REMOVED[backend]:
        assert f"removed {what}\n" in said
    assert "removed lease " in said
    assert len(said.splitlines()) < PEERS
    assert overlay.daemons[host.name].wait() is not None
    overlay.delete_leases()


def reachable_peers(overlay, host: Host, backend: str) -> int:
    """Return the number of reachable peers. Some peers may be added after the host is ready."""
    if backend == "udp":
        return len(overlay.peers(host))
    return len(host.routes("proto", "80"))


def test_cleanup_after_a_switch_of_backends_leaves_no_trace(overlay) -> None:
    """The daemon detected one switch, and was stopped during the other switch."""
    host = overlay.hosts["docker1"]
    before = traces(overlay, host)
    overlay.set_backend("udp")
    overlay.join(host)
    overlay.set_backend("vxlan")
    overlay.wait_status(host, lambda status: status.is_ready and status.backend.type == "vxlan", "switches")
    overlay.daemons[host.name].kill()
    overlay.set_backend("host-gw")

    host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    overlay.set_backend("udp")


@pytest.mark.parametrize(
    "damage", ["pkill -STOP -x flannel-forward", "rm -r /run/flannel"], ids=["stopped", "without socket"]
)
def test_cleanup_ends_a_forwarder_that_does_not_respond(overlay, damage: str) -> None:
    host = overlay.hosts["docker2"]
    before = traces(overlay, host)
    overlay.join(host)
    overlay.daemons[host.name].kill()
    host.run(["sh", "-c", damage])

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    assert re.search(r"removed forwarder \(pid \d+\), which did not respond", said)


def test_cleanup_of_a_clean_host_does_nothing(overlay) -> None:
    host = overlay.hosts["docker2"]
    before = traces(overlay, host)

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    assert "found nothing of flannel on this host" in said


def test_cleanup_keeps_objects_of_others(overlay) -> None:
    """A route over a device of pyflannel is removed together with the device. Foreign devices, files and
    routes remain.
    """
    host = overlay.hosts["docker3"]
    foreign = [
        "link add decoy0 type veth peer name decoy1",
        "link set decoy0 up",
        "address add 10.7.0.1/24 dev decoy0",
        "route add 10.100.250.0/24 dev decoy0",
        "tuntap add mode tun name flannel9",
        "nexthop add id 4242 via 192.168.50.77 dev eth0 proto static",
    ]
    host.run(["ip", "-batch", "-"], text="\n".join(foreign) + "\n")
    host.run(["sh", "-c", "mkdir -p /run/flannel && echo mine >/run/flannel/mine"])
    before = traces(overlay, host)
    overlay.join(host)
    # An operator deleted the route of one peer among thousands.
    host.run(["ip", "nexthop", "add", "id", "4243", "via", "192.168.50.77", "dev", "eth0", "proto", "80"])

    said = host.flannelctl("--store", overlay.etcd.url, "cleanup")

    wait_as_before(overlay, host, before)
    assert "removed 1 next hop without a route" in said
    assert "kept directory /run/flannel, which contains other files" in said


def test_a_kept_lease_is_acquired_again(overlay) -> None:
    """`--keep-lease`: only the identity of the host remains, and the next start has the same subnet."""
    host = overlay.hosts["docker4"]
    before = traces(overlay, host)
    overlay.join(host)
    subnet = host.lease()

    host.flannelctl("--store", overlay.etcd.url, "cleanup", "--keep-lease")

    files_before = set(before.pop("files"))

    def without_files() -> dict[str, Any]:
        return {part: found for part, found in traces(overlay, host).items() if part != "files"}

    with contextlib.suppress(LabError):  # an ended process may need a moment to disappear
        wait_until(lambda: without_files() == before, what="no other trace", deadline_s=DEADLINE_S)
    assert without_files() == before
    kept = set(files(host.directory)) - files_before
    assert {name.split()[1] for name in kept} == {
        "var/lib/flannel",
        "var/lib/flannel/.prefix",
        "var/lib/flannel/identity.json",
        "var/lib/flannel/last-known.json",
        "var/lib/flannel/lease-key.json",
    }
    assert f"/coreos.com/network/subnets/{subnet.network_address}-{subnet.prefixlen}" in leases(overlay)
    overlay.join(host)
    assert host.lease() == subnet
    assert f"Found lease ({subnet}) for current IP" in overlay.log(host)
