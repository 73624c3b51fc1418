"""The double and the embedded store give equal answers to any requests, with any expiries."""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.errors import CompactedError
from pyflannel.model.store_record import Change, Delete, Put, StoreChanges, Unchanged
from pyflannel.stores.embedded.database import Database

KEYS = st.sampled_from(["config", "subnets/a", "subnets/b", "subnets-old/a", "claims/a"])
OPERATIONS = st.one_of(
    st.builds(
        Put,
        key=KEYS,
        value=st.binary(max_size=3),
        ttl_s=st.none() | st.integers(1, 20),
        expected=st.none() | st.integers(0, 12),
        given=st.none() | st.builds(Unchanged, key=KEYS, revision=st.integers(0, 12)),
    ),
    st.builds(Delete, key=KEYS, expected=st.none() | st.integers(0, 12)),
)
RENEWALS = st.builds(Put, key=KEYS, value=st.just(b"new"), ttl_s=st.integers(1, 20), expected=st.just(-1))
"""A write that expects the present record; its revision is filled in when it is performed."""

STEPS = st.lists(OPERATIONS | RENEWALS | st.floats(0, 15, allow_nan=False), max_size=25)


@given(steps=STEPS, after=st.integers(0, 40), prefix=st.sampled_from(["", "subnets/", "claims/", "none/"]))
def test_the_double_and_the_embedded_store_give_equal_answers(
    steps: list[Put | Delete | float], after: int, prefix: str
) -> None:
    async def test(path: Path) -> None:
        clock = FakeClock()
        double, database = FakeStore(clock), Database(path, clock, "a boot")
        for step in steps:
            if isinstance(step, float):
                await clock.advance(step)
                continue
            if step.expected == -1:
                current = await double.get(step.key)
                step = replace(step, expected=current.revision if current else 0)
            assert database.write(step) == await double.write(step)
            assert database.get(step.key) == await double.get(step.key)

        listing = await double.list(prefix)
        assert database.list(prefix) == listing
        for record in listing.records:
            assert database.time_to_live(record) == await double.time_to_live(record)
        assert changes_in(database, prefix, after) == await changes_of(double, clock, prefix, after)
        database.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(test(Path(directory) / "leases.db"))


def changes_in(database: Database, prefix: str, after: int) -> tuple[Change, ...] | None:
    try:
        return database.changes(prefix, after).changes
    except CompactedError:
        return None


async def changes_of(
    double: FakeStore, clock: FakeClock, prefix: str, after: int
) -> tuple[Change, ...] | None:
    async with AsyncExitStack() as opened:
        try:
            watch = await opened.enter_async_context(double.watch(prefix, after))
        except CompactedError:
            return None
        await watch.next()
        waiting: asyncio.Task[StoreChanges] = asyncio.ensure_future(watch.next())
        await clock.settle()
        if not waiting.done():
            waiting.cancel()
            await asyncio.wait([waiting])
            return ()
        return waiting.result().changes
