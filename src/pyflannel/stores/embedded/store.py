"""The embedded store for an event loop: calls run in a thread, and watches follow changes of the file."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import ParamSpec, TypeVar

from pyflannel.errors import TargetError
from pyflannel.model.store_record import Conflict, Delete, Listing, Put, Record, StoreChanges, Written
from pyflannel.ports import Changes, FileWatch, Watcher
from pyflannel.stores.embedded.database import Database

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Interval in seconds at which a watch reads the file even without a notification."""

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class EmbeddedStore:
    """The keys in one SQLite file, `database`, at `path`."""

    def __init__(self, path: Path, database: Database, file_watch: FileWatch) -> None:
        self._log_file = path.with_name(path.name + "-wal")
        self._database = database
        self._file_watch = file_watch
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def get(self, key: str) -> Record | None:
        """Return the record at exactly this key, or None."""
        return await self._call(self._database.get, key)

    async def list(self, prefix: str) -> Listing:
        """Return all records under `prefix` at one revision, in the order of their keys."""
        return await self._call(self._database.list, prefix)

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write in one transaction."""
        return await self._call(self._database.write, operation)

    @asynccontextmanager
    async def watch(self, prefix: str, after: int) -> AsyncIterator[Watcher]:
        """Watch the keys under `prefix` for changes after revision `after`, during the block."""
        await self._seconds_to_look()  # creates the directory of the file, for the file watch
        async with AsyncExitStack() as opened:
            try:
                writes = await opened.enter_async_context(self._file_watch.changes(self._log_file))
            except TargetError as error:
                self._warn(error)
                writes = None
            # The call raises CompactedError if the history is too short.
            await self._call(self._database.changes, prefix, after)
            yield _Watcher(self, prefix, after, writes)

    async def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, or None if the record never expires."""
        return await self._call(self._database.time_to_live, record)

    async def age(self, record: Record) -> float | None:
        """Return the seconds since a record with a TTL was written; None if the time is unknown."""
        return await self._call(self._database.age, record)

    def addresses(self) -> tuple[IPv4Address, ...]:
        """Return nothing, because the store is a file of this host."""
        return ()

    async def close(self) -> None:
        """Close the file."""
        await self._call(self._database.close)

    def _warn(self, error: TargetError) -> None:
        log.warning(
            "Could not watch the file of the store, reading it every %g s file=%s: %s",
            LOOK_S,
            self._log_file,
            error,
        )

    async def _seconds_to_look(self) -> float:
        to_expiry = await self._call(self._database.seconds_to_expiry)
        return LOOK_S if to_expiry is None else min(LOOK_S, to_expiry)

    async def _call(
        self, act: Callable[_Arguments, _Answer], *arguments: _Arguments.args, **options: _Arguments.kwargs
    ) -> _Answer:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: act(*arguments, **options))


class _Watcher:
    """A watch of the file. `writes` reports possible writes; None if notifications are not available."""

    def __init__(self, store: EmbeddedStore, prefix: str, after: int, writes: Changes | None) -> None:
        self._store = store
        self._prefix = prefix
        self._after = after
        self._writes = writes
        self._is_new = True

    async def next(self) -> StoreChanges:
        """Wait for changes. Read the file each time it may have been written, or a record may have
        expired.
        """
        if self._is_new:
            self._is_new = False
            return StoreChanges((), self._after)
        while True:
            changes = await self._store._call(self._store._database.changes, self._prefix, self._after)
            self._after = changes.revision
            if changes.changes:
                return changes
            await self._pause(await self._store._seconds_to_look())

    async def _pause(self, seconds: float) -> None:
        if self._writes is None:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._writes.next()
        except TimeoutError:
            return
        except TargetError as error:
            self._store._warn(error)
            self._writes = None
