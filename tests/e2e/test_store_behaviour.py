"""Every store has the same behaviour: the double in memory, the embedded store and a real etcd."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from operator import attrgetter
from pathlib import Path

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.assembly.stores import open_store
from pyflannel.errors import CompactedError
from pyflannel.kernel.host.inotify import InotifyFileWatch
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.model.store_record import (
    Change,
    Conflict,
    Delete,
    DeleteSeen,
    Put,
    PutSeen,
    Record,
    StoreChanges,
    Unchanged,
    Written,
)
from pyflannel.ports import Store, Watcher
from pyflannel.stores.embedded.database import Database
from pyflannel.stores.embedded.store import EmbeddedStore

PATIENCE_S = 60
TTL_S = 4
"""A TTL that is long enough for the writes before its end on a busy machine."""

HISTORY = 40


class Subject:
    """The store under test: opens clients, compacts its history, and advances its time."""

    def __init__(self, open_client: Callable[[], Store]) -> None:
        self._open_client = open_client
        self._clients: list[Store] = []
        self.pass_time: Callable[[float], Awaitable[None]] = asyncio.sleep

    def client(self) -> Store:
        self._clients.append(self._open_client())
        return self._clients[-1]

    async def compact(self) -> None:
        """Remove all earlier revisions."""
        raise NotImplementedError

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


class FakeSubject(Subject):
    def __init__(self) -> None:
        clock = FakeClock()
        self._store = FakeStore(clock)
        super().__init__(self._store.client)
        self.pass_time = clock.advance

    async def compact(self) -> None:
        self._store.compact()


class EmbeddedSubject(Subject):
    def __init__(self, path: Path) -> None:
        def open_client() -> Store:
            return EmbeddedStore(
                path, Database(path, BoottimeClock(), "this boot", history=HISTORY), InotifyFileWatch()
            )

        super().__init__(open_client)

    async def compact(self) -> None:
        """Write enough to let the store compact its history."""
        client = self.client()
        for number in range(3 * HISTORY):
            await put(client, "filler", value=b"%d" % number)


class EtcdSubject(Subject):
    def __init__(self, etcd, prefix: str) -> None:
        super().__init__(lambda: open_store(f"etcd://{etcd.endpoint}{prefix}"))
        self._etcd = etcd

    async def compact(self) -> None:
        revision = (await self.client().list("")).revision
        await asyncio.to_thread(self._etcd.ctl, "compact", "--physical", str(revision))


@pytest.fixture(params=["fake", "embedded", "etcd"])
def subject(request: pytest.FixtureRequest, tmp_path: Path) -> Subject:
    match request.param:
        case "fake":
            return FakeSubject()
        case "embedded":
            return EmbeddedSubject(tmp_path / "store" / "leases.db")
        case _:
            return EtcdSubject(request.getfixturevalue("shared_etcd"), f"/test/{uuid.uuid4().hex}")


@pytest.fixture
def run(subject: Subject) -> Callable[[Awaitable[None]], None]:
    """Run a test's coroutine with a deadline, then close the clients."""

    async def whole(test: Awaitable[None]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            try:
                await test
            finally:
                await subject.close()

    return lambda test: asyncio.run(whole(test))


async def put(
    store: Store, key: str, *, value: bytes = b"{}", ttl_s: int | None = None, expected: int | None = None
) -> int:
    written = await store.write(Put(key=key, value=value, ttl_s=ttl_s, expected=expected))
    assert isinstance(written, Written)
    return written.revision


async def delete(store: Store, key: str, *, expected: int | None = None) -> int:
    written = await store.write(Delete(key=key, expected=expected))
    assert isinstance(written, Written)
    return written.revision


@contextlib.asynccontextmanager
async def watching(store: Store, prefix: str, after: int) -> AsyncIterator[Watcher]:
    async with store.watch(prefix, after) as changes:
        assert await changes.next() == StoreChanges((), after)  # the watch is open
        yield changes


async def seen(watch: Watcher, count: int) -> list[Change]:
    """Return the next `count` changes of a watch. The revisions of successive changes never decrease."""
    found: list[Change] = []
    revision = 0
    while len(found) < count:
        changes = await watch.next()
        assert changes.revision >= max([revision, *map(revision_of, changes.changes)])
        revision = changes.revision
        found += changes.changes
    assert len(found) == count
    return found


revision_of = attrgetter("revision")


def test_a_record_reads_back_as_it_was_written(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store, value = subject.client(), bytes(range(256))

        revision = await put(store, "config", value=value, expected=0)

        expected = Record(key="config", value=value, revision=revision, lease_id=0)
        assert await store.get("config") == expected
        assert await subject.client().get("config") == expected
        assert await store.get("conf") is None
        assert await store.get("config2") is None

    run(test())


def test_a_record_contains_the_creation_revision_of_its_key_or_nothing(
    subject: Subject, run: Callable
) -> None:
    """A write keeps the creation revision, and a deletion removes it."""

    async def test() -> None:
        store = subject.client()
        first = await put(store, "subnets/a")
        await put(store, "subnets/a")
        (changed,) = (await store.list("")).records
        await delete(store, "subnets/a")
        again = await put(store, "subnets/a")
        (created_again,) = (await store.list("")).records

        assert (changed.created, created_again.created) in ((first, again), (0, 0))

    run(test())


def test_a_create_is_refused_if_the_key_exists(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store, other = subject.client(), subject.client()
        revision = await put(store, "subnets/a", value=b"first", ttl_s=600, expected=0)

        conflict = await other.write(Put(key="subnets/a", value=b"second", ttl_s=600, expected=0))

        assert isinstance(conflict, Conflict)
        assert conflict.current == await store.get("subnets/a")
        assert conflict.current is not None
        assert (conflict.current.value, conflict.current.revision) == (b"first", revision)

    run(test())


def test_a_change_is_refused_unless_the_revision_is_as_expected(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store, other = subject.client(), subject.client()
        first = await put(store, "subnets/a", expected=0)
        second = await put(other, "subnets/a", value=b"2", expected=first)

        late_put = await store.write(Put(key="subnets/a", value=b"3", ttl_s=None, expected=first))
        late_delete = await store.write(Delete(key="subnets/a", expected=first))

        current = Record(key="subnets/a", value=b"2", revision=second, lease_id=0)
        assert late_put == late_delete == Conflict(current)
        assert await store.get("subnets/a") == current

    run(test())


def test_a_change_of_an_absent_key_is_refused(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        revision = await put(store, "subnets/a")
        await delete(store, "subnets/a", expected=revision)

        renewal = await store.write(Put(key="subnets/a", value=b"", ttl_s=600, expected=revision))
        removal = await store.write(Delete(key="subnets/a", expected=revision))

        assert renewal == removal == Conflict(None)
        assert await store.get("subnets/a") is None

    run(test())


def test_a_write_is_refused_unless_its_conditions_hold(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store, other = subject.client(), subject.client()

        def create(given: Unchanged) -> Put:
            return Put(key="subnets/a", value=b"1", ttl_s=600, expected=0, given=given)

        revision = await put(other, "config", value=b"1")
        newer = await put(other, "config", value=b"2")
        refused = [
            await store.write(create(Unchanged("config", revision))),
            await store.write(create(Unchanged("config", 0))),
            await store.write(create(Unchanged("absent", newer))),
        ]
        absent = await store.get("subnets/a")
        written = await store.write(create(Unchanged("config", newer)))

        assert refused == [Conflict(None)] * 3
        assert absent is None
        assert isinstance(written, Written)
        again = Put(key="subnets/a", value=b"2", ttl_s=None, expected=None, given=Unchanged("none", 0))
        assert isinstance(await store.write(again), Written)

    run(test())


def test_writes_without_condition_always_take_effect(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        await put(store, "config", value=b"1")
        await put(store, "config", value=b"2")
        assert (await store.list("config")).records[0].value == b"2"

        await delete(store, "config")
        await delete(store, "config")

        assert await store.get("config") is None

    run(test())


def test_one_of_many_simultaneous_creates_succeeds(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        clients = [subject.client() for _ in range(6)]

        results = await asyncio.gather(
            *(
                client.write(Put(key="subnets/a", value=b"%d" % number, ttl_s=600, expected=0))
                for number, client in enumerate(clients)
            )
        )

        (winner,) = (number for number, result in enumerate(results) if isinstance(result, Written))
        record = await clients[0].get("subnets/a")
        assert record is not None
        assert record.value == b"%d" % winner
        assert {result.current for result in results if isinstance(result, Conflict)} == {record}

    run(test())


def test_a_listing_is_sorted_and_contains_only_its_prefix(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        for key in (
            "subnets/10.5.9.0-24",
            "config",
            "subnets-old/1",
            "subnets/10.5.10.0-24",
            "subnets/ü",
            "subnet",
        ):
            await put(store, key)

        listing = await store.list("subnets/")

        assert [record.key for record in listing.records] == [
            "subnets/10.5.10.0-24",
            "subnets/10.5.9.0-24",
            "subnets/ü",
        ]
        assert len((await store.list("")).records) == 6
        assert (await store.list("none/")).records == ()

    run(test())


def test_a_watch_continues_at_the_revision_of_a_listing(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store, other = subject.client(), subject.client()
        await put(store, "subnets/a")
        listing = await store.list("subnets/")
        revision = await put(other, "subnets/b", value=b"b")

        async with watching(store, "subnets/", listing.revision) as watch:
            changes = await seen(watch, 1)

        assert changes == [PutSeen(Record(key="subnets/b", value=b"b", revision=revision))]

    run(test())


def test_a_watch_sees_every_change_once_and_in_order(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store, other = subject.client(), subject.client()
        start = (await store.list("")).revision

        async with watching(store, "subnets/", start) as watch:
            first = await put(other, "subnets/a", value=b"1", expected=0)
            assert await seen(watch, 1) == [PutSeen(Record(key="subnets/a", value=b"1", revision=first))]
            second = await put(other, "subnets/a", value=b"2", expected=first)
            await put(other, "subnets-old/a")
            await put(other, "config")
            third = await delete(other, "subnets/a", expected=second)
            fourth = await put(store, "subnets/b", value=b"3", expected=0)

            assert await seen(watch, 3) == [
                PutSeen(Record(key="subnets/a", value=b"2", revision=second)),
                DeleteSeen("subnets/a", third),
                PutSeen(Record(key="subnets/b", value=b"3", revision=fourth)),
            ]
        assert start < first < second < third < fourth

    run(test())


def test_a_watch_from_any_revision_replays_later_changes(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        await put(store, "subnets/a")
        revisions = [await put(store, "subnets/a", value=b"%d" % number) for number in range(5)]
        revisions.append(await delete(store, "subnets/a"))

        for position, after in enumerate(revisions[:-1]):
            async with watching(store, "subnets/", after) as watch:
                changes = await seen(watch, len(revisions) - position - 1)
            assert list(map(revision_of, changes)) == revisions[position + 1 :]

    run(test())


def test_two_watches_of_one_client_are_independent(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        start = (await store.list("")).revision
        async with watching(store, "subnets/", start) as subnets, watching(store, "claims/", start) as claims:
            await put(store, "subnets/a")
            await put(store, "claims/a")

            assert [change.record.key for change in await seen(claims, 1)] == ["claims/a"]
            assert [change.record.key for change in await seen(subnets, 1)] == ["subnets/a"]

    run(test())


def test_a_long_replay_arrives_completely(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        start = (await store.list("")).revision
        revisions = [await put(store, f"subnets/{n}", value=b"x" * 5000) for n in range(HISTORY - 1)]

        async with watching(store, "subnets/", start) as watch:
            assert list(map(revision_of, await seen(watch, len(revisions)))) == revisions

    run(test())


def test_a_key_with_a_ttl_expires_and_the_watch_reports_it(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        revision = await put(store, "claims/a", ttl_s=TTL_S, expected=0)
        await put(store, "config")
        record = await store.get("claims/a")
        assert record is not None
        assert record.lease_id != 0

        async with watching(subject.client(), "", revision + 1) as watch:
            waiting = asyncio.ensure_future(seen(watch, 1))
            await subject.pass_time(TTL_S)
            (change,) = await waiting

        assert isinstance(change, DeleteSeen)
        assert change.key == "claims/a"
        assert await store.get("claims/a") is None
        assert await store.time_to_live(record) == 0
        assert [record.key for record in (await store.list("")).records] == ["config"]
        await put(store, "claims/a", expected=0)

    run(test())


def test_a_renewal_restarts_the_ttl(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        first = await put(store, "subnets/a", ttl_s=TTL_S, expected=0)
        old = await store.get("subnets/a")
        assert old is not None

        second = await put(store, "subnets/a", ttl_s=600, expected=first)

        renewed = await store.get("subnets/a")
        assert renewed is not None
        assert renewed.lease_id not in (0, old.lease_id)
        ttl_s = await store.time_to_live(renewed)
        assert ttl_s is not None
        assert 500 < ttl_s <= 600
        await subject.pass_time(TTL_S + 1)
        assert await store.get("subnets/a") == renewed
        assert renewed.revision == second

    run(test())


def test_a_key_written_again_without_ttl_is_permanent(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        first = await put(store, "subnets/a", ttl_s=TTL_S, expected=0)

        await put(store, "subnets/a", value=b"reserved", expected=first)

        reservation = await store.get("subnets/a")
        assert reservation is not None
        assert reservation.lease_id == 0
        assert await store.time_to_live(reservation) is None
        await subject.pass_time(TTL_S + 1)
        assert await store.get("subnets/a") == reservation

    run(test())


def test_a_watch_from_before_the_compaction_reports_the_compaction(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        old = await put(store, "subnets/a")
        await put(store, "subnets/a")
        await put(store, "subnets/a")
        await subject.compact()

        with pytest.raises(CompactedError) as error:
            async with watching(store, "subnets/", old) as watch:
                await watch.next()
        assert error.value.oldest > old

        listing = await store.list("subnets/")
        async with watching(store, "subnets/", listing.revision) as watch:
            revision = await put(store, "subnets/b")
            assert list(map(revision_of, await seen(watch, 1))) == [revision]

    run(test())


def test_a_compacted_deletion_is_never_lost_silently(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store = subject.client()
        known = await put(store, "subnets/a")
        await delete(store, "subnets/a")
        await subject.compact()

        # The watch delivers the deletion, or the error that the deletion was compacted. Without the deletion
        # or the error, a peer would remain forever.
        with contextlib.suppress(CompactedError):
            async with watching(store, "subnets/", known) as watch:
                (change,) = await seen(watch, 1)
                assert isinstance(change, DeleteSeen)

    run(test())


def test_an_open_watch_survives_a_compaction(subject: Subject, run: Callable) -> None:
    async def test() -> None:
        store, other = subject.client(), subject.client()
        start = await put(store, "subnets/a")
        async with watching(store, "subnets/", start) as watch:
            first = await put(other, "subnets/a")
            assert list(map(revision_of, await seen(watch, 1))) == [first]
            await subject.compact()

            with contextlib.suppress(CompactedError):  # allowed if the watch had not read all of the writes
                second = await put(other, "subnets/a")
                assert list(map(revision_of, await seen(watch, 1))) == [second]

    run(test())


def test_a_revision_that_the_store_never_had_is_refused(subject: Subject, run: Callable) -> None:
    """A watch must not wait for an old revision after the store was restored or created again."""

    async def test() -> None:
        store = subject.client()
        revision = await put(store, "subnets/a")

        with pytest.raises(CompactedError):
            async with watching(store, "subnets/", revision + 1_000_000) as watch:
                await watch.next()

    run(test())
