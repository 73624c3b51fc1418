"""A Store in memory that several clients share, and that fails on request of a test."""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Protocol

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import (
    Change,
    Conflict,
    Delete,
    DeleteSeen,
    Listing,
    Put,
    PutSeen,
    Record,
    StoreChanges,
    Unchanged,
    Written,
)


class Timers(Protocol):
    """The clock by which records expire."""

    def now(self) -> float:
        """Return seconds."""

    def call_at(self, when: float, act: Callable[[], object]) -> object:
        """Call `act` when time reaches `when`."""


class FakeStore:
    """One client of a store in memory; `client` creates further clients.

    Faults concern only this client:

    - `is_unreachable`: every call fails and every watch ends, until it is set to False again;
    - `fail_next(calls)`: this number of calls fail before they take effect;
    - `lose_next_answer()`: the next write takes effect and fails nevertheless;
    - `cut_watches()`: the existing watches end, calls continue;
    - `refuses_watches`: no watch opens, calls continue;
    - `ends_watches_at_once`: each watch ends when it is open, calls continue.

    Attributes:
        listings: number of listings.
        watches: number of watches.
        reached_at: its addresses.
    """

    def __init__(self, clock: Timers) -> None:
        self._memory = _Memory(clock)
        self._is_unreachable = False
        self._calls_to_fail = 0
        self._loses_next_answer = False
        self._cuts = 0
        self.reached_at: tuple[IPv4Address, ...] = ()
        self.refuses_watches = False
        self.ends_watches_at_once = False
        self.listings = 0
        self.watches = 0

    def client(self) -> "FakeStore":
        """Return another client of the same records, without faults."""
        other = FakeStore(self._memory.clock)
        other._memory = self._memory
        return other

    @property
    def is_unreachable(self) -> bool:
        """True if this client cannot reach the store."""
        return self._is_unreachable

    @is_unreachable.setter
    def is_unreachable(self, is_unreachable: bool) -> None:
        self._is_unreachable = is_unreachable
        if is_unreachable:
            self.cut_watches()

    def fail_next(self, calls: int = 1) -> None:
        """Let this number of calls fail before they take effect."""
        self._calls_to_fail += calls

    def lose_next_answer(self) -> None:
        """Let the next write take effect and fail nevertheless."""
        self._loses_next_answer = True

    def cut_watches(self) -> None:
        """End every watch of this client with a StoreError."""
        self._cuts += 1
        self._memory.wake()

    def compact(self, revision: int | None = None) -> None:
        """Remove the history up to and including `revision`; None: the whole history."""
        self._memory.compact(revision)

    def listing(self) -> Listing:
        """Return all records, regardless of this client's faults."""
        return self._memory.listing("")

    def change(self, operation: Put | Delete) -> None:
        """Perform a manual write, regardless of this client's faults."""
        self._memory.write(operation)

    def lose_data(self, revision: int) -> None:
        """Lose all data and continue at this revision. An existing watch continues from this revision."""
        self._memory.lose(revision)

    async def get(self, key: str) -> Record | None:
        """Return the record at this key, or None."""
        self._reach()
        return self._memory.record(key)

    async def list(self, prefix: str) -> Listing:
        """Return all records whose key starts with `prefix`, in the order of their keys."""
        self.listings += 1
        self._reach()
        return self._memory.listing(prefix)

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write."""
        self._reach()
        result = self._memory.write(operation)
        if self._loses_next_answer:
            self._loses_next_answer = False
            raise _lost("the answer was lost")
        return result

    @asynccontextmanager
    async def watch(self, prefix: str, after: int) -> AsyncIterator["FakeWatcher"]:
        """Watch the keys under `prefix` for changes after `after`, within the block."""
        self.watches += 1
        self._reach()
        if self.refuses_watches:
            raise _lost("watches are refused")
        self._memory.changes(prefix, after)  # raises an error if the history does not contain `after`
        watcher = FakeWatcher(self, prefix, after)
        try:
            yield watcher
        finally:
            watcher.is_open = False

    async def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, or None if the record never expires."""
        self._reach()
        return self._memory.time_to_live(record)

    async def age(self, record: Record) -> float | None:
        """Return the seconds since a record with a TTL was written; None if it is unknown."""
        self._reach()
        return self._memory.age(record)

    def addresses(self) -> tuple[IPv4Address, ...]:
        """Return the addresses that the test set."""
        return self.reached_at

    async def close(self) -> None:
        """End the watches."""
        self.cut_watches()

    def _reach(self) -> None:
        if self._is_unreachable:
            raise _lost("the store is unreachable")
        if self._calls_to_fail:
            self._calls_to_fail -= 1
            raise _lost("the test asked for this")


class FakeWatcher:
    """A watch of a client. Simultaneous changes are returned together."""

    def __init__(self, client: FakeStore, prefix: str, after: int) -> None:
        self.is_open = True
        self._client = client
        self._prefix = prefix
        self._after = after
        self._cuts = client._cuts
        self._is_new = True
        self._is_waiting = False

    async def next(self) -> StoreChanges:
        """Wait for the next changes; for one task, within the block."""
        assert self.is_open, "the watch's block has been left"
        assert not self._is_waiting, "two tasks wait for one watch"
        self._is_waiting = True
        try:
            return await self._next()
        finally:
            self._is_waiting = False

    async def _next(self) -> StoreChanges:
        if self._is_new:
            self._is_new = False
            return StoreChanges((), self._after)
        while True:
            if self._client._cuts != self._cuts or self._client.ends_watches_at_once:
                raise _lost("the watch was cut")
            changes = self._client._memory.changes(self._prefix, self._after)
            self._after = changes.revision
            if changes.changes:
                return changes
            await self._client._memory.changed()


def _lost(why: str) -> StoreError:
    return StoreError(f"fake store: {why}", hint="Try again.")


@dataclass(frozen=True, slots=True)
class _Held:
    record: Record
    deadline: float | None
    written_at: float


class _Memory:
    """Records, their history, and the tasks that wait for a change."""

    def __init__(self, clock: Timers) -> None:
        self.clock = clock
        self._revision = 1
        self._compacted = 0
        self._held: dict[str, _Held] = {}
        self._history: list[tuple[int, Change]] = []
        self._waiting: dict[asyncio.Event, None] = {}  # in the order of their arrival

    def record(self, key: str) -> Record | None:
        held = self._held.get(key)
        return held.record if held else None

    def listing(self, prefix: str) -> Listing:
        keys = sorted(key for key in self._held if key.startswith(prefix))
        return Listing(tuple(self._held[key].record for key in keys), self._revision)

    def write(self, operation: Put | Delete) -> Written | Conflict:
        current = self.record(operation.key)
        if operation.expected is not None and operation.expected != (current.revision if current else 0):
            return Conflict(current)
        if isinstance(operation, Put) and not self._holds(operation.given):
            return Conflict(current)
        if isinstance(operation, Put):
            self._put(operation)
        elif current is not None:
            self._delete(operation.key)
        return Written(self._revision)

    def _holds(self, given: Unchanged | None) -> bool:
        if given is None:
            return True
        current = self.record(given.key)
        return given.revision == (current.revision if current else 0)

    def changes(self, prefix: str, after: int) -> StoreChanges:
        if not self._compacted <= after <= self._revision:
            raise CompactedError(after + 1, self._compacted + 1)
        start = bisect_right(self._history, after, key=lambda entry: entry[0])
        found = (change for _, change in self._history[start:] if change.key.startswith(prefix))
        return StoreChanges(tuple(found), self._revision)

    def compact(self, revision: int | None) -> None:
        self._compacted = self._revision if revision is None else min(revision, self._revision)
        self._history = [entry for entry in self._history if entry[0] > self._compacted]
        self.wake()

    def lose(self, revision: int) -> None:
        self._held.clear()
        self._history.clear()
        self._revision = self._compacted = revision

    def time_to_live(self, record: Record) -> float | None:
        if not record.lease_id:
            return None
        held = self._held.get(record.key)
        if held is None or held.record.lease_id != record.lease_id or held.deadline is None:
            return 0.0
        return held.deadline - self.clock.now()

    def age(self, record: Record) -> float | None:
        held = self._held.get(record.key)
        if held is None or held.deadline is None or held.record.lease_id != record.lease_id:
            return None
        return self.clock.now() - held.written_at

    async def changed(self) -> None:
        event = asyncio.Event()
        self._waiting[event] = None
        try:
            await event.wait()
        finally:
            del self._waiting[event]

    def wake(self) -> None:
        for event in self._waiting:
            event.set()

    def _put(self, put: Put) -> None:
        self._revision += 1
        lease_id = 0 if put.ttl_s is None else self._revision
        before = self.record(put.key)
        record = Record(
            key=put.key,
            value=put.value,
            revision=self._revision,
            lease_id=lease_id,
            created=self._revision if before is None else before.created,
        )
        deadline = None if put.ttl_s is None else self.clock.now() + put.ttl_s
        self._held[put.key] = _Held(record, deadline, self.clock.now())
        self._happened(PutSeen(record))
        if deadline is not None:
            self.clock.call_at(deadline, lambda: self._expire(record))

    def _expire(self, record: Record) -> None:
        if self.record(record.key) == record:
            self._delete(record.key)

    def _delete(self, key: str) -> None:
        self._revision += 1
        del self._held[key]
        self._happened(DeleteSeen(key, self._revision))

    def _happened(self, change: Change) -> None:
        self._history.append((self._revision, change))
        self.wake()
