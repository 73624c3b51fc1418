"""What the log and the service manager hear of a store: one cause, one line."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from ipaddress import IPv4Interface

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_kernel import FakeKernel
from doubles.fake_store import FakeStore
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.planner import PlanOptions
from pyflannel.engine.supervisor import Supervisor
from pyflannel.engine.world import HostOptions, World
from pyflannel.model.host import Bridge, DefaultRoute, Interface, InterfaceAddress, Interfaces
from pyflannel.model.lease import Identity
from pyflannel.model.store_record import Put
from pyflannel.plan.underlay import UnderlayOptions
from pyflannel.ports import ChangeChannel


class Surroundings:
    """One interface that carries the tunnel, no bridge, and nothing remembered."""

    async def observe(self) -> Interfaces:
        held = IPv4Interface("192.168.50.101/24")
        eth0 = Interface(
            name="eth0",
            index=2,
            mtu=1500,
            addresses=(InterfaceAddress(address=held),),
            on_link=(held.network,),
        )
        return Interfaces(interfaces=(eth0,), default_routes=(DefaultRoute(link="eth0"),))

    async def route_to(self, address: object) -> None:
        return None

    def changes(self) -> ChangeChannel:
        return ChangeChannel(lambda announce: asyncio.Event().wait())

    async def load(self) -> bytes | None:
        return None

    async def save(self, parts: Iterable[bytes]) -> None:
        """Forget it."""


class NoBridges(Surroundings):
    async def observe(self) -> tuple[Bridge, ...]:  # type: ignore[override]
        return ()


class Bench:
    """One host that is ready, and its store."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.notified: list[str] = []
        surroundings = Surroundings()
        self.supervisor = Supervisor(
            World(
                store=self.store,
                store_log=StoreLog(self.clock),
                targets=(FakeKernel(),),
                interfaces=surroundings,
                bridges=NoBridges(),
                clock=self.clock,
                memory=surroundings,
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


def lived(check: Callable[[Bench], Awaitable[None]], caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the log says of the store while a host that is ready lives through this."""

    async def live() -> None:
        bench = Bench()
        bench.store.change(Put(key="config", value=b'{"Network":"10.100.0.0/16"}', ttl_s=None, expected=0))
        running = asyncio.ensure_future(bench.supervisor.run())
        try:
            await bench.clock.advance(20)
            assert bench.supervisor.waiting_for is None
            caplog.clear()
            await check(bench)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    with caplog.at_level(logging.INFO):
        asyncio.run(live())
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_an_absence_of_the_store_is_one_line_and_its_return_another(caplog: pytest.LogCaptureFixture) -> None:
    """Although config and leases are watched each by itself."""

    async def check(bench: Bench) -> None:
        bench.store.is_away = True
        await bench.clock.advance(30)
        bench.store.is_away = False
        await bench.clock.advance(60)
        assert bench.supervisor.waiting_for is None

    away, back = lived(check, caplog)

    assert away.startswith("WARNING Store is away, trying again")
    assert back.startswith("INFO Store is back")


def test_a_link_that_loses_packets_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Watches that end each second, and open again: the store counts as back when they stay open."""

    async def check(bench: Bench) -> None:
        for _ in range(45):
            bench.store.cut_watches()
            await bench.clock.advance(1)
        await bench.clock.advance(60)

    assert len(lived(check, caplog)) <= 4


def test_a_config_cannot_assign_anything_in_a_notification() -> None:
    """A line feed would begin an assignment of its own: MAINPID=1, READY=1."""

    async def live() -> list[str]:
        bench = Bench()
        config = json.dumps({"Network": "10.100.0.0/16", "Backend": {"Type": "x\nMAINPID=1\nREADY=1"}})
        bench.store.change(Put(key="config", value=config.encode(), ttl_s=None, expected=0))
        running = asyncio.ensure_future(bench.supervisor.run())
        try:
            await bench.clock.advance(20)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return bench.notified

    notified = asyncio.run(live())

    assert any("mainpid=1" in text for text in notified)
    assert [text for text in notified if "\n" in text] == []
