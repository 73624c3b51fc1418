"""Router advertisements from containers and from peers do not change the addresses and routes of the host."""

import sys
import time
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

import pytest

from pyflannel.model.link import Link, Vxlan
from pyflannel.model.state import State

SOON_S = 10.0

_ADVERTISE = """
import socket, sys
link = sys.argv[1]
prefix = socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
option = bytes([3, 4, 64, 0xc0]) + (3600).to_bytes(4, "big") * 2 + bytes(4) + prefix
message = bytes([134, 0, 0, 0, 64, 0]) + (1800).to_bytes(2, "big") + bytes(8) + option
with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as sender:
    sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
    for _ in range(3):
        sender.sendto(message, ("ff02::1", 0, 0, socket.if_nametoindex(link)))
"""
"""Sends a default route and a prefix for addresses. Source: RFC 4861, sections 4.2 and 4.6.2."""


def setting(namespace: Any, name: str, value: int) -> None:
    namespace.command("sysctl", "-q", "-w", f"net/ipv6/conf/{name}={value}")


def received(host: Any, link: str) -> int:
    """Return the number of router advertisements that arrived at a link."""
    shown = host.command("cat", f"/proc/net/dev_snmp6/{link}")
    return sum(
        int(line.split()[1]) for line in shown.splitlines() if line.startswith("Icmp6InRouterAdvertisements")
    )


def network(host: Any) -> str:
    """Return the addresses and routes of a host."""
    return host.ip("-6 -o address show scope global") + host.ip("-6 route show default")


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def advertise(container: Any, host: Any, link: str) -> None:
    """Send advertisements from a container, and return when the host has handled them."""
    before = received(host, link)
    container.command(sys.executable, "-c", _ADVERTISE, "eth0")
    until(lambda: received(host, link) >= before + 3, f"advertisements at {link}")


def plug_in(container: Any, host: Any, *words: str) -> None:
    """Connect eth0 of a container to the host, by a veth pair with the end `port`."""
    setting(container, "default/accept_dad", 0)
    host.ip(f"link add port type veth peer name eth0 netns {container.name}")
    container.ip("link set eth0 up")
    host.ip(" ".join(("link set port", *words, "up")))
    container.settle(eth0="UP")
    until(lambda: "fe80::" in container.ip("-6 address show dev eth0"), "a link-local address")


def test_a_host_that_forwards_ignores_router_advertisements_at_a_bridge_of_another_program(
    namespace: Any, make_namespace: Callable[[], Any]
) -> None:
    """Docker and the CNI plugins leave accept_ra of docker0 and cni0 at 1."""
    container = make_namespace()
    setting(namespace, "all/forwarding", 1)
    namespace.ip("link add docker0 type bridge")
    namespace.ip("link set docker0 up")
    plug_in(container, namespace, "master docker0")
    assert namespace.command("cat", "/proc/sys/net/ipv6/conf/docker0/accept_ra") == "1\n"
    before = network(namespace)

    advertise(container, namespace, "docker0")

    assert network(namespace) == before
    setting(namespace, "all/forwarding", 0)
    advertise(container, namespace, "docker0")
    until(lambda: "default via fe80::" in network(namespace), "a host that does not forward takes the route")


BRIDGE = Link(name="flannel-br", kind="bridge", mtu=1450, has_ipv6=True, mac="0e:00:00:00:00:02")
VXLAN = Link(
    name="flannel-v6.1",
    kind="vxlan",
    mtu=1430,
    queue_length=0,
    has_ipv6=True,
    mac="0e:00:00:00:00:01",
    vxlan=Vxlan(vni=1, port=8472, parent="port", local=IPv6Address("fd07::1")),
)


@pytest.mark.parametrize("link", [BRIDGE, VXLAN], ids=["bridge", "vxlan"])
def test_links_of_flanneld_ignore_router_advertisements_on_each_host(
    namespace: Any, target: Any, make_namespace: Callable[[], Any], link: Link
) -> None:
    """The links ignore router advertisements also on a host that does not forward packets."""
    container = make_namespace()
    if link is BRIDGE:
        assert target.heal(State.of(link)) == []
        plug_in(container, namespace, f"master {link.name}")
    else:
        peer = make_namespace()
        plug_in(peer, namespace)
        namespace.ip("address add fd07::1/64 dev port nodad")
        peer.ip("address add fd07::2/64 dev eth0 nodad")
        assert target.heal(State.of(link)) == []
        setting(container, "default/accept_dad", 0)
        peer.ip("link add tunnel type vxlan id 1 dstport 8472 local fd07::2 remote fd07::1 dev eth0")
        peer.ip(f"link set tunnel netns {container.name} name eth0")
        container.ip("link set eth0 up")
        until(lambda: "fe80::" in container.ip("-6 address show dev eth0"), "a link-local address")
    before = network(namespace)

    advertise(container, namespace, link.name)

    assert network(namespace) == before
    setting(namespace, f"{link.name}/accept_ra", 1)
    advertise(container, namespace, link.name)
    until(lambda: f"dev {link.name}" in network(namespace), "a link with accept_ra 1 takes the route")
