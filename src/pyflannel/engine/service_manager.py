"""Notifications to the service manager for all networks of a daemon: READY, STATUS, WATCHDOG."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from pyflannel.ports import Clock

READY = "READY=1"


class Readiness:
    """Passes READY=1 on when every expected network has sent it, and each network's status with its name."""

    def __init__(self, notify: Callable[[str], object], expected: Collection[str]) -> None:
        self._notify = notify
        self._awaited = set(expected)

    def voice(self, name: str) -> Callable[[str], object]:
        """Return the function by which network `name` notifies the service manager."""

        def say(text: str) -> None:
            if text == READY:
                self._awaited.discard(name)
                if not self._awaited:
                    self._notify(READY)
            else:
                self._notify(text.replace("STATUS=", f"STATUS={name}: ", 1))

        return say


ALIVE = "WATCHDOG=1"


class Liveness:
    """Sends WATCHDOG=1 once every network has given a sign of life since the last WATCHDOG=1.

    So one reconciler that is stuck stops it, and systemd starts the daemon again.

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
