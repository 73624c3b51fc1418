"""Limits over time: turns of the event loop, pauses, and log lines."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import TypeVar

from pyflannel.ports import Clock

FIGHT_REPAIRS = 6
"""Number of repairs of one object within FIGHT_WINDOW_S seconds. If one object needs this many repairs,
another program undoes the repairs."""

FIGHT_WINDOW_S = 10.0

FIRST_PAUSE_S = 0.25

PAUSE_S = 1.0
"""The longest pause in seconds between cheap repairs. One repair per second costs little processor time."""

COSTS = 10
"""Ratio of the longest pause to the duration of the repair. Repairs then use at most a tenth of a core."""

LONGEST_PAUSE_S = 4.0
"""The longest pause in seconds. On a busy machine, even a cheap repair takes long, and the pause loses
packets."""

RETRY_MIN_S = 0.05
"""First pause in seconds before a failed attempt is repeated. The pause doubles each time. An event ends the
pause immediately."""


_Result = TypeVar("_Result")


async def within(clock: Clock, seconds: float, work: Awaitable[_Result]) -> _Result | None:
    """Return the result of the work; cancel it after `seconds` of the clock, and return None."""
    working, limit = asyncio.ensure_future(work), asyncio.ensure_future(clock.sleep(seconds))
    try:
        await asyncio.wait({working, limit}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        limit.cancel()
        await asyncio.gather(working, limit, return_exceptions=True)


async def pause(clock: Clock, seconds: float, *, until: asyncio.Event) -> None:
    """Return when the event is set, or after `seconds` of the clock at the latest."""
    await within(clock, seconds, until.wait())


READ_AT_ONCE = 10
"""Number of records that are read before other tasks run, which is about a tenth of a millisecond of work."""

_Found = TypeVar("_Found")
_Read = TypeVar("_Read")


async def one_by_one(read: Callable[[_Found], _Read], found: Iterable[_Found]) -> list[_Read]:
    """Return the result of `read` for each item. Other tasks can run after every few items."""
    results: list[_Read] = []
    for item in found:
        results.append(read(item))
        if len(results) % READ_AT_ONCE == 0:
            await asyncio.sleep(0)
    return results


def longest_pause_s(cost_s: float) -> float:
    """Return the longest pause before a batch that took `cost_s` seconds is repeated."""
    return min(max(PAUSE_S, COSTS * cost_s), LONGEST_PAUSE_S)


class Damping:
    """Counts the repairs of each object, and delays them if another program keeps undoing them.

    The pause between two repairs doubles, until the repairs use a tenth of a core. The pause is at most one
    second for one object, and never more than `LONGEST_PAUSE_S`. During the pause, the object remains
    damaged. The delays end when the object has not been changed for `FIGHT_WINDOW_S`.
    """

    def __init__(self) -> None:
        self._repairs: dict[Hashable, list[float]] = {}
        self._pauses: dict[Hashable, tuple[float, float]] = {}

    def repaired(self, key: Hashable, now: float, cost_s: float = 0.0) -> float | None:
        """Record a repair; return the pause in seconds that begins now, or None if no pause begins.

        `cost_s`: duration of the repair's batch.
        """
        times = [at for at in self._repairs.get(key, ()) if now - at < FIGHT_WINDOW_S]
        self._repairs[key] = [*times[-FIGHT_REPAIRS:], now]
        if len(times) + 1 < FIGHT_REPAIRS and key not in self._pauses:
            return None
        until, length = self._pauses.get(key, (now, FIRST_PAUSE_S / 2))
        if now - until > FIGHT_WINDOW_S:
            del self._pauses[key]
            return None
        length = min(2 * length, longest_pause_s(cost_s))
        self._pauses[key] = (now + length, length)
        return length

    def forget(self, now: float) -> None:
        """Forget the objects that have not been changed for `FIGHT_WINDOW_S`.

        Ten thousand objects may be repaired together.
        """
        self._repairs = {
            key: times for key, times in self._repairs.items() if now - times[-1] < FIGHT_WINDOW_S
        }
        self._pauses = {key: pause for key, pause in self._pauses.items() if now - pause[0] <= FIGHT_WINDOW_S}

    @property
    def remembered(self) -> int:
        """Number of objects whose repairs are counted."""
        return len(self._repairs.keys() | self._pauses.keys())

    @property
    def has_pauses(self) -> bool:
        """True if another program repeatedly undoes, or recently undid, a repair."""
        return bool(self._pauses)

    def waits_until(self, key: Hashable, now: float) -> float | None:
        """Return the time until which the repair of this object is delayed, or None if it is due now."""
        until, _ = self._pauses.get(key, (0.0, 0.0))
        return until if until > now else None


LINES_A_MINUTE = 60
"""Maximum number of log lines of one kind that a client of the store can cause per minute."""


class LogLimit:
    """Logs a limited number of lines of one kind per minute, and then the number of the omitted lines."""

    def __init__(
        self, log: logging.Logger, clock: Clock, kind: str, lines_a_minute: int = LINES_A_MINUTE
    ) -> None:
        self._most = lines_a_minute
        self._log = log
        self._clock = clock
        self._kind = kind
        self._until = -math.inf
        self._lines = 0

    def line(self, level: int, text: str, *values: object) -> None:
        """Log a line, or only count it if the limit is reached."""
        now = self._clock.now()
        if now >= self._until:
            if self._lines > self._most:
                left_out = self._lines - self._most
                self._log.warning("Omitted %d lines about %s", left_out, self._kind, stacklevel=2)
            self._until, self._lines = now + 60.0, 0
        self._lines += 1
        if self._lines <= self._most:
            self._log.log(level, text, *values, stacklevel=2)
        elif self._lines == self._most + 1:
            self._log.warning("Omitting more lines about %s for a minute", self._kind, stacklevel=2)
