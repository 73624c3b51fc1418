"""The store, asked directly: what the control client answers too, but fresh, and with the leases' expiry."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pyflannel.assembly.store import open_store
from pyflannel.errors import StoreError, WireError
from pyflannel.model.lease import Lease
from pyflannel.model.lease_entry import LeaseEntry
from pyflannel.model.secret import Secret
from pyflannel.model.store_record import Put, Record
from pyflannel.ports.store import Store
from pyflannel.wire.lease_record import CONFIG, SUBNETS, lease_of
from pyflannel.wire.network_config_json import parse_network_config

log = logging.getLogger(__name__)

_QUESTIONS_AT_ONCE = 32
"""Expiries asked for at the same time: enough to hide the way to the store, too few to be a load."""


class StoreClient:
    """Reads and writes the network that a store holds; a call raises StoreError when it does not answer."""

    def __init__(self, store: Store) -> None:
        """Ask `store`, which stays the caller's to close."""
        self._store = store

    async def config_text(self) -> str | None:
        """Return the network config as it is written, or None."""
        record = await self._store.get(CONFIG)
        return None if record is None else record.value.decode(errors="replace")

    async def set_config(self, text: str) -> None:
        """Write the network config.

        Raises:
            ConfigError: it admits no plan; nothing was written.
        """
        parse_network_config(text)
        await self._store.write(Put(key=CONFIG, value=text.encode(), ttl_s=None, expected=None))

    async def leases(self) -> list[LeaseEntry]:
        """Return every lease; a key that holds none is said in the log and left out."""
        listing = await self._store.list(SUBNETS)
        turns = asyncio.Semaphore(_QUESTIONS_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as tasks:
                asked = [
                    tasks.create_task(self._entry(record, lease, turns))
                    for record in listing.records
                    if (lease := _lease(record)) is not None
                ]
        except* StoreError as failures:
            raise failures.exceptions[0] from None  # one store, one cause
        return [each.result() for each in asked]

    async def _entry(self, record: Record, lease: Lease, turns: asyncio.Semaphore) -> LeaseEntry:
        async with turns:
            expires_in_s = await self._store.time_to_live(record) if lease.has_ttl else None
        return LeaseEntry.of(lease, expires_in_s=expires_in_s)


@asynccontextmanager
async def store_client(url: str, password: Secret | None = None) -> AsyncIterator[StoreClient]:
    """Open the store at `url` for the length of a block.

    Raises:
        UsageError: no store has such a URL, or its user has no password.
    """
    store = open_store(url, password)
    try:
        yield StoreClient(store)
    finally:
        await store.close()


def _lease(record: Record) -> Lease | None:
    try:
        return lease_of(record)
    except WireError as error:
        log.warning("skipped a key that is no lease: %s", error)
        return None
