"""A hop of the underlay has a smaller MTU than the interfaces of the hosts. Packets of all sizes arrive."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Network
from typing import Any

import pytest

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from pyflannel.model.network_config import BOTH_FAMILIES, IPV4_ONLY, Family, IpAddress, IpNetwork
from testlab.ipv6_cluster import Ipv6Container, cluster_in
from testlab.overlay import Overlay, overlay_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 60.0
HOP_MTU = 1400
VLAN = 4
"""Bytes above the MTU that the kernel accepts on a link, for a VLAN tag."""

NETWORK_V6 = "fd00:5::/48"
ABOVE = 200
PORT = 4500

_ECHO = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
family = socket.AF_INET6 if ":" in address else socket.AF_INET
echo = socket.socket(family, socket.SOCK_DGRAM)
echo.bind((address, port))
while True:
    payload, sender = echo.recvfrom(65536)
    echo.sendto(str(len(payload)).encode(), sender)
"""
"""Answers each datagram with its size."""

_SWEEP = """
import errno, json, socket, sys, time
source, target, port, has_df, sizes = sys.argv[1:]
is_ipv6, has_df = ":" in target, int(has_df)
sender = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_DGRAM)
sender.bind((source, 0))
level, option, mtu = (socket.IPPROTO_IPV6, 23, 24) if is_ipv6 else (socket.IPPROTO_IP, 10, 14)
sender.setsockopt(level, option, 2 if has_df else 0)  # linux/in.h, linux/in6.h: DO, DONT
if is_ipv6:
    sender.setsockopt(level, 62, has_df)  # IPV6_DONTFRAG
sender.connect((target, int(port)))
sender.settimeout(0.02)
waiting, refused = set(json.loads(sizes)), {}
for attempt in range(8):
    order = sorted(waiting)
    for window in (set(order[start : start + 16]) for start in range(0, len(order), 16)):
        for size in sorted(window):
            try:
                sender.send(bytes(size))
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    refused[size] = sender.getsockopt(level, mtu)
                    if attempt:  # the answer of the host has arrived since
                        waiting.discard(size)
        end = time.monotonic() + 0.3
        while window & waiting - refused.keys() and time.monotonic() < end:
            try:
                waiting.discard(int(sender.recv(64)))
            except OSError:
                pass  # no answer yet, or an ICMP error
print(json.dumps({"lost": sorted(waiting), "refused": refused}))
"""
"""Sends datagrams with these sizes of their payload, up to eight times. Prints the sizes without an
answer."""


@dataclass(frozen=True)
class Case:
    """A backend, and the hop with the smaller MTU.

    Attributes:
        hop: `routed`: the router has a smaller MTU towards the second host. `bridged`: the switch drops large
            packets. `jumbo`: as `routed`, and the links of the hosts have an MTU of 9,000. `nested`: the
            underlay is a tunnel whose large packets the router drops.
    """

    name: str
    backend: dict[str, Any]
    hop: str = "routed"
    families: tuple[Family, ...] = BOTH_FAMILIES


QUICK = Case("vxlan", {"Type": "vxlan"})
IPV6_ALONE: tuple[Family, ...] = (6,)
QUICK_IPV6 = Case("vxlan-ipv6-alone", {"Type": "vxlan"}, families=IPV6_ALONE)
LONG = (
    Case("udp", {"Type": "udp"}, families=IPV4_ONLY),
    Case("udp-flow", {"Type": "udp", "FastPath": "flow"}, families=IPV4_ONLY),
    Case("udp-user-space", {"Type": "udp", "FastPath": "off"}, families=IPV4_ONLY),
    Case("wireguard", {"Type": "wireguard"}),
    Case("wireguard-ipv4", {"Type": "wireguard", "Mode": "ipv4"}),
    Case("wireguard-ipv6", {"Type": "wireguard", "Mode": "ipv6"}),
    Case("host-gw", {"Type": "host-gw"}, hop="bridged"),
    Case("vxlan-direct", {"Type": "vxlan", "DirectRouting": True}, hop="bridged"),
    Case("vxlan-jumbo", {"Type": "vxlan"}, hop="jumbo"),
    Case("udp-jumbo", {"Type": "udp"}, hop="jumbo", families=IPV4_ONLY),
    Case("wireguard-jumbo", {"Type": "wireguard"}, hop="jumbo"),
    Case("vxlan-nested", {"Type": "vxlan"}, hop="nested"),
    Case("wireguard-nested", {"Type": "wireguard"}, hop="nested"),
    Case("wireguard-ipv6-alone", {"Type": "wireguard"}, families=IPV6_ALONE),
    Case("host-gw-ipv6-alone", {"Type": "host-gw"}, hop="bridged", families=IPV6_ALONE),
    Case("vxlan-jumbo-ipv6-alone", {"Type": "vxlan"}, hop="jumbo", families=IPV6_ALONE),
)


_PROBES, _SILENCE = "peer_probes", "SILENT_S = peer_probes.PAUSE_S"
"""The constants of the engine that shorten the pauses of the probes."""


@contextmanager
def joined(case: Case) -> Iterator[tuple[Overlay, list[Host]]]:
    """Create two hosts that have joined a network over the hop of a case."""
    with overlay_in("pathmtu") as overlay:
        router, names = overlay.lab.router, ("docker1", "docker2" if case.hop == "bridged" else "docker3")
        pair = [overlay.hosts[name] for name in names]
        if case.families != IPV6_ALONE:
            overlay.give_ipv6(*pair)
        match case.hop:
            case "bridged":
                router.run(["ip", "link", "set", "docker2", "mtu", str(HOP_MTU)])
            case "jumbo":
                for link in ("docker1", "docker3", "sw-left", "sw-right", "gw-left"):
                    router.run(["ip", "link", "set", link, "mtu", "9000"])
                for host in pair:
                    host.run(["ip", "link", "set", "eth0", "mtu", "9000"])
            case "nested":
                # Inside both tunnels, packets of IPv6 may still have 1280 bytes.
                for link in ("gw-left", "gw-right"):
                    router.run(["ip", "link", "set", link, "mtu", str(HOP_MTU + 50)])
                nest(*pair)
            case _:
                router.run(["ip", "link", "set", "gw-right", "mtu", str(HOP_MTU)])
        if case.families == IPV6_ALONE:
            with cluster_in(overlay) as cluster:
                cluster.configure(case.backend["Type"])
                cluster.join_with(*pair, module=_PROBES, constant=_SILENCE, value=1.0)
                yield overlay, pair
            return
        families = {"EnableIPv6": True, "IPv6Network": NETWORK_V6} if 6 in case.families else {}
        config = Overlay.config(Backend=case.backend, **families)
        overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
        flags = ("--iface=vpn0",) if case.hop == "nested" else ()
        together(
            [
                lambda host=host: overlay.join_with(
                    host, *flags, module=_PROBES, constant=_SILENCE, value=1.0
                )
                for host in pair
            ]
        )
        yield overlay, pair


def nest(one: Host, other: Host) -> None:
    """Connect two hosts by a tunnel whose devices have a larger MTU than the path."""
    for number, (host, peer) in enumerate(((one, other), (other, one)), start=1):
        tunnel = f"id 77 dstport 4799 local {host.address} remote {peer.address}"
        batch = (
            f"link add vpn0 mtu 1450 type vxlan {tunnel}\nlink set vpn0 up\n"
            f"address add 10.77.0.{number}/24 dev vpn0\naddress add fd77::{number}/64 dev vpn0 nodad\n"
        )
        host.run(["ip", "-batch", "-"], text=batch)


Container = NamespaceContainer | Ipv6Container


def with_container(host: Host, families: Sequence[Family]) -> tuple[Container, list[IpAddress]]:
    """Add a container that may send packets of any size, and return it with its addresses."""
    mtu = max(link["mtu"] for link in host.links() if link["ifname"] in ("eth0", "vpn0"))
    made: Container
    if families == IPV6_ALONE:
        made = Ipv6Container(host, "c1", mtu=mtu)
    else:
        made = host.container("c1", gateway=host.gateway(), mtu=mtu)
    addresses: list[IpAddress] = [made.address]
    if families == BOTH_FAMILIES:
        network = IPv6Network(host.subnet_env()["FLANNEL_IPV6_SUBNET"], strict=False)
        host.run(["ip", "address", "add", f"{network[1]}/64", "dev", "br0", "nodad"])
        batch = f"address add {network[2]}/64 dev eth0 nodad\nroute add default via {network[1]}\n"
        host.run(["ip", "-netns", "c1", "-batch", "-"], text=batch)
        addresses.append(network[2])
    for number, address in enumerate(addresses):
        made.start_in_network([sys.executable, "-c", _ECHO, str(address), str(PORT)], name=f"echo{number}")
    return made, addresses


def mtu_to(host: Host, subnet: IpNetwork) -> int:
    """Return the MTU of the route to the containers of another host; 0 if the route has no MTU."""
    shown = host.run(["ip", f"-{subnet.version}", "-json", "-details", "route", "show", str(subnet)]).stdout
    metrics = [entry for route in json.loads(shown or "[]") for entry in route.get("metrics", [])]
    return next((int(entry["mtu"]) for entry in metrics), 0)


def swept(
    container: Container, source: IpAddress, target: IpAddress, sizes: Sequence[int], *, has_df: bool
) -> dict[str, Any]:
    """Send datagrams of these sizes, with their IP header, and return the sizes that were lost or refused."""
    header = 28 if target.version == 4 else 48
    payloads = json.dumps([size - header for size in sizes])
    command = [sys.executable, "-c", _SWEEP, str(source), str(target), str(PORT), str(int(has_df)), payloads]
    found: dict[str, Any] = json.loads(container.run(command).stdout)
    return {
        "lost": [size + header for size in found["lost"]],
        "refused": {int(size) + header: mtu for size, mtu in found["refused"].items()},
    }


def few_sizes(mtu: int, planned: int, header: int) -> list[int]:
    edges = (*range(mtu - 2, mtu + 3), *range(planned - 1, planned + 2), planned + ABOVE)
    return [header + 1, header + 8, *sorted(set(edges))]


def all_sizes(mtu: int, planned: int, header: int) -> list[int]:
    return list(range(header + 1, planned + ABOVE + 1))


def assert_no_black_hole(
    case: Case, overlay: Overlay, pair: list[Host], sizes: Callable[[int, int, int], list[int]]
) -> None:
    """Wait for the measured MTUs, and sweep all sizes in both directions."""
    ends = {host.name: with_container(host, case.families) for host in pair}
    for host, other in (pair, pair[::-1]):
        status = overlay.wait_status(
            host, lambda status: len(status.path_mtus) == len(case.families), "knows the MTU of each path"
        )
        for path, source, target in zip(
            status.path_mtus, ends[host.name][1], ends[other.name][1], strict=True
        ):
            subnet, header = path.ipv6_subnet or path.subnet, 48 if path.ipv6_subnet else 28
            assert path.is_routed
            wait_until(
                lambda host=host, subnet=subnet, path=path: mtu_to(host, subnet) == path.measured,
                what=f"{host.name} has a route with the MTU of the path to {subnet}",
                deadline_s=SOON_S,
            )
            chosen = sizes(path.measured, path.planned, header)
            container = ends[host.name][0]
            whole = swept(container, source, target, chosen, has_df=False)
            single = swept(container, source, target, chosen, has_df=True)

            assert whole == {"lost": [], "refused": {}}, (case.name, host.name, path)
            assert single["lost"] == [], (case.name, host.name, path)
            assert sorted(single["refused"]) == [size for size in chosen if size > path.measured], path
            assert set(single["refused"].values()) == {path.measured}, path


def test_routes_carry_the_mtu_of_the_path_in_both_families(long_run: bool) -> None:
    """The router answers large packets to one host with an error, and silently drops large packets to the
    other host.

    Packets of the planned size are fragmented before the tunnel, or refused with the MTU of the path.
    """
    with joined(QUICK) as (overlay, pair):
        assert_no_black_hole(QUICK, overlay, pair, all_sizes if long_run else few_sizes)

        outer = HOP_MTU, HOP_MTU + VLAN
        for host, mtu in zip(pair, outer, strict=True):
            found = [(path.planned, path.measured) for path in overlay.status(host).path_mtus]
            assert found == [(1450, mtu - 50), (1430, mtu - 70)]
        host, subnet = pair[0], pair[1].lease()
        route = host.run(["ip", "route", "show", str(subnet)]).stdout.split(" mtu ")[0].split()
        host.run(["ip", "route", "replace", *route, "mtu", "1200"])
        wait_until(
            lambda: mtu_to(host, subnet) == HOP_MTU - 50,
            what="the measured MTU again, instead of the one that an operator set",
            deadline_s=SOON_S,
        )
        ran = pair[0].run(["flannelctl", "doctor", "--json"], check=False)
        findings = json.loads(ran.stdout)["findings"]
        assert [one["severity"] for one in findings if one["code"] == "path-mtu"] == ["info"]


def test_routes_carry_the_mtu_of_the_path_with_ipv6_alone(long_run: bool) -> None:
    with joined(QUICK_IPV6) as (overlay, pair):
        assert_no_black_hole(QUICK_IPV6, overlay, pair, all_sizes if long_run else few_sizes)

        for host, mtu in zip(pair, (HOP_MTU, HOP_MTU + VLAN), strict=True):
            found = [(path.planned, path.measured) for path in overlay.status(host).path_mtus]
            assert found == [(1430, mtu - 70)]
        ran = pair[0].run(["flannelctl", "doctor", "--json"], check=False)
        findings = json.loads(ran.stdout)["findings"]
        assert [(one["code"], one["severity"]) for one in findings] == [
            ("container-mtu", "warning"),  # the container sends packets of any size
            ("path-mtu", "info"),
        ]


@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_packets_of_no_size_are_lost_with_any_backend(case: Case, long_run: bool) -> None:
    if not long_run:
        pytest.skip("needs --long")
    with joined(case) as (overlay, pair):
        assert_no_black_hole(case, overlay, pair, all_sizes)
