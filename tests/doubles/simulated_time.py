"""Time that leaps to the next timer as soon as nothing can run: weeks pass in seconds."""

import asyncio
import selectors
from collections.abc import Callable


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop whose time leaps; for `asyncio.Runner(loop_factory=SimulatedLoop)`.

    Nothing comes from outside: no socket is ever readable, no thread is heard. When nothing is to come at
    all any more, `run_until_complete` raises RuntimeError.
    """

    def __init__(self) -> None:
        self._leaps = _Leaps()
        super().__init__(self._leaps)

    def time(self) -> float:
        """Return seconds since the loop was made."""
        return self._leaps.now


class _Leaps(selectors.SelectSelector):
    """A selector that is asked for how long there is nothing to do, and lets just that pass."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer runs: nothing is to come any more")
        self.now += max(timeout, 0.0)
        return []


class SimulatedClock:
    """The Clock of one host in simulated time; each of its two readings may be stepped."""

    def __init__(self, *, utc: float = 1_700_000_000.0) -> None:
        self._ahead_s = 1000.0
        self._utc = utc
        self._sleepers: dict[asyncio.Future[None], None] = {}

    def now(self) -> float:
        """Return seconds; the host's own, as `step` may have let it sleep meanwhile."""
        return asyncio.get_running_loop().time() + self._ahead_s

    def utc(self) -> float:
        """Return seconds since the epoch."""
        return asyncio.get_running_loop().time() + self._utc

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` by `now`; zero and less give other tasks one turn."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        deadline = self.now() + seconds
        while (left := deadline - self.now()) > 0:
            woken = loop.create_future()
            timer = loop.call_later(left, _wake, woken)
            self._sleepers[woken] = None
            try:
                await woken
            finally:
                timer.cancel()
                del self._sleepers[woken]

    def call_at(self, when: float, act: Callable[[], object]) -> None:
        """Call `act` when `now` reaches `when`, on a clock that is not stepped meanwhile."""
        asyncio.get_running_loop().call_later(max(0.0, when - self.now()), act)

    def step(self, seconds: float) -> None:
        """Let the host have slept: its clock goes on, and what was due is late."""
        self._ahead_s += seconds
        for sleeper in self._sleepers:
            _wake(sleeper)

    def step_utc(self, seconds: float) -> None:
        """Step the clock that people read, as an operator or NTP may."""
        self._utc += seconds


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
