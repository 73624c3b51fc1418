"""The WireGuard key is followed while it is needed, and rotated in an order that loses no packet."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from doubles.fake_clock import FakeClock
from pyflannel.engine.wireguard_keys import STEP_S, TROUBLED_LOOK_S, WireguardKeys
from pyflannel.errors import NotReadyError, TargetError
from pyflannel.model.wireguard import WireguardFacts

OLD = WireguardFacts(key="old", published="old")
Answer = TypeVar("Answer")


class KeyFile:
    """A key file in memory; `problem` makes it unusable."""

    def __init__(self) -> None:
        self.problem = ""
        self.current, self.prepared = "old", ""

    async def observe(self) -> WireguardFacts:
        if self.problem:
            raise TargetError(self.problem, hint="Repair it.")
        return WireguardFacts(key=self.current, published=self.current)

    async def prepare(self) -> str:
        self.prepared = "new"
        return self.prepared

    async def promote(self) -> None:
        self.current, self.prepared = self.prepared, ""

    async def discard(self) -> None:
        self.prepared = ""


class Bench:
    """A follower with its key file, and the facts that it reported."""

    def __init__(self) -> None:
        self.clock, self.file = FakeClock(), KeyFile()
        self.found: list[WireguardFacts] = []
        self.keys = WireguardKeys(self.file, self.clock, self._note)

    def _note(self, facts: WireguardFacts) -> None:
        self.found.append(facts)
        self.keys.note_progress()

    def run(self, work: Callable[[], Awaitable[Answer]]) -> Answer:
        async def following() -> Answer:
            async with self.clock.running(self.keys.run()):
                self.keys.is_wanted.set()
                await self.clock.settle()
                return await work()

        return asyncio.run(following())

    async def rotate(self, *, switches: bool = True, publishes: bool = True) -> str:
        """Rotate the key. `switches` and `publishes` are True if the device and the lease of the host get the
        new key.
        """
        return await self.keys.rotate(
            lambda: switches and self.found[-1].key == "new",
            lambda key: publishes and self.found[-1].published == key,
        )


def test_a_rotation_changes_the_device_first_and_the_lease_second() -> None:
    bench = Bench()

    new = bench.run(bench.rotate)

    assert new == bench.file.current == "new"
    assert bench.found == [
        OLD,
        WireguardFacts(key="new", published="old"),
        WireguardFacts(key="new", published="new"),
    ]


@pytest.mark.parametrize(
    ("switches", "publishes", "failure"),
    [(False, True, "the device did not take"), (True, False, "the store did not take")],
)
def test_a_step_that_takes_too_long_keeps_the_old_key(switches: bool, publishes: bool, failure: str) -> None:
    bench = Bench()

    async def rotate() -> None:
        rotating = asyncio.ensure_future(bench.rotate(switches=switches, publishes=publishes))
        await bench.clock.settle()
        await bench.clock.advance(STEP_S + 1)
        with pytest.raises(NotReadyError, match=failure):
            await rotating

    bench.run(rotate)

    assert bench.found[-1] == OLD
    assert (bench.file.current, bench.file.prepared) == ("old", "")


def test_a_rotation_that_is_cancelled_keeps_the_old_key() -> None:
    bench = Bench()

    async def rotate() -> None:
        rotating = asyncio.ensure_future(bench.rotate(publishes=False))
        await bench.clock.settle()
        rotating.cancel()
        await asyncio.wait([rotating])

    bench.run(rotate)

    assert bench.found[-1] == OLD
    assert (bench.file.current, bench.file.prepared) == ("old", "")


def test_without_wireguard_there_is_no_key_to_rotate() -> None:
    bench = Bench()

    with pytest.raises(NotReadyError, match="no WireGuard key in use"):
        asyncio.run(bench.rotate())


def test_an_unusable_key_file_is_reported_and_read_again_until_it_is_repaired() -> None:
    bench = Bench()

    async def spoil_and_repair() -> None:
        bench.file.problem = "the WireGuard key file is unusable"
        await bench.clock.advance(10)
        assert bench.found[-1].problem.startswith("the WireGuard key file is unusable")
        assert bench.found[-1].key == "old"
        assert not bench.keys.is_usable.is_set()
        bench.file.problem = ""
        await bench.clock.advance(TROUBLED_LOOK_S)

    bench.run(spoil_and_repair)

    assert bench.found[-1] == OLD
    assert bench.keys.is_usable.is_set()
