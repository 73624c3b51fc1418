"""The allow-list of keys: read again after each change of its file. A broken file changes nothing."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pyflannel.engine.list_watch import listen
from pyflannel.engine.pacing import pause
from pyflannel.errors import TargetError, WireError
from pyflannel.model.status import Notice
from pyflannel.ports import Changes, Clock, KeyFile
from pyflannel.wire.lease_signature import parse_allowed_keys

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Longest interval between two looks at the file, which may be on a file system that announces no changes."""

SETTLE_S = 0.5
"""A file is read when it has not changed for this long, so that no half-written list takes effect."""

SETTLE_MAX_S = 5.0


class AllowedKeys:
    """The keys whose leases this host accepts.

    Attributes:
        keys: the last good list.
        trouble: why a later list is not used, and the remedy; None if the list is the latest.
        changed: set when `keys` has changed.
    """

    def __init__(self, file: KeyFile, clock: Clock, keys: frozenset[bytes]) -> None:
        """Start with the keys that the file contained."""
        self._file = file
        self._clock = clock
        self._has_news = asyncio.Event()
        self.keys = keys
        self.trouble: Notice | None = None
        self.changed = asyncio.Event()

    def reload(self) -> None:
        """Read the file soon, even without a change."""
        self._has_news.set()

    async def run(self) -> None:
        """Follow the file until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(self._changes, self._clock, self.reload), name="file of keys")
            while True:
                await self._settled()
                await self._read()
                await pause(self._clock, LOOK_S, until=self._has_news)

    @asynccontextmanager
    async def _changes(self) -> AsyncIterator[Changes]:
        async with self._file.changes() as changes:
            self.reload()  # the file may have changed before the channel was open
            yield changes

    async def _settled(self) -> None:
        until = self._clock.now() + SETTLE_MAX_S
        while self._has_news.is_set() and self._clock.now() < until:
            self._has_news.clear()
            await pause(self._clock, SETTLE_S, until=self._has_news)
        self._has_news.clear()

    async def _read(self) -> None:
        try:
            keys = parse_allowed_keys(await self._file.read())
        except (TargetError, WireError) as error:
            self._keep(Notice(f"{self._file.name}: {error}", error.hint))
            return
        if self.trouble is not None:
            log.info("The file of allowed keys is usable again")
        self.trouble = None
        self._use(keys)

    def _keep(self, trouble: Notice) -> None:
        """Keep the last good list, and log the reason once."""
        if trouble != self.trouble:
            log.error("Kept the last good list of %d allowed keys: %s", len(self.keys), trouble)
        self.trouble = trouble

    def _use(self, keys: frozenset[bytes]) -> None:
        if keys == self.keys:
            return
        log.info(
            "Changed the list of allowed keys: added=%d removed=%d keys=%d",
            len(keys - self.keys),
            len(self.keys - keys),
            len(keys),
        )
        self.keys = keys
        self.changed.set()
