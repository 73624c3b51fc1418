"""Kills, restarts and leaving peers do not change the objects of other programs."""

import contextlib
import json
import os
from typing import Any

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

PEERS = 1000
DEADLINE_S = 60.0

FOREIGN = """
link add decoy0 type veth peer name decoy1
link set decoy0 up
link set decoy1 up
address add 10.7.0.1/24 dev decoy0
route add 10.8.0.0/16 via 10.7.0.2
route add 10.99.0.0/16 dev decoy0 proto static
route add 10.100.250.0/24 via 10.7.0.2
route add 10.100.251.0/24 via 10.7.0.2 proto static metric 7
route add 10.102.1.0/24 via 10.7.0.2 proto 101
route add blackhole 10.98.0.0/16
route add 10.100.0.0/16 dev decoy0 table 77
rule add from 10.7.0.0/24 lookup 77
neigh add 10.7.0.2 lladdr 0e:00:00:00:00:01 dev decoy0 nud permanent
neigh add 10.7.0.3 lladdr 0e:00:00:00:00:02 dev decoy0 nud permanent
link add vx7 type vxlan id 7 dev eth0 dstport 4789 nolearning
link set vx7 up alias foreign
link add flannel.9 type vxlan id 9 dev eth0 dstport 4789 nolearning
link set flannel.9 alias "pyflannel /run/blue"
link set flannel.9 up
"""
"""Objects of other programs, also in the network of flannel, and of another flanneld."""

FOREIGN_FDB = (
    "fdb add 0e:00:00:00:00:07 dev vx7 dst 10.10.10.77 self permanent\n"
    "fdb add 0e:00:00:00:00:09 dev flannel.9 dst 10.10.10.77 self permanent\n"
)

KILL_AT = {
    "a device": "ip link show flannel.1 >/dev/null 2>&1",
    "some FDB entries": "test $(bridge fdb show dev flannel.1 2>/dev/null | wc -l) -gt 200",
    "some routes": "test $(ip route show dev flannel.1 2>/dev/null | wc -l) -gt 300",
}
"""Shell conditions for the existence of objects, in their order of creation."""


@pytest.fixture(scope="module")
def host(overlay) -> Host:
    """A host with foreign objects, and a thousand peers that join later."""
    made = overlay.hosts["docker1"]
    made.run(["ip", "-batch", "-"], text=FOREIGN)
    made.run(["bridge", "-batch", "-"], text=FOREIGN_FDB)
    wait_until(
        lambda: "tentative" not in str(overlay.state(made)),
        what="no address is under way",
        deadline_s=DEADLINE_S,
    )
    overlay.set_backend("vxlan")
    overlay.put_peers("vxlan", PEERS)
    return made


@pytest.fixture(scope="module")
def before(overlay, host: Host) -> dict[str, Any]:
    """The objects of the host before any daemon."""
    return everything(overlay, host)


@pytest.fixture(scope="module")
def complete(overlay, host: Host, before: dict[str, Any]) -> dict[str, Any]:
    """The objects of the host with an undisturbed daemon.

    After the comparison the objects are removed, but the lease remains.
    """
    overlay.join(host)
    wait_peers(host, PEERS)
    found = everything(overlay, host)
    clean(overlay, host)
    wait_equal(overlay, host, before)
    return found


def everything(overlay, host: Host) -> dict[str, Any]:
    """Return all network objects of the host, including permanent neighbours and FDB entries."""
    neighbours = host.run(["ip", "-json", "neigh", "show", "nud", "permanent"]).stdout
    entries = host.run(["bridge", "-json", "fdb", "show"]).stdout
    return {
        **overlay.state(host),
        "next hops": host.run(["ip", "nexthop", "show"]).stdout.splitlines(),
        "neighbours": sorted(json.dumps(one, sort_keys=True) for one in json.loads(neighbours or "[]")),
        "FDB": sorted(json.dumps(one, sort_keys=True) for one in json.loads(entries or "[]")),
    }


def lacking(before: dict[str, Any], now: dict[str, Any]) -> list[Any]:
    """Return the objects of `before` that are missing or different now."""
    gone: list[Any] = []
    for part, was in before.items():
        if isinstance(was, dict):
            gone += [(part, name) for name, value in was.items() if now[part].get(name) != value]
        elif isinstance(was, list):
            gone += [(part, one) for one in was if one not in now[part]]
    return gone


def wait_peers(host: Host, count: int) -> None:
    """Wait until this number of peers is complete. The route is the last object of each peer."""
    wait_until(
        lambda: len(host.routes("dev", "flannel.1", "proto", "80")) == count,
        what=f"{count} routes by flannel.1",
        deadline_s=DEADLINE_S,
    )


def clean(overlay, host: Host) -> None:
    host.flannelctl("--store", overlay.etcd.url, "cleanup", "--keep-lease")


def wait_equal(overlay, host: Host, wanted: dict[str, Any]) -> None:
    """Wait until the host has exactly these objects."""
    with contextlib.suppress(LabError):
        wait_until(
            lambda: everything(overlay, host) == wanted, what="the wanted objects", deadline_s=DEADLINE_S
        )
    assert everything(overlay, host) == wanted


def test_a_thousand_peers_do_not_change_foreign_objects(before, complete) -> None:
    assert lacking(before, complete) == []


def kill_at(overlay, host: Host, condition: str) -> None:
    """Start the daemon, and kill it when a shell condition becomes true."""
    program = overlay.daemons[host.name] = host.launch_flanneld(f"--store={overlay.etcd.url}")
    host.run(["sh", "-c", f"until {condition}; do :; done; pkill -KILL -x flanneld"])
    program.wait()


@pytest.mark.parametrize("condition", KILL_AT.values(), ids=KILL_AT.keys())
def test_the_next_daemon_finishes_a_batch(overlay, host, before, complete, condition: str) -> None:
    """Continue the work of a daemon that was killed in the middle of a batch."""
    kill_at(overlay, host, condition)
    assert lacking(before, everything(overlay, host)) == []

    overlay.join(host)

    wait_equal(overlay, host, complete)
    clean(overlay, host)
    wait_equal(overlay, host, before)


def test_cleanup_removes_the_objects_of_an_unfinished_batch(overlay, host, before, complete) -> None:
    kill_at(overlay, host, KILL_AT["some FDB entries"])

    clean(overlay, host)

    wait_equal(overlay, host, before)


def test_peers_that_left_while_the_daemon_was_stopped_are_removed(overlay, host, before, complete) -> None:
    overlay.join(host)
    overlay.daemons[host.name].kill()
    subnet = host.lease()
    own = f"{PREFIX}/subnets/{subnet.network_address}-{subnet.prefixlen}"
    kept = overlay.etcd.etcdctl("get", own, "--print-value-only").strip()
    overlay.delete_leases()
    overlay.etcd.etcdctl("put", own, kept)
    overlay.put_peers("vxlan", PEERS // 10)

    overlay.join(host)
    wait_peers(host, PEERS // 10)

    def gained(part: str) -> int:
        return len(everything(overlay, host)[part]) - len(before[part])

    wait_until(  # the next hops of routes are removed after the routes
        lambda: [gained(part) for part in ("neighbours", "FDB")] == [PEERS // 10] * 2,
        what=f"neighbours and FDB entries of {PEERS // 10} peers",
        deadline_s=DEADLINE_S,
    )
    found = everything(overlay, host)
    assert lacking(before, found) == []
    assert {part: found[part] for part in ("links", "addresses")} == {
        part: complete[part] for part in ("links", "addresses")
    }
