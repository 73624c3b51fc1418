"""A Clock whose time changes only when a test advances it."""

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest

_SETTLE_TURNS = 100
"""Turns of the event loop for tasks after each wake-up: more than any chain of waits in the engine."""


_Timer = tuple[float, int, Callable[[], object]]
"""The time, a number that preserves the order of equal times, and the function to call."""


class FakeClock:
    """Manual time: sleepers wake in the order of their times when `advance` passes them."""

    def __init__(self, *, now: float = 1000.0, utc: float = 1_700_000_000.0) -> None:
        self._now = now
        self._utc_offset = utc - now
        self._timers: list[_Timer] = []
        self._serial = itertools.count()

    @asynccontextmanager
    async def running(self, endless: Coroutine[object, object, object]) -> AsyncIterator[None]:
        """Run a coroutine that must not end by itself. The block begins when the coroutine waits."""
        task = asyncio.ensure_future(endless)
        try:
            await self.settle()
            yield
        finally:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    def now(self) -> float:
        """Return seconds, which only `advance` changes."""
        return self._now

    def utc(self) -> float:
        """Return seconds since the epoch, which `advance` and `step_utc` change."""
        return self._now + self._utc_offset

    async def sleep(self, seconds: float) -> None:
        """Wait until `advance` has passed `seconds` from now. With zero or less, other tasks run once."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        timer = self.call_at(self._now + seconds, woken.set)
        try:
            await woken.wait()
        finally:
            if timer in self._timers:  # the sleeper was cancelled
                self._timers.remove(timer)
                heapq.heapify(self._timers)

    def call_at(self, when: float, act: Callable[[], object]) -> _Timer:
        """Call `act` at the time `when`, before any sleeper of a later time wakes; return the timer."""
        timer = when, next(self._serial), act
        heapq.heappush(self._timers, timer)
        return timer

    def step_utc(self, seconds: float) -> None:
        """Step the wall clock, as an operator or NTP may do."""
        self._utc_offset += seconds

    async def advance(self, seconds: float) -> None:
        """Advance the time.

        Each sleeper wakes at its own time, and its task runs before the time advances further.
        """
        target = self._now + seconds
        await self.settle()
        while self._timers and self._timers[0][0] <= target:
            when, _, act = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            act()
            await self.settle()
        self._now = target
        await self.settle()

    async def settle(self) -> None:
        """Let every task run until it waits, except for tasks that wait for threads or sockets."""
        for _ in range(_SETTLE_TURNS):
            await asyncio.sleep(0)
