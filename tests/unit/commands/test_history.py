"""The history of leases and of the network config contains all changes that the store still has."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.commands import history
from pyflannel.commands.history import Dates, config_history, lease_history
from pyflannel.errors import StoreError
from pyflannel.model.store_record import Delete, Put, StoreChanges

KEY = "subnets/10.100.1.0-24"
FIRST = b'{"PublicIP":"10.0.0.1","Pyflannel":{"Owner":"5d0f","Host":"docker1"}}'
VXLAN = b'{"PublicIP":"10.0.0.1","BackendType":"vxlan","Pyflannel":{"Owner":"5d0f","Host":"docker1"}}'
OTHER = b'{"PublicIP":"10.0.0.2","Pyflannel":{"Owner":"77d2","Host":"docker2"}}'
ORIGINAL = b'{"PublicIP":"10.0.0.3"}'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_QUIET_S", 0.02)


@pytest.fixture
def store() -> FakeStore:
    return FakeStore(FakeClock())


def put(store: FakeStore, value: bytes, ttl_s: int | None = 86400, *, key: str = KEY) -> None:
    store.change(Put(key=key, value=value, ttl_s=ttl_s, expected=None))


def events(store: FakeStore) -> list[tuple[str, Any]]:
    return [(one.event, one.host_name) for one in asyncio.run(lease_history(store)).changes]


def test_the_life_of_a_lease_is_named(store: FakeStore) -> None:
    for value, ttl_s in [(FIRST, 60), (FIRST, 60), (VXLAN, 60), (VXLAN, None), (VXLAN, 60), (OTHER, 60)]:
        put(store, value, ttl_s)
    put(store, b"{", 60)
    put(store, OTHER, 60)
    store.change(Delete(key=KEY, expected=None))
    put(store, FIRST, None)

    assert events(store) == [
        ("acquired", "docker1"),
        ("renewed", "docker1"),
        ("changed", "docker1"),
        ("reserved", "docker1"),
        ("expires", "docker1"),
        ("transferred", "docker2"),
        ("unreadable", None),
        ("written", "docker2"),
        ("removed", "docker2"),
        ("reserved", "docker1"),
    ]


def test_a_host_of_the_original_is_known_by_its_address(store: FakeStore) -> None:
    put(store, ORIGINAL)
    put(store, ORIGINAL.replace(b".3", b".4"))

    assert [event for event, _ in events(store)] == ["acquired", "transferred"]


def test_a_lease_whose_deletion_is_the_last_change_is_in_the_history(store: FakeStore) -> None:
    put(store, FIRST)
    store.change(Delete(key=KEY, expected=None))

    assert events(store) == [("acquired", "docker1"), ("removed", "docker1")]


def test_a_history_without_leases_is_empty_and_complete(store: FakeStore) -> None:
    found = asyncio.run(lease_history(store))

    assert (found.changes, found.begin, found.is_complete) == ((), 1, True)


def test_after_a_compaction_its_start_is_named_and_existing_leases_remain(store: FakeStore) -> None:
    put(store, FIRST, key="subnets/10.100.3.0-24")
    put(store, FIRST)
    put(store, OTHER, key="subnets/10.100.2.0-24")
    put(store, VXLAN)
    store.compact(4)
    put(store, OTHER, key="subnets/10.100.2.0-24")

    found = asyncio.run(lease_history(store))

    assert found.begin == 5
    assert [(one.event, str(one.subnet), one.revision) for one in found.changes] == [
        ("acquired", "10.100.3.0/24", 2),
        ("written", "10.100.1.0/24", 5),
        ("written", "10.100.2.0/24", 6),
    ]


def test_a_store_that_sends_no_changes_leaves_the_history_incomplete(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_READ_S", 0.05)
    put(store, FIRST)

    class Silent:
        async def next(self) -> StoreChanges:
            await asyncio.Event().wait()
            raise AssertionError

    @asynccontextmanager
    async def watch(_: str, __: int) -> AsyncIterator[Silent]:
        yield Silent()

    monkeypatch.setattr(store, "watch", watch)

    assert not asyncio.run(lease_history(store)).is_complete


def test_an_unreachable_store_is_an_error(store: FakeStore) -> None:
    store.is_unreachable = True

    with pytest.raises(StoreError):
        asyncio.run(lease_history(store))


def test_versions_of_the_config_are_listed_and_other_keys_are_not(store: FakeStore) -> None:
    put(store, b"one", None, key="config")
    put(store, b"other", None, key="config-of-another-program")
    put(store, b"two", None, key="config")
    store.change(Delete(key="config", expected=None))

    found = asyncio.run(config_history(store))

    assert [one.text for one in found.versions] == ["one", "two", None]


def test_a_time_is_the_earliest_of_a_later_lease() -> None:
    dates = Dates([(3, 100.0), (5, 300.0), (7, 200.0)])

    assert [dates.not_after(revision) for revision in (1, 3, 4, 5, 7, 8)] == [100, 100, 200, 200, 200, None]
