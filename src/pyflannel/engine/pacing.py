"""Limits over time: turns of the event loop, pauses, and lines of the log."""

import asyncio
import logging
import math
from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from pyflannel.ports import Clock

FIGHT_REPAIRS = 6
"""So many repairs of one object …"""

FIGHT_WINDOW_S = 10.0
"""… within this time mean that another program undoes them."""

FIRST_PAUSE_S = 0.25

PAUSE_S = 1.0
"""The pause that a cheap repair grows to: one repair a second costs no processor time worth counting."""

COSTS = 100
"""A pause is at least so many times as long as the repair takes: it may use 1 % of a core."""


RETRY_MIN_S = 0.05
"""First pause before a failure is retried. It doubles; an event ends it at once."""


async def pause(clock: Clock, seconds: float, *, until: asyncio.Event) -> None:
    """Return when the event is set, at the latest after `seconds` by the clock."""
    waits = {asyncio.ensure_future(until.wait()), asyncio.ensure_future(clock.sleep(seconds))}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


READ_AT_ONCE = 10
"""So many records are read before anything else has its turn: a tenth of a millisecond of work."""

_Found = TypeVar("_Found")
_Read = TypeVar("_Read")


async def one_by_one(read: Callable[[_Found], _Read], found: Iterable[_Found]) -> list[_Read]:
    """Return the result of `read` for each item. Other tasks get a turn after every few items."""
    results: list[_Read] = []
    for item in found:
        results.append(read(item))
        if len(results) % READ_AT_ONCE == 0:
            await asyncio.sleep(0)
    return results


def longest_pause_s(cost_s: float) -> float:
    """Return the longest pause before a batch that took `cost_s` seconds is tried again."""
    return max(PAUSE_S, COSTS * cost_s)


class Damping:
    """Counts the repairs of each object. If another program keeps undoing them, they are made less often.

    The pause between two repairs doubles, up to the length at which the repairs use 1 % of a core: a second
    for one object. A longer pause would protect nothing, and the object is damaged meanwhile. The fight is
    over when the object was left alone for `FIGHT_WINDOW_S`.
    """

    def __init__(self) -> None:
        self._repairs: dict[Hashable, list[float]] = {}
        self._pauses: dict[Hashable, tuple[float, float]] = {}

    def repaired(self, key: Hashable, now: float, cost_s: float = 0.0) -> float | None:
        """Note a repair; return the pause in seconds that begins now, None if there is none.

        `cost_s` is the time that the batch of the repair took.
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
        """Forget the objects that were left alone for a window: ten thousand may be repaired at once."""
        self._repairs = {
            key: times for key, times in self._repairs.items() if now - times[-1] < FIGHT_WINDOW_S
        }
        self._pauses = {key: pause for key, pause in self._pauses.items() if now - pause[0] <= FIGHT_WINDOW_S}

    @property
    def remembered(self) -> int:
        """How many objects it knows of."""
        return len(self._repairs.keys() | self._pauses.keys())

    @property
    def has_pauses(self) -> bool:
        """Some object is or was being fought over."""
        return bool(self._pauses)

    def waits_until(self, key: Hashable, now: float) -> float | None:
        """Return until when this object must not be repaired, or None when it may be now."""
        until, _ = self._pauses.get(key, (0.0, 0.0))
        return until if until > now else None


LINES_A_MINUTE = 60
"""Lines of one kind in the log that somebody who writes to the store can cause."""


class LogLimit:
    """Logs lines of one kind, so many a minute. The next minute begins with the number of those left out."""

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
        """Log a line, or count it."""
        now = self._clock.now()
        if now >= self._until:
            if self._lines > self._most:
                left_out = self._lines - self._most
                self._log.warning("Left out %d lines about %s", left_out, self._kind, stacklevel=2)
            self._until, self._lines = now + 60.0, 0
        self._lines += 1
        if self._lines <= self._most:
            self._log.log(level, text, *values, stacklevel=2)
        elif self._lines == self._most + 1:
            self._log.warning("More lines about %s are left out for a minute", self._kind, stacklevel=2)
