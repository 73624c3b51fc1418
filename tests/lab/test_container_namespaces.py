"""The network namespaces of other processes, as /proc shows them."""

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from pyflannel.plan.doctor.observed import ContainerNamespace, ContainerRoute
from pyflannel.processes.containers import find_containers


@pytest.fixture
def sleeper(namespace) -> Iterator[int]:
    """The process ID of a process in the namespace."""
    command = ["ip", "netns", "exec", namespace.name, "sh", "-c", "echo ready; exec sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def container_of(pid: int) -> ContainerNamespace:
    found = [container for container in find_containers() if container.pid == pid]
    assert len(found) == 1, "the namespace is not found"
    return found[0]


def test_addresses_and_routes_of_a_container_are_read(namespace, sleeper: int) -> None:
    """Two links may have the same address. A route of the types unreachable and blackhole has no link."""
    namespace.ip("link add eth0 type veth peer name eth1")
    for link in ("eth0", "eth1"):
        namespace.ip(f"address add 10.5.7.2/24 dev {link}")
        namespace.ip(f"link set {link} up")
    namespace.ip("route add default via 10.5.7.1")
    namespace.ip("route add unreachable 10.9.0.0/16")
    namespace.ip("route add blackhole 10.10.0.0/16")

    container = container_of(sleeper)

    assert {one for one in container.addresses if one.version == 4} == {
        IPv4Address("127.0.0.1"),
        IPv4Address("10.5.7.2"),
    }
    assert {one for one in container.routes if one.destination.version == 4} == {
        ContainerRoute(destination=IPv4Network("0.0.0.0/0"), gateway=IPv4Address("10.5.7.1")),
        ContainerRoute(destination=IPv4Network("10.5.7.0/24")),
        ContainerRoute(destination=IPv4Network("10.9.0.0/16"), is_refused=True),
        ContainerRoute(destination=IPv4Network("10.10.0.0/16"), is_refused=True),
    }
    assert not container.has_route_to(IPv4Address("10.10.0.7"))


def test_ipv6_addresses_and_routes_of_a_container_are_read(namespace, sleeper: int) -> None:
    """The kernel adds link-local addresses and routes. A route of type unreachable has no link."""
    namespace.ip("link set lo up")
    namespace.ip("link add eth0 type veth peer name eth1")
    namespace.ip("address add fd00:5:0:7::2/64 dev eth0 nodad")
    for link in ("eth0", "eth1"):
        namespace.ip(f"link set {link} up")
    namespace.ip("route add default via fd00:5:0:7::1")
    namespace.ip("route add unreachable fd00:9::/32")

    container = container_of(sleeper)

    own = {one for one in container.addresses if one.version == 6 and not one.is_link_local}
    routes = {
        one.destination for one in container.routes if not one.is_refused and one.destination.version == 6
    }
    assert own == {IPv6Address("::1"), IPv6Address("fd00:5:0:7::2")}
    assert {one for one in routes if not one.is_link_local and not one.is_multicast} - {
        IPv6Network("::1/128")
    } == {IPv6Network("::/0"), IPv6Network("fd00:5:0:7::/64")}
    assert container.has_route_to(IPv6Address("fd00:5:0:2::1"))
