"""The network namespaces of other processes, as /proc shows them."""

import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.plan.doctor.observed import ContainerNamespace
from pyflannel.processes.found import find_containers


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


def test_addresses_and_routes_of_a_container(namespace, sleeper: int) -> None:
    """Two links may have the same address. A route of type unreachable has no link."""
    namespace.ip("link add eth0 type veth peer name eth1")
    for link in ("eth0", "eth1"):
        namespace.ip(f"address add 10.5.7.2/24 dev {link}")
        namespace.ip(f"link set {link} up")
    namespace.ip("route add default via 10.5.7.1")
    namespace.ip("route add unreachable 10.9.0.0/16")

    container = container_of(sleeper)

    assert container.addresses == {IPv4Address("127.0.0.1"), IPv4Address("10.5.7.2")}
    assert set(container.routes) == {IPv4Network("0.0.0.0/0"), IPv4Network("10.5.7.0/24")}
