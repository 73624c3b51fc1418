"""One host of one network, with doubles of store, kernel and clock."""

import asyncio
from collections.abc import Iterable
from ipaddress import IPv4Interface

from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from doubles.fake_kernel import FakeKernel, announcing
from doubles.fake_store import FakeStore
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.supervisor import Supervisor
from pyflannel.engine.world import HostOptions, PlanOptions, World
from pyflannel.model.host import Bridge, DefaultRoute, Interface, InterfaceAddress, Interfaces, RouteScope
from pyflannel.model.lease import Identity
from pyflannel.model.network_config import IpAddress
from pyflannel.model.route import Route
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports import ChangeChannel

HELD = IPv4Interface("192.168.50.101/24")
"""The address of the host."""


class OneInterface:
    """One interface that carries the tunnel, no bridge, and an empty memory."""

    def __init__(self) -> None:
        eth0 = Interface(
            name="eth0",
            index=2,
            mtu=1500,
            addresses=(InterfaceAddress(address=HELD),),
            on_link=(HELD.network,),
        )
        self._interfaces = Interfaces(
            interfaces=(eth0,), default_routes=(DefaultRoute(link="eth0", gateway=HELD.network[1]),)
        )
        self._changed = asyncio.Event()

    def route(self, *routes: Route) -> None:
        """Set the routes of other programs."""
        self._interfaces = replace(self._interfaces, routes=routes)
        self._changed.set()

    async def observe(self, scope: RouteScope) -> Interfaces:
        return self._interfaces

    async def route_to(self, address: object) -> None:
        return None

    async def announce(self, interface: Interface, addresses: Iterable[IpAddress]) -> None:
        """Announce nothing: there is no link."""

    def changes(self) -> ChangeChannel:
        return announcing(self._changed)

    async def load(self) -> bytes | None:
        return None

    async def save(self, parts: Iterable[bytes]) -> bool:
        """Discard the content."""
        return True


class NoBridges:
    """A host without bridges."""

    async def observe(self) -> tuple[Bridge, ...]:
        return ()

    def changes(self) -> ChangeChannel:
        return announcing(asyncio.Event())


class HostBench:
    """A host and its surroundings. Nothing runs before `supervisor.run`.

    Attributes:
        notified: the notifications of the service manager.
    """

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.kernel = FakeKernel()
        self.notified: list[str] = []
        self.interfaces = OneInterface()
        self.supervisor = Supervisor(
            World(
                store=self.store,
                store_log=StoreLog(self.clock),
                targets=(self.kernel,),
                interfaces=self.interfaces,
                bridges=NoBridges(),
                clock=self.clock,
                memory=self.interfaces,
                notify=self.notified.append,
                draw=lambda n: n // 2,
                reidentify=lambda: Identity(owner="again", machine="m"),
            ),
            HostOptions(
                identity=Identity(owner="me", machine="m"),
                underlay=UnderlayOptions(),
                plan=PlanOptions(subnet_file="/run/flannel/subnet.env"),
                fast_path="off",
            ),
        )
