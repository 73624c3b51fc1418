"""After a change of Backend.Type, the old backend's objects are removed, even if the daemon was stopped."""

import contextlib
import itertools
import json
import os
from ipaddress import IPv4Address
from typing import Any

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
PING_INTERVAL_S = 0.01
ROUND = ("vxlan", "udp", "host-gw", "udp", "wireguard", "udp")
"""The changes that `test_changes_under_traffic.py` does not test."""


@pytest.fixture(scope="module")
def pair(overlay) -> list[Host]:
    """Two hosts on one segment, so that every backend works."""
    return [overlay.hosts["docker1"], overlay.hosts["docker2"]]


def set_backend(overlay, kind: str) -> None:
    text = json.dumps({"Network": "10.100.0.0/16", "Backend": {"Type": kind}})
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", text)


def devices(host: Host) -> dict[str, str]:
    """Return the kind of each marked device by name. WireGuard of the kernel counts as tun."""
    return {
        link["ifname"]: link["linkinfo"]["info_kind"].replace("wireguard", "tun")
        for link in host.links()
        if link.get("ifalias", "").startswith("pyflannel")
    }


def lasting(host: Host) -> list[tuple[Any, ...]]:
    """Return the host's routes into the network, and its permanent neighbours and FDB entries."""
    neighbours = json.loads(host.run(["ip", "-json", "neigh", "show", "nud", "permanent"]).stdout or "[]")
    entries = json.loads(host.run(["bridge", "-json", "fdb", "show"]).stdout or "[]")
    return [
        *(
            ("route", route["dst"], route.get("gateway"), route.get("dev"), route.get("protocol"))
            for route in host.routes()
            if route["dst"].startswith("10.100.") and route.get("dev") != "br7"
        ),
        *(("neighbour", entry["dst"], entry["dev"]) for entry in neighbours),
        *(("fdb", entry["dst"], entry["ifname"]) for entry in entries if "dst" in entry),
    ]


def expected(kind: str, peer: Host) -> tuple[dict[str, str], list[tuple[Any, ...]]]:
    subnet = peer.lease()
    base, address = str(subnet.network_address), str(peer.address)
    match kind:
        case "udp":
            return {"flannel0": "tun"}, [("route", "10.100.0.0/16", None, "flannel0", "kernel")]
        case "vxlan":
            return {"flannel.1": "vxlan"}, [
                ("route", str(subnet), base, "flannel.1", "80"),
                ("neighbour", base, "flannel.1"),
                ("fdb", address, "flannel.1"),
            ]
        case "wireguard":
            network = "10.100.0.0/16"
            return {"flannel-wg": "tun"}, [
                ("route", network, None, "flannel-wg", "80"),
                ("route", network, None, None, "80"),  # the blackhole
            ]
        case _:
            return {}, [("route", str(subnet), address, "eth0", "80")]


def wait_backend(overlay, pair: list[Host], kind: str) -> None:
    """Wait until both hosts have exactly the objects of this backend."""
    for host, peer in zip(pair, reversed(pair), strict=True):
        wanted = expected(kind, peer)
        with contextlib.suppress(LabError):
            wait_until(
                lambda host=host, wanted=wanted: (devices(host), lasting(host)) == wanted,
                what=f"{host.name} has the objects of {kind}",
                deadline_s=DEADLINE_S,
            )
        assert (devices(host), lasting(host)) == wanted, overlay.log(host)[-2000:]
        wait_until(
            lambda host=host: overlay.forwarders(host) == (kind == "udp"),
            what=f"{host.name} runs a forwarder with udp alone",
            deadline_s=DEADLINE_S,
        )
        if kind != "wireguard":
            assert not host.run(["pgrep", "wireguard-go"], check=False).stdout


def bridge(host: Host) -> IPv4Address:
    """Create a bridge with the gateway address of the host's subnet, like Docker's; return the address."""
    gateway = host.gateway()
    batch = f"link add br7 type bridge\nlink set br7 up\naddress add {gateway} dev br7\n"
    host.run(["ip", "-batch", "-"], text=batch)
    return gateway.ip


def test_each_backend_removes_all_its_objects(overlay, pair, ping_stream, figures) -> None:
    """The subnets stay, and no packet is lost."""

    def join(host: Host) -> None:
        overlay.join_with(host, module="transition", constant="LINGER_S", value=2.0)

    set_backend(overlay, ROUND[0])
    together([lambda host=host: join(host) for host in pair])
    wait_backend(overlay, pair, ROUND[0])
    subnets = [host.lease() for host in pair]
    destination = [bridge(host) for host in pair][1]

    with ping_stream(pair[0], destination, interval_s=PING_INTERVAL_S) as stream:
        stream.wait_answered()
        for before, kind in itertools.pairwise(ROUND):
            set_backend(overlay, kind)
            wait_backend(overlay, pair, kind)
            stream.wait_answered()
            assert [host.lease() for host in pair] == subnets
            gap_s = stream.longest_gap_s()
            lost = stream.lost()
            figures(f"{before} to {kind}: {len(lost)} pings lost, longest gap so far {gap_s * 1e3:.0f} ms")
            assert not lost
    for host in pair:
        overlay.wait_ready(host)


@pytest.mark.parametrize("kind", ["vxlan", "host-gw", "udp"])
def test_a_daemon_removes_the_objects_of_the_backend_that_changed_while_it_was_stopped(
    overlay, pair, kind: str
) -> None:
    for host in pair:
        overlay.daemons[host.name].kill()
    set_backend(overlay, kind)

    together([lambda host=host: overlay.join(host) for host in pair])

    wait_backend(overlay, pair, kind)
