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
        self.readers = 0

    async def observe(self) -> tuple[Bridge, ...]:
        if self.bridges is None:
            raise TargetError("the kernel does not answer", hint="Look at dmesg.")
        return self.bridges

    def changes(self) -> ChangeChannel:
        return ChangeChannel(self.read_changes)

    async def read_changes(self, announce: Announce) -> None:
        self.readers += 1
        try:
            while True:
                await self.changed.wait()
                self.changed.clear()
                announce()
        finally:
            self.readers -= 1


def test_each_changed_state_of_bridges_is_reported_while_it_is_needed() -> None:
    async def check() -> None:
        source, clock = Source(), FakeClock()
        told: list[tuple[Bridge, ...]] = []
        follower = BridgeFollower(source=source, clock=clock, found=told.append)
        task = asyncio.ensure_future(follower.run())
        await clock.settle()
        assert told == []

        follower.want(True)
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


def test_changes_are_read_only_while_bridges_are_needed() -> None:
    """In a vxlan network, the kernel also announces the neighbour and the FDB entry of each peer."""

    async def check() -> None:
        source, clock = Source(), FakeClock()
        follower = BridgeFollower(source=source, clock=clock, found=lambda _: None)
        task = asyncio.ensure_future(follower.run())
        readers = []
        for is_wanted in (False, True, True, False, True):
            follower.want(is_wanted)
            await clock.settle()
            readers.append(source.readers)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

        assert readers == [0, 1, 1, 0, 1]
        assert source.readers == 0

    asyncio.run(check())
