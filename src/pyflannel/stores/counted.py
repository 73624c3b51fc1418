"""A store that counts its requests and measures its answers, for the metrics and the status."""

import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeVar

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.network_config import IpAddress
from pyflannel.model.status import StoreRequests
from pyflannel.model.store_record import Conflict, Delete, Listing, Put, Record, StoreChanges, Written
from pyflannel.ports import Store, Watcher

_Answer = TypeVar("_Answer")


class CountedStore:
    """Passes requests to another store, and counts them by operation and result.

    Attributes:
        answer_s: duration in seconds of the latest answered request; None if no request was answered.
        answered_at: time of the latest answer or announced change, in seconds of the clock; None if there was
            no answer.
    """

    def __init__(self, store: Store, now: Callable[[], float] = time.monotonic) -> None:
        """`now`: the clock."""
        self._store = store
        self._now = now
        self.answer_s: float | None = None
        self.answered_at: float | None = None
        self._requests = Counter[tuple[str, str]]()
        self._lost_watches = Counter[str]()

    @property
    def requests(self) -> tuple[StoreRequests, ...]:
        """Return the number of requests by operation and result."""
        return tuple(
            StoreRequests(operation=operation, result=result, count=count)
            for (operation, result), count in sorted(self._requests.items())
        )

    @property
    def lost_watches(self) -> Mapping[str, int]:
        """Return the number of watches that ended, by reason: `compacted` or `lost`."""
        return self._lost_watches

    async def get(self, key: str) -> Record | None:
        """Return the record at exactly this key, or None."""
        return await self._counted("get", self._store.get(key))

    async def list(self, prefix: str) -> Listing:
        """Return all records whose key starts with `prefix`, at one revision."""
        return await self._counted("list", self._store.list(prefix))

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write. If a condition failed, the result counts as `conflict`."""
        began = self._now()
        try:
            outcome = await self._store.write(operation)
        except StoreError:
            self._requests["write", "error"] += 1
            raise
        self._note_answer(began)
        self._requests["write", "conflict" if isinstance(outcome, Conflict) else "ok"] += 1
        return outcome

    @asynccontextmanager
    async def watch(self, prefix: str, after: int) -> AsyncIterator[Watcher]:
        """Watch the keys under `prefix` for changes after revision `after`, during the block."""
        opened = False
        try:
            async with self._store.watch(prefix, after) as watcher:
                opened = True
                self._requests["watch", "ok"] += 1
                yield _CountedWatcher(watcher, self._lost_watches, self._note_change)
        except StoreError:
            if not opened:
                self._requests["watch", "error"] += 1
            raise

    async def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, or None if the record never expires."""
        return await self._counted("time_to_live", self._store.time_to_live(record))

    async def age(self, record: Record) -> float | None:
        """Return the seconds since a record with a TTL was written; None if the time is unknown."""
        return await self._counted("age", self._store.age(record))

    def addresses(self) -> tuple[IpAddress, ...]:
        """Return the addresses through which the store is reached."""
        return self._store.addresses()

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    async def _counted(self, operation: str, answer: Awaitable[_Answer]) -> _Answer:
        began = self._now()
        try:
            result = await answer
        except StoreError:
            self._requests[operation, "error"] += 1
            raise
        self._note_answer(began)
        self._requests[operation, "ok"] += 1
        return result

    def _note_answer(self, began: float) -> None:
        self.answered_at = self._now()
        self.answer_s = self.answered_at - began

    def _note_change(self) -> None:
        self.answered_at = self._now()


class _CountedWatcher:
    def __init__(self, watcher: Watcher, lost: Counter[str], noted: Callable[[], None]) -> None:
        self._watcher = watcher
        self._lost = lost
        self._noted = noted

    async def next(self) -> StoreChanges:
        try:
            changes = await self._watcher.next()
        except StoreError as error:
            self._lost["compacted" if isinstance(error, CompactedError) else "lost"] += 1
            raise
        self._noted()
        return changes
