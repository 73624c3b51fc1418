"""Bridges of Docker's networks and the links of containers on the real kernel."""

import socket
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import TypeVar

import pytest

from pyflannel.errors import TargetError
from pyflannel.kernel.network.container_links import KernelContainerLinks
from pyflannel.model.docker import DockerEndpoint, PublishedPort
from pyflannel.model.link import Address, Link
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, Route
from pyflannel.model.state import State

Result = TypeVar("Result")

SUBNET = IPv4Network("10.100.15.64/27")
GATEWAY = IPv4Interface("10.100.15.65/27")
BRIDGE = Link(name="flbr-4444444444", kind="bridge", mtu=1472, queue_length=1000, mac="02:42:0a:64:0f:41")
PLAN = State.of(
    BRIDGE,
    Address(link=BRIDGE.name, address=GATEWAY),
    Route(
        destination=SUBNET,
        link=BRIDGE.name,
        source=GATEWAY.ip,
        protocol=PROTOCOL_KERNEL,
        scope=SCOPE_LINK,
    ),
)
ENDPOINT = DockerEndpoint(
    name="e" * 64, network="4" * 64, address=IPv4Interface("10.100.15.66/27"), mac="02:42:0a:64:0f:42"
)


def asked(namespace, work: Callable[[KernelContainerLinks], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with KernelContainerLinks() as links:
            return await work(links)

    return namespace.run(run)


@pytest.mark.parametrize(
    "damage",
    [
        "link delete flbr-4444444444",
        "link set flbr-4444444444 down",
        "link set flbr-4444444444 mtu 1400",
        "link set flbr-4444444444 address 02:00:00:00:00:01",
        "address flush dev flbr-4444444444",
        "route delete 10.100.15.64/27",
    ],
)
def test_a_damaged_bridge_is_repaired(namespace, target, damage: str) -> None:
    assert target.heal(PLAN) == []
    namespace.ip(damage)

    assert target.heal(PLAN) == []

    assert target.snapshot(PLAN) == PLAN


def test_a_container_is_connected_and_disconnected(namespace, target) -> None:
    target.heal(PLAN)

    asked(namespace, lambda links: links.connect(ENDPOINT, BRIDGE.name, 1472))
    asked(namespace, lambda links: links.connect(ENDPOINT, BRIDGE.name, 1472))

    shown = namespace.ip("-details link show flveeeeeeeeeeee")
    assert f"master {BRIDGE.name}" in shown
    assert " mtu 1472 " in shown
    assert " hairpin on " in shown
    assert target.snapshot(PLAN) == PLAN
    asked(namespace, lambda links: links.disconnect(ENDPOINT))
    asked(namespace, lambda links: links.disconnect(ENDPOINT))
    assert "eeeeeeeeeeee" not in namespace.ip("link")


def test_a_container_without_a_bridge_leaves_no_link(namespace) -> None:
    with pytest.raises(TargetError):
        asked(namespace, lambda links: links.connect(ENDPOINT, BRIDGE.name, 1472))

    assert "eeeeeeeeeeee" not in namespace.ip("link")


def test_a_container_is_attached_to_the_new_bridge(namespace, target) -> None:
    target.heal(PLAN)
    asked(namespace, lambda links: links.connect(ENDPOINT, BRIDGE.name, 1472))
    namespace.ip(f"link delete {BRIDGE.name}")
    target.heal(PLAN)
    wanted = {ENDPOINT.link: BRIDGE.name, "flvabsent": BRIDGE.name}

    changed = [asked(namespace, lambda links: links.attach(wanted)) for _ in range(2)]

    assert changed == [[ENDPOINT.link], []]


def test_routes_with_scope_link_are_found(namespace, target) -> None:
    target.heal(PLAN)
    namespace.ip(f"route add 10.100.0.0/16 dev {BRIDGE.name} scope global")

    assert asked(namespace, lambda links: links.on_link()) == {SUBNET: BRIDGE.name}
    assert asked(namespace, lambda links: links.has_bridge(BRIDGE.name))
    assert not asked(namespace, lambda links: links.has_bridge("docker0"))


def test_a_port_of_another_program_is_found(namespace) -> None:
    namespace.ip("link set lo up")

    async def in_use() -> tuple[bool, bool]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = PublishedPort(
                protocol="tcp",
                host_port=server.getsockname()[1],
                address=IPv4Address("10.100.15.66"),
                port=80,
            )
            during = KernelContainerLinks().port_in_use(port)
        return during, KernelContainerLinks().port_in_use(port)

    assert namespace.run(in_use) == (True, False)
