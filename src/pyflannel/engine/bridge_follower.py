"""Follows the bridges of the host and the containers behind them, while somebody wants to know."""

import asyncio
import logging
from collections.abc import Callable

from pyflannel.engine.pause import pause
from pyflannel.errors import TargetError
from pyflannel.model.bridge import Bridge
from pyflannel.ports.bridges import BridgeSource
from pyflannel.ports.clock import Clock

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Pause after which it looks without being told."""


class BridgeFollower:
    """Calls `found` with the bridges, and again with each state that differs, while `is_wanted` is set.

    Bridges that cannot be read count as none: without an entry a container is reached the ordinary way.
    """

    def __init__(
        self, *, source: BridgeSource, clock: Clock, found: Callable[[tuple[Bridge, ...]], None]
    ) -> None:
        self._source = source
        self._clock = clock
        self._found = found
        self._current: tuple[Bridge, ...] = ()
        self._changed = asyncio.Event()
        self.is_wanted = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen(), name="bridge changes")
            while True:
                await self.is_wanted.wait()
                self._changed.clear()
                await self._look()
                await pause(self._clock, LOOK_S, until=self._changed)

    async def _listen(self) -> None:
        async for _ in self._source.changes():
            self._changed.set()

    async def _look(self) -> None:
        try:
            bridges = await self._source.observe()
        except TargetError as error:
            log.warning("Bridges cannot be read, containers are reached the ordinary way: %s", error)
            bridges = ()
        if bridges != self._current:
            self._current = bridges
            self._found(bridges)
