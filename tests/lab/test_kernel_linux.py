"""The kernel adapter on the real kernel: what a plan asks for is there, as the user sees it, and stays."""

import asyncio
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from pyflannel.kernel.linux import LinuxTarget
from pyflannel.model.address import Address
from pyflannel.model.link import Link
from pyflannel.model.operation import Add, Refusal, Remove, Replace
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, Route
from pyflannel.model.state import Item, State
from pyflannel.plan.diff import diff
from pyflannel.plan.order import order
from pyflannel.plan.ownership import ours

LINK = Link(name="flannel0", kind="tun", mtu=1472)
ADDRESS = Address(link="flannel0", address=IPv4Interface("10.100.15.0/16"))
NETWORK_ROUTE = Route(
    destination=IPv4Network("10.100.0.0/16"),
    link="flannel0",
    source=IPv4Address("10.100.15.0"),
    protocol=PROTOCOL_KERNEL,
    scope=SCOPE_LINK,
)
SEED = State.of(LINK, ADDRESS, NETWORK_ROUTE)


@pytest.fixture
def target(namespace):
    return Driver(namespace)


class Driver:
    """Passes of a LinuxTarget in a namespace, without an engine."""

    def __init__(self, namespace):
        self.namespace = namespace

    def snapshot(self, desired: State) -> State:
        async def look() -> State:
            target = LinuxTarget()
            try:
                return await target.snapshot(desired)
            finally:
                target.close()

        return self.namespace.run(look)

    def heal(self, desired: State) -> list[Refusal]:
        async def make_pass() -> list[Refusal]:
            target = LinuxTarget()
            try:
                actual = ours(await target.snapshot(desired), desired)
                return list(await target.apply(order(diff(desired, actual))))
            finally:
                target.close()

        return self.namespace.run(make_pass)

    def apply(self, *operations) -> list[Refusal]:
        async def perform() -> list[Refusal]:
            target = LinuxTarget()
            try:
                return list(await target.apply(operations))
            finally:
                target.close()

        return self.namespace.run(perform)


def test_the_device_looks_as_the_book_shows_it(namespace, target):
    refused = target.heal(SEED)

    assert refused == []
    shown = namespace.ip("address show flannel0")
    assert "<NO-CARRIER,POINTOPOINT,MULTICAST,NOARP,UP> mtu 1472" in shown
    assert "qlen 500" in shown
    assert "link/none" in shown
    assert "inet 10.100.15.0/16 scope global flannel0" in shown
    assert "brd" not in shown
    assert "inet6" not in shown
    assert "driver: tun" in namespace.command("ethtool", "-i", "flannel0")
    assert "alias pyflannel" in namespace.ip("link show flannel0")
    route = namespace.ip("route show 10.100.0.0/16").replace(" linkdown", "").strip()
    assert route == "10.100.0.0/16 dev flannel0 proto kernel scope link src 10.100.15.0"


def test_what_was_applied_is_read_back_as_planned(target):
    target.heal(SEED)

    assert target.snapshot(SEED) == SEED
