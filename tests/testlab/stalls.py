"""A witness for stalls of the whole machine, which a test must not count as a silence of the network.

The clocks CLOCK_BOOTTIME and CLOCK_MONOTONIC differ after a suspension by the kernel. The clocks do not
differ if a hypervisor stops the machine: both clocks continue, but no process runs.
"""

import subprocess
import sys
from types import TracebackType
from typing import NamedTuple, Self

TICK_S = 0.01
LEAST_S = 0.5
"""The shortest stall that the witness reports, in seconds."""

_END_S = 60.0
_PROGRAM = f"""
import select, time
before = time.time()
print(before, before, flush=True)
is_over = False
while not is_over:
    is_over = bool(select.select([0], [], [], {TICK_S})[0])
    now = time.time()
    if now - before > {LEAST_S}:
        print(before, now, flush=True)
    before = now
"""
_REAL_TIME = ("chrt", "--fifo", "1")
"""On a loaded machine, the witness runs like the pings. The witness misses its ticks only if the pings stop
too."""


class Stall(NamedTuple):
    """A time without a tick, in seconds since the epoch. A new time of the clock looks like a stall, too."""

    start: float
    end: float


class StallWitness:
    """A process outside of the labs that ticks every 10 ms, and reports the times without a tick.

    The witness is no thread of the test, because a long computation of the test stops its threads.
    """

    def __init__(self) -> None:
        self._stalls: list[Stall] = []

    def __enter__(self) -> Self:
        words = [*_REAL_TIME, sys.executable, "-I", "-S", "-c", _PROGRAM]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._process.stdout.readline()  # the first tick
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        text, _ = self._process.communicate(timeout=_END_S)  # the process ends with its standard input
        self._stalls = [Stall(*map(float, line.split())) for line in text.splitlines()]

    @property
    def pid(self) -> int:
        """The process ID of the witness."""
        return self._process.pid

    @property
    def longest_s(self) -> float:
        """The longest stall in seconds; 0 without a stall.

        The value is valid after the end of the block, as is `stalled_s`.
        """
        return max((stall.end - stall.start for stall in self._stalls), default=0.0)

    def stalled_s(self, start: float, end: float) -> float:
        """Return the seconds between two times for which the machine was stalled."""
        return overlap_s(self._stalls, start, end)


def overlap_s(stalls: list[Stall], start: float, end: float) -> float:
    """Return the seconds between two times that are part of a stall."""
    return sum(max(0.0, min(end, stall.end) - max(start, stall.start)) for stall in stalls)
