"""The host's clocks."""

import asyncio
import time

_NAP_S = 30.0
"""Longest sleep in one piece: the event loop's own clock stands still while the host sleeps."""


class BoottimeClock:
    """A Clock on CLOCK_BOOTTIME, which counts while the host sleeps and is never set."""

    def now(self) -> float:
        """Return seconds since the host booted."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def utc(self) -> float:
        """Return seconds since the epoch; it may step."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` by `now`, at most half a minute late after the host slept."""
        deadline = self.now() + seconds
        await asyncio.sleep(min(seconds, _NAP_S))
        while (left := deadline - self.now()) > 0:
            await asyncio.sleep(min(left, _NAP_S))
