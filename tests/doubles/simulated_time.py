"""Time that jumps to the next timer when no task can run: weeks pass in seconds."""

import asyncio
import selectors
from collections.abc import Callable


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop with jumping time, for `asyncio.Runner(loop_factory=SimulatedLoop)`.

    There are no events from outside: no socket is ever readable, no thread is awaited. If there is no timer
    left, `run_until_complete` raises RuntimeError.
    """

    def __init__(self) -> None:
        self._leaps = _Leaps()
        super().__init__(self._leaps)

    def time(self) -> float:
        """Return seconds since the creation of the loop."""
        return self._leaps.now


class _Leaps(selectors.SelectSelector):
    """A selector that does not wait, but advances the time by its timeout."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("every task waits, and no timer runs, so no further event can occur")
        self.now += max(timeout, 0.0)
        return []


class SimulatedClock:
    """The Clock of one host in simulated time. A test may step its monotonic time and its wall clock."""

    def __init__(self, *, utc: float = 1_700_000_000.0) -> None:
        self._ahead_s = 1000.0
        self._utc = utc
        self._sleepers: dict[asyncio.Future[None], None] = {}

    def now(self) -> float:
        """Return seconds of the host's own clock, which `step` advances for a suspended host."""
        return asyncio.get_running_loop().time() + self._ahead_s

    def utc(self) -> float:
        """Return seconds since the epoch."""
        return asyncio.get_running_loop().time() + self._utc

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` by `now`. Zero and less let other tasks run once."""
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
        """Call `act` when `now` reaches `when`, if the clock is not stepped before that."""
        asyncio.get_running_loop().call_later(max(0.0, when - self.now()), act)

    def step(self, seconds: float) -> None:
        """Simulate that the host was suspended: its clock advances, and its timers are late."""
        self._ahead_s += seconds
        for sleeper in self._sleepers:
            _wake(sleeper)

    def step_utc(self, seconds: float) -> None:
        """Step the wall clock, as an operator or NTP may do."""
        self._utc += seconds


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
