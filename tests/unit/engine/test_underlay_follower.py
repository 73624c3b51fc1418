"""The follower of the underlay announces its addresses if they move to another interface or MAC address."""

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from doubles.fake_kernel import announcing
from pyflannel.engine.host_followers import UnderlayFollower
from pyflannel.errors import TargetError
from pyflannel.model.host import DefaultRoute, Interface, InterfaceAddress, Interfaces, RouteScope, Underlay
from pyflannel.model.network_config import IpAddress
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports import ChangeChannel

ETH0 = Interface(
    name="eth0",
    index=2,
    mtu=1500,
    mac="0e:00:00:00:00:01",
    addresses=tuple(
        InterfaceAddress(address=one) for one in (IPv4Interface("10.0.0.1/24"), IPv6Interface("fd07::1/64"))
    ),
)


class Link:
    """An InterfaceSource with one interface. The source records the announcements."""

    def __init__(self) -> None:
        self.interface = ETH0
        self.announced: list[str] = []
        self.refuses = False
        self.changed = asyncio.Event()

    async def observe(self, scope: RouteScope) -> Interfaces:
        return Interfaces(interfaces=(self.interface,), default_routes=(DefaultRoute(link="eth0"),))

    async def route_to(self, address: IPv4Address) -> None:
        return None

    async def announce(self, interface: Interface, addresses: Iterable[IpAddress]) -> None:
        if self.refuses:
            raise TargetError("no permission", hint="Run as root.")
        self.announced.append(f"{' '.join(map(str, addresses))} at {interface.mac}")

    def changes(self) -> ChangeChannel:
        return announcing(self.changed)


class Ipv6Link(Link):
    """An InterfaceSource with IPv6 alone."""

    async def observe(self, scope: RouteScope) -> Interfaces:
        found = replace(ETH0, addresses=ETH0.addresses[1:])
        routes = (DefaultRoute(link="eth0"),) if any(one.version == 6 for one in scope.networks) else ()
        return Interfaces(interfaces=(found,), ipv6_default_routes=routes)


def follower_of(source: Link, clock: FakeClock, found: list[Underlay]) -> UnderlayFollower:
    return UnderlayFollower(
        source=source,
        wanted=UnderlayOptions(),
        clock=clock,
        found=found.append,
        surrounded=lambda _: None,
        waiting=lambda: None,
    )


def test_the_interface_of_ipv6_alone_is_found_when_the_network_is_known() -> None:
    found = list[Underlay]()
    clock = FakeClock()
    follower = follower_of(Ipv6Link(), clock, found)

    async def life() -> None:
        async with clock.running(follower.run()):
            await follower.has_looked.wait()
            assert follower.waiting_for == "an interface to use: no default route"
            follower.ask_about([IPv6Network("fd00:5::/48")])
            await clock.advance(1.0)

    asyncio.run(life())

    assert [one.address for one in found] == [IPv6Address("fd07::1")]
    assert follower.waiting_for is None


def test_an_address_is_announced_three_times_at_each_of_its_places() -> None:
    link, clock, found = Link(), FakeClock(), list[Underlay]()
    follower = follower_of(link, clock, found)

    async def life() -> None:
        async with clock.running(follower.run()):
            await clock.advance(60.0)
            follower.ask_about([IPv4Network("10.100.0.0/16")])
            await clock.advance(60.0)
            link.interface = replace(ETH0, index=3, mac="0e:00:00:00:00:02")
            link.changed.set()
            await clock.advance(60.0)
            link.refuses = True
            link.interface = replace(ETH0, index=4)
            link.changed.set()
            await clock.advance(60.0)

    asyncio.run(life())

    assert link.announced == ["10.0.0.1 at 0e:00:00:00:00:01"] * 3 + ["10.0.0.1 at 0e:00:00:00:00:02"] * 3
    assert len(found) == 1
