"""The follower of bridges, on a source and a clock in memory."""

import asyncio
from contextlib import suppress
from ipaddress import IPv4Interface

from doubles.fake_clock import FakeClock
from pyflannel.engine.host_followers import BRIDGE_LOOK_S, BridgeFollower
from pyflannel.errors import TargetError
from pyflannel.model.host import Bridge
from pyflannel.ports import Announce, ChangeChannel

DOCKER0 = Bridge(name="docker0", addresses=(IPv4Interface("10.100.15.1/24"),))


class Source:
    def __init__(self) -> None:
        self.bridges: tuple[Bridge, ...] | None = (DOCKER0,)
        self.changed = asyncio.Event()

    async def observe(self) -> tuple[Bridge, ...]:
        if self.bridges is None:
            raise TargetError("the kernel does not answer", hint="Look at dmesg.")
        return self.bridges

    def changes(self) -> ChangeChannel:
        return ChangeChannel(self.read_changes)

    async def read_changes(self, announce: Announce) -> None:
        while True:
            await self.changed.wait()
            self.changed.clear()
            announce()


def test_each_different_state_is_reported_while_it_is_wanted() -> None:
    async def check() -> None:
        source, clock = Source(), FakeClock()
        told: list[tuple[Bridge, ...]] = []
        follower = BridgeFollower(source=source, clock=clock, found=told.append)
        task = asyncio.ensure_future(follower.run())
        await clock.settle()
        assert told == []

        follower.is_wanted.set()
        await clock.settle()
        assert told == [(DOCKER0,)]

        source.changed.set()
        await clock.settle()
        assert told == [(DOCKER0,)]

        source.bridges = ()
        source.changed.set()
        await clock.settle()
        assert told == [(DOCKER0,), ()]

        source.bridges = (DOCKER0,)
        await clock.advance(BRIDGE_LOOK_S)
        assert told[-1] == (DOCKER0,)

        source.bridges = None
        await clock.advance(BRIDGE_LOOK_S)
        assert told[-1] == ()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    asyncio.run(check())
