"""The store of leases, as the engine sees it: a small key-value store with etcd's semantics."""

from collections.abc import AsyncIterator
from typing import Protocol

from pyflannel.model.store_record import Changes, Conflict, Delete, Listing, Put, Record, Written


class Store(Protocol):
    """Keys under one prefix, with revisions, conditional writes, TTLs and watches.

    Every call raises StoreError when the store cannot be reached or refuses, within a bounded time;
    it may then be called again. A write that raised may or may not have taken effect.
    """

    async def get(self, key: str) -> Record | None:
        """Return the record at exactly this key, or None; linearisable."""

    async def list(self, prefix: str) -> Listing:
        """Return all records whose key starts with `prefix`, at one revision, from which to watch."""

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write, atomically; a lost condition leaves nothing behind."""

    def watch(self, prefix: str, after: int) -> AsyncIterator[Changes]:
        """Yield every change of keys under `prefix` later than revision `after`, each exactly once, in order.

        No changes up to `after` come first, as soon as the watch is open. Ends only by an error.

        Raises:
            CompactedError: the history no longer reaches back to `after`.
            StoreError: the connection was lost; watch again from the last revision seen.
        """

    async def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, or None when it never does."""

    async def close(self) -> None:
        """Let go of connections and files."""
