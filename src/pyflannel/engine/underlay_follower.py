"""Follows the interface that carries the tunnel: waits for it, and notices when it changes."""

import asyncio
import logging
from collections.abc import Callable

from pyflannel.engine.pause import pause
from pyflannel.errors import NoUnderlayError, TargetError
from pyflannel.model.host import Underlay
from pyflannel.plan.underlay import UnderlayOptions, choose, narrate
from pyflannel.ports.clock import Clock
from pyflannel.ports.interfaces import InterfaceSource

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Pause after which it looks without being told."""


class UnderlayFollower:
    """Calls `found` with the first underlay and each that differs, `waiting` when it has to wait.

    An underlay that goes away is kept until there is another: what packets there are may still find a way.
    """

    def __init__(
        self,
        *,
        source: InterfaceSource,
        wanted: UnderlayOptions,
        clock: Clock,
        found: Callable[[Underlay], None],
        waiting: Callable[[], None],
        look_s: float = LOOK_S,
    ) -> None:
        self._source = source
        self._wanted = wanted
        self._clock = clock
        self._found = found
        self._waiting = waiting
        self._look_s = look_s
        self._current: Underlay | None = None
        self._changed = asyncio.Event()
        self.is_known = asyncio.Event()
        self.waiting_for: str | None = "an interface"

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="interface changes")
            while True:
                self._changed.clear()
                await self._look()
                await pause(self._clock, self._look_s, until=self._changed)

    async def _listen(self) -> None:
        async for _ in self._source.changes():
            self._changed.set()

    async def _look(self) -> None:
        target = self._wanted.can_reach
        try:
            interfaces = await self._source.observe()
            reached = None if target is None else await self._source.route_to(target)
            underlay = choose(self._wanted, interfaces, reached)
        except (NoUnderlayError, TargetError) as error:
            self._wait(error)
            return
        self.waiting_for = None
        if underlay == self._current:
            return
        if self._current is not None:
            log.warning("Underlay changed from %s to %s", _words(self._current), _words(underlay))
        for line in narrate(self._wanted, interfaces, reached):
            log.info("%s", line)
        self._current = underlay
        self._found(underlay)
        self.is_known.set()

    def _wait(self, error: NoUnderlayError | TargetError) -> None:
        if self.waiting_for != str(error):
            log.warning("Waiting for %s. %s", error, error.hint)
            self.waiting_for = str(error)
            self._waiting()


def _words(underlay: Underlay) -> str:
    address = f"{underlay.link} {underlay.address} mtu {underlay.mtu} public {underlay.public_ip}"
    return f"{address} on link {','.join(map(str, underlay.on_link)) or 'nothing'}"
