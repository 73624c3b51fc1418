"""One network of several in a store: its keys are below the name of the network."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from msgspec.structs import replace

from pyflannel.model.network_config import IpAddress
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
    Written,
)
from pyflannel.ports import Store, Watcher


class PrefixedStore:
    """A store inside another store, in which the key `K` is `NAME/K`. With `closes`, `close` also closes
    the other store.
    """

    def __init__(self, store: Store, name: str, *, closes: bool = False) -> None:
        self._store = store
        self._prefix = f"{name}/"
        self._closes = closes

    async def get(self, key: str) -> Record | None:
        """Return the record at exactly this key, or None."""
        record = await self._store.get(self._prefix + key)
        return None if record is None else self._ours(record)

    async def list(self, prefix: str) -> Listing:
        """Return all records whose key starts with `prefix`, at one revision."""
        listing = await self._store.list(self._prefix + prefix)
        return Listing(tuple(map(self._ours, listing.records)), listing.revision)

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write."""
        operation = replace(operation, key=self._prefix + operation.key)
        if isinstance(operation, Put) and operation.given is not None:
            given = replace(operation.given, key=self._prefix + operation.given.key)
            operation = replace(operation, given=given)
        outcome = await self._store.write(operation)
        match outcome:
            case Conflict(Record() as current):
                return Conflict(self._ours(current))
            case _:
                return outcome

    @asynccontextmanager
    async def watch(self, prefix: str, after: int) -> AsyncIterator[Watcher]:
        """Watch the keys under `prefix` for changes after revision `after`, during the block."""
        async with self._store.watch(self._prefix + prefix, after) as watcher:
            yield _PrefixedWatcher(watcher, self._our_change)

    async def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, or None if the record never expires."""
        return await self._store.time_to_live(replace(record, key=self._prefix + record.key))

    async def age(self, record: Record) -> float | None:
        """Return the seconds since a record with a TTL was written; None if this time is unknown."""
        return await self._store.age(replace(record, key=self._prefix + record.key))

    def addresses(self) -> tuple[IpAddress, ...]:
        """Return the addresses through which the store is reached."""
        return self._store.addresses()

    async def close(self) -> None:
        """Close the store, unless other networks also use the store."""
        if self._closes:
            await self._store.close()

    def _ours(self, record: Record) -> Record:
        return replace(record, key=record.key.removeprefix(self._prefix))

    def _our_change(self, change: Change) -> Change:
        match change:
            case PutSeen(record):
                return PutSeen(self._ours(record))
            case DeleteSeen(key, revision):
                return DeleteSeen(key.removeprefix(self._prefix), revision)


class _PrefixedWatcher:
    def __init__(self, watcher: Watcher, our: Callable[[Change], Change]) -> None:
        self._watcher = watcher
        self._our = our

    async def next(self) -> StoreChanges:
        changes = await self._watcher.next()
        return StoreChanges(tuple(map(self._our, changes.changes)), changes.revision)
