"""Thousands of routes on the real kernel use next hop objects, which are removed with the routes."""

import re
from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.kernel.network.requests import WORTH_IT, next_hop_number
from pyflannel.model.link import Link, Vxlan
from pyflannel.model.route import Route
from pyflannel.model.state import Add, Remove, Replace, State

DEVICE = Link(
    name="flannel.1",
    kind="vxlan",
    mtu=1400,
    mac="0e:11:22:33:44:55",
    vxlan=Vxlan(vni=1, port=8472, parent="", local=None),
)
ROUTES = [
    Route(
        destination=IPv4Network((0x0A640000 + (number << 8), 24)),
        link="flannel.1",
        gateway=IPv4Address("10.100.0.0") + (number << 8),
        is_onlink=True,
    )
    for number in range(WORTH_IT)
]
MANY = State.of(DEVICE, *ROUTES)


def next_hops(namespace) -> int:
    return len(namespace.ip("nexthop list").splitlines())


def test_thousands_of_routes_have_next_hops_and_are_read_as_planned(namespace, target) -> None:
    assert target.heal(MANY) == []

    assert next_hops(namespace) == WORTH_IT
    assert target.snapshot(MANY) == MANY
    shown = namespace.ip("route show 10.100.1.0/24").strip()
    assert re.fullmatch(
        r"10\.100\.1\.0/24 nhid \d+ via 10\.100\.1\.0 dev flannel\.1 proto 80 onlink ?", shown
    )


@pytest.mark.parametrize("setting", ["1", "0"], ids=["one less", "a kernel that hides gateways"])
def test_fewer_routes_contain_their_gateways(namespace, target, setting: str) -> None:
    namespace.command("sysctl", "-q", "-w", f"net.ipv4.nexthop_compat_mode={setting}")
    plan = State.of(DEVICE, *ROUTES[int(setting) :])

    assert target.heal(plan) == []

    assert next_hops(namespace) == 0
    assert target.snapshot(plan) == plan
    shown = namespace.ip("route show 10.100.1.0/24").strip()
    assert shown == "10.100.1.0/24 via 10.100.1.0 dev flannel.1 proto 80 onlink"


def test_a_link_without_carrier_gets_its_routes(namespace, target) -> None:
    device = Link(name="flannel0", kind="tun", mtu=1472)
    plan = State.of(device, *(replace(route, link="flannel0") for route in ROUTES))

    assert target.heal(plan) == []

    assert next_hops(namespace) == 0
    assert target.snapshot(plan) == plan


def test_next_hops_are_removed_with_their_routes(namespace, target) -> None:
    target.heal(MANY)

    assert target.apply(*(Remove(route) for route in ROUTES[1:])) == []

    assert next_hops(namespace) == 1
    assert target.snapshot(MANY) == State.of(DEVICE, ROUTES[0])
    assert target.apply(Remove(ROUTES[0])) == []
    assert next_hops(namespace) == 0
    assert namespace.ip("route show proto 80") == ""


def test_next_hops_are_removed_with_their_device(namespace, target) -> None:
    target.heal(MANY)

    assert target.heal(State.EMPTY) == []

    assert next_hops(namespace) == 0


def test_one_of_many_routes_can_be_changed_and_removed(namespace, target) -> None:
    moved = replace(ROUTES[1], gateway=IPv4Address("10.100.77.0"))
    plan = State.of(DEVICE, moved, *ROUTES[:1], *ROUTES[2:])
    target.heal(MANY)
    namespace.ip("route replace 10.100.2.0/24 via 10.100.99.0 dev flannel.1 onlink")
    namespace.ip("route delete 10.100.3.0/24")
    namespace.ip("route prepend 10.100.4.0/24 via 10.100.99.0 dev flannel.1 onlink")

    assert target.apply(Replace(ROUTES[1], moved)) == []
    assert target.heal(plan) == []

    assert target.snapshot(plan) == plan
    assert "via 10.100.4.0 " in namespace.ip("route get 10.100.4.1")
    assert target.apply(*(Remove(item) for item in plan if isinstance(item, Route))) == []
    assert next_hops(namespace) == 0
    assert namespace.ip("route show dev flannel.1 proto 80") == ""


def test_the_removal_of_next_hops_by_another_program_is_announced(namespace, listen) -> None:
    """The kernel does not announce the removal of the routes that use the removed next hops."""

    async def work() -> None:
        async with LinuxTarget() as linux:
            assert await linux.apply([Add(item) for item in MANY]) == []
            async with listen(linux.changes()) as wakes:
                assert await linux.snapshot(MANY) == MANY
                await wakes.silence()
                namespace.ip(f"nexthop delete id {next_hop_number(ROUTES[5])}")
                await wakes.next()
                assert ROUTES[5] not in await linux.snapshot(MANY)

    namespace.run(work)
