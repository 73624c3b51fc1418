"""Time, as an argument of the world."""

from typing import Protocol


class Clock(Protocol):
    """Two clocks: one that never steps, for deadlines, and one that people read."""

    def now(self) -> float:
        """Return seconds of a clock that never steps and counts while the host sleeps (CLOCK_BOOTTIME)."""

    def utc(self) -> float:
        """Return seconds since the epoch; for texts only, as it may step."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, measured by `now`."""
