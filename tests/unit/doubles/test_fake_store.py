"""The faults of the double. tests/e2e/test_store_behaviour.py shows that it behaves like a store."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import Delete, Put, StoreChanges, Written

PUT = Put(key="subnets/a", value=b"{}", ttl_s=None, expected=None)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(FakeClock())


async def opened(store: FakeStore, after: int) -> StoreChanges:
    """Return the first changes of a watch."""
    async with store.watch("", after) as watch:
        return await watch.next()


CALLS: list[Callable[[FakeStore], Awaitable[object]]] = [
    lambda store: store.get("config"),
    lambda store: store.list(""),
    lambda store: store.write(PUT),
    lambda store: opened(store, 0),
]


@pytest.mark.parametrize("call", CALLS)
def test_an_unreachable_store_fails_every_call(
    store: FakeStore, call: Callable[[FakeStore], Awaitable[object]]
) -> None:
    async def test() -> None:
        await store.write(PUT)
        store.is_unreachable = True
        with pytest.raises(StoreError, match="unreachable"):
            await call(store)

        store.is_unreachable = False

        await call(store)

    asyncio.run(test())


def test_faults_concern_one_client_only(store: FakeStore) -> None:
    async def test() -> None:
        other = store.client()
        store.is_unreachable = True

        await other.write(PUT)

        store.is_unreachable = False
        assert await store.get("subnets/a") == await other.get("subnets/a")

    asyncio.run(test())


@pytest.mark.parametrize(
    "fault", [FakeStore.cut_watches, lambda store: setattr(store, "is_unreachable", True)]
)
def test_a_watch_ends_when_it_is_cut(store: FakeStore, fault: Callable[[FakeStore], None]) -> None:
    async def test() -> None:
        async with store.watch("", 1) as watch, asyncio.timeout(20):
            assert (await watch.next()).changes == ()  # the watch is open
            waiting = asyncio.ensure_future(watch.next())
            await asyncio.sleep(0)

            fault(store)

            with pytest.raises(StoreError):
                await waiting

    asyncio.run(test())


def test_the_requested_number_of_calls_fails(store: FakeStore) -> None:
    async def test() -> None:
        store.fail_next(2)
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.write(PUT)
        assert (await store.list("")).records == ()

        assert isinstance(await store.write(PUT), Written)

    asyncio.run(test())


def test_a_write_with_a_lost_answer_is_performed(store: FakeStore) -> None:
    async def test() -> None:
        store.lose_next_answer()

        with pytest.raises(StoreError):
            await store.write(PUT)

        assert await store.get("subnets/a") is not None
        assert isinstance(await store.write(Delete(key="subnets/a", expected=None)), Written)

    asyncio.run(test())


def test_a_watch_behind_the_compaction_gets_an_error(store: FakeStore) -> None:
    async def test() -> None:
        async with store.watch("", 1) as watch:
            assert (await watch.next()).changes == ()  # the watch is open
            await store.write(PUT)
            await watch.next()
            await store.write(PUT)
            await store.write(PUT)
            store.compact()

            with pytest.raises(CompactedError):
                await watch.next()

    asyncio.run(test())


def test_a_store_that_lost_its_data_starts_again(store: FakeStore) -> None:
    """A watch cannot continue from a revision that the store has not reached again."""

    async def test() -> None:
        store.change(PUT)
        seen = store.listing().revision

        store.lose_data(1)

        assert store.listing().records == ()
        with pytest.raises(CompactedError):
            await opened(store, seen)
        assert isinstance(await store.write(PUT), Written)

    asyncio.run(test())


def test_a_store_that_has_grown_past_the_known_revision_can_be_watched(store: FakeStore) -> None:
    """The watch does not report the lost changes."""

    async def test() -> None:
        store.change(PUT)
        seen = store.listing().revision

        store.lose_data(seen)

        assert (await opened(store, seen)).changes == ()
        assert store.listing().records == ()

    asyncio.run(test())


def test_direct_calls_have_no_faults(store: FakeStore) -> None:
    store.is_unreachable = True

    store.change(PUT)

    assert [record.key for record in store.listing().records] == [PUT.key]
