"""Requests to the store are counted by operation and result."""

import asyncio
from collections.abc import Mapping

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import Put, Record
from pyflannel.stores.counted import CountedStore


def counts(store: CountedStore) -> Mapping[str, int]:
    return {f"{one.operation} {one.result}": one.count for one in store.requests}


def test_each_request_is_counted_by_its_result() -> None:
    async def life() -> CountedStore:
        fake = FakeStore(FakeClock())
        store = CountedStore(fake)
        await store.write(Put(key="config", value=b"{}", ttl_s=None, expected=None))
        await store.write(Put(key="config", value=b"[]", ttl_s=None, expected=77))
        await store.get("config")
        await store.list("")
        fake.is_unreachable = True
        for request in (store.get("config"), store.list("")):
            with pytest.raises(StoreError):
                await request
        with pytest.raises(StoreError):
            async with store.watch("", 0):
                pass
        return store

    assert counts(asyncio.run(life())) == {
        "get ok": 1,
        "get error": 1,
        "list ok": 1,
        "list error": 1,
        "watch error": 1,
        "write ok": 1,
        "write conflict": 1,
    }


def test_a_lost_watch_is_counted_by_its_reason() -> None:
    async def life() -> CountedStore:
        fake = FakeStore(FakeClock())
        store = CountedStore(fake)
        async with store.watch("", (await store.list("")).revision) as watcher:
            await watcher.next()
            fake.cut_watches()
            with pytest.raises(StoreError):
                await watcher.next()
        for number in range(3):
            await store.write(Put(key=str(number), value=b"", ttl_s=None, expected=None))
        fake.compact()
        with pytest.raises(CompactedError):
            async with store.watch("", 1) as watcher:
                await watcher.next()
        return store

    store = asyncio.run(life())

    assert store.lost_watches.get("lost") == 1
    assert sum(store.lost_watches.values()) + counts(store).get("watch error", 0) == 2


def test_the_duration_of_the_latest_answer_and_its_time_are_known() -> None:
    clock = FakeClock()
    began = clock.now()

    class SlowStore(FakeStore):
        async def get(self, key: str) -> Record | None:
            await clock.advance(0.7)
            return await super().get(key)

    async def life() -> CountedStore:
        fake = SlowStore(clock)
        store = CountedStore(fake, clock.now)
        assert (store.answer_s, store.answered_at) == (None, None)
        await store.get("config")
        await clock.advance(3.0)
        fake.is_unreachable = True
        with pytest.raises(StoreError):
            await store.get("config")
        return store

    store = asyncio.run(life())

    assert store.answer_s == pytest.approx(0.7)
    assert store.answered_at == pytest.approx(began + 0.7)


def test_an_announced_change_is_an_answer() -> None:
    async def life() -> tuple[float, float | None]:
        clock = FakeClock()
        fake = FakeStore(clock)
        store = CountedStore(fake, clock.now)
        async with store.watch("", (await store.list("")).revision) as watcher:
            await watcher.next()
            await clock.advance(9.0)
            await fake.write(Put(key="config", value=b"{}", ttl_s=None, expected=None))
            await watcher.next()
            return clock.now(), store.answered_at

    now, answered_at = asyncio.run(life())

    assert answered_at == now
