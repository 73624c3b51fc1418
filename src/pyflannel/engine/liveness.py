"""One word to the service manager's watchdog for all networks of a daemon."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyflannel.ports.clock import Clock

ALIVE = "WATCHDOG=1"


class Liveness:
    """Says WATCHDOG=1 once every network has given a sign of life since it was said last.

    So one reconciler that is stuck silences all of them, and the daemon is started again.

    Attributes:
        pause_s: how long a network may be silent: half of what the watchdog grants, as
            sd_watchdog_enabled(3) advises; endless without a watchdog.
    """

    def __init__(self, notify: Callable[[str], object], clock: Clock, watchdog_s: float | None) -> None:
        self.pause_s = math.inf if watchdog_s is None else watchdog_s / 2
        self._notify = notify
        self._clock = clock
        self._networks: set[object] = set()
        self._silent: set[object] = set()

    @contextmanager
    def watched(self) -> Iterator[Callable[[], None]]:
        """Wait for one network more, for the length of a block; it gives its signs by what it gets."""
        network = object()

        def give_sign() -> None:
            self._silent.discard(network)
            self._speak()

        self._networks.add(network)
        self._silent.add(network)
        try:
            yield give_sign
        finally:
            self._networks.discard(network)
            self._silent.discard(network)

    async def run(self) -> None:
        """Speak for a daemon while it has no network; return at once without a watchdog."""
        while self.pause_s < math.inf:
            self._speak()  # with a network it is never due here
            await self._clock.sleep(self.pause_s)

    def _speak(self) -> None:
        if self.pause_s < math.inf and not self._silent:
            self._notify(ALIVE)
            self._silent = set(self._networks)
