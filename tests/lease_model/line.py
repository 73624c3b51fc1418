"""A host's connection to the store, with delays and failures. The writes of the host are checked."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ipaddress import IPv4Address
from random import Random

from doubles.fake_store import FakeStore
from lease_model.ledger import Ledger, request_of
from lease_model.world import StoreState
from pyflannel.errors import StoreError
from pyflannel.model.lease_protocol import DeleteLease, PutLease
from pyflannel.model.store_record import Conflict, Delete, Listing, Put, Record, StoreChanges, Written
from pyflannel.ports import Watcher

LATENCY_S = 3.0
"""Maximum time in seconds of a request, a response or a change."""

CALL_S = 5.0
"""Maximum time in seconds until a call to an unreachable store fails."""

CALL_IN_LONG_ABSENCE_S = 1800.0
"""Maximum time in seconds of a call during a long failure, to skip useless attempts. A call fails at the end
of the failure at the latest."""

Judge = Callable[[StoreState, StoreState, PutLease | DeleteLease], None]


class Line:
    """The store of one host, with delays and the faults of `client`.

    If a daemon is killed during a write, the write may still arrive. `judge` is called for each write that
    took effect, with the store before and after it, and the write.

    Attributes:
        calls: number of calls in transit.
    """

    def __init__(self, client: FakeStore, ledger: Ledger, name: str, random: Random, judge: Judge) -> None:
        self.client = client
        self.calls = 0
        self._ledger = ledger
        self._name = name
        self._random = random
        self._judge = judge
        self._away_since = 0.0
        self._away_until = 0.0
        self._is_back = asyncio.Event()

    def go_away(self, seconds: float) -> None:
        """Let the store be unreachable for this time, or longer if it is already unreachable."""
        loop = asyncio.get_running_loop()
        if not self.client.is_unreachable:
            self._away_since = loop.time()
            self._is_back.clear()
        self.client.is_unreachable = True
        self._away_until = max(self._away_until, loop.time() + seconds)
        loop.call_at(self._away_until, self._end_absence, self._away_until)

    def come_back(self) -> None:
        """End every failure."""
        self._away_until = 0.0
        self.client.is_unreachable = False
        self._is_back.set()

    def _end_absence(self, until: float) -> None:
        if until == self._away_until:
            self.come_back()

    async def get(self, key: str) -> Record | None:
        """Return the record at this key, or None."""
        with self._call():
            await self._travel()
            record = await self.client.get(key)
            await self._travel_back()
            return record

    async def list(self, prefix: str) -> Listing:
        """Return all records whose key starts with `prefix`, in the order of their keys."""
        with self._call():
            await self._travel()
            listing = await self.client.list(prefix)
            await self._travel_back()
            return listing

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write."""
        with self._call():
            try:
                await self._travel()
            except asyncio.CancelledError:
                if not self.client.is_unreachable and self._random.random() < 0.5:
                    loop = asyncio.get_running_loop()
                    loop.call_later(self._latency(), self._arrive_late, operation)
                raise
            written = await self._perform(operation)
            await self._travel_back()
            return written

    @asynccontextmanager
    async def watch(self, prefix: str, after: int) -> AsyncIterator[Watcher]:
        """Watch the keys under `prefix` for changes after `after`, within the block."""
        await self._travel()
        async with self.client.watch(prefix, after) as watcher:
            yield _DistantWatcher(watcher, self._latency)

    async def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, or None if it never expires."""
        await self._travel()
        return await self.client.time_to_live(record)

    async def age(self, record: Record) -> float | None:
        """Return the seconds since a record with a TTL was written; None if it is unknown."""
        await self._travel()
        return await self.client.age(record)

    def addresses(self) -> tuple[IPv4Address, ...]:
        """Return no address, because the connection uses no route."""
        return ()

    async def close(self) -> None:
        """End the watches."""
        await self.client.close()

    @contextmanager
    def _call(self) -> Iterator[None]:
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    async def _perform(self, operation: Put | Delete) -> Written | Conflict:
        before = self._ledger.state()
        try:
            return await self.client.write(operation)
        finally:
            revision = self.client.listing().revision
            if revision != before.revision:
                self._ledger.wrote(operation.key, self._name)
                request = request_of(operation, before)
                if request is not None:
                    self._judge(before, self._ledger.state(), request)

    def _arrive_late(self, operation: Put | Delete) -> None:
        asyncio.ensure_future(self._perform(operation)).add_done_callback(_forget)

    async def _travel(self) -> None:
        await asyncio.sleep(self._latency())
        if self.client.is_unreachable:
            absent_s = asyncio.get_running_loop().time() - self._away_since
            longest_s = min(max(CALL_S, absent_s / 4), CALL_IN_LONG_ABSENCE_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._random.random() * longest_s):
                    await self._is_back.wait()
            raise StoreError("fake store: it did not answer", hint="Try again.")

    async def _travel_back(self) -> None:
        await asyncio.sleep(self._latency())
        if self.client.is_unreachable:
            raise StoreError("fake store: it went away before it answered", hint="Try again.")

    def _latency(self) -> float:
        return self._random.random() ** 3 * LATENCY_S


class _DistantWatcher:
    def __init__(self, watcher: Watcher, latency: Callable[[], float]) -> None:
        self._watcher = watcher
        self._latency = latency

    async def next(self) -> StoreChanges:
        changes = await self._watcher.next()
        await asyncio.sleep(self._latency())
        return changes


def _forget(performed: "asyncio.Future[Written | Conflict]") -> None:
    if not performed.cancelled():
        performed.exception()  # mark the exception as read, because the caller was killed
