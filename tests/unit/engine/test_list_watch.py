"""The loop that follows keys of the store, and the log lines about outages of the store."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.engine.list_watch import CALM_S, SHORT_S, STEADY_S, ListAndWatch, StoreLog
from pyflannel.errors import StoreError
from pyflannel.model.store_record import Change, Delete, Listing, Put
from pyflannel.plan.lease.holding import RETRY_MAX_S

REFUSED = StoreError("connection refused", hint="Is it running?")
UNKNOWN_USER = StoreError("authentication failed", hint="Check user and password.")


class Narration:
    """A log of the store, its clock, and the lines in it."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.clock = FakeClock(now=0.0)
        self.store_log = StoreLog(self.clock)
        self._caplog = caplog

    def at(self, second: float) -> StoreLog:
        asyncio.run(self.clock.advance(second - self.clock.now()))
        return self.store_log

    def said(self) -> list[str]:
        return [f"{record.levelname} {record.getMessage()}" for record in self._caplog.records]


@pytest.fixture
def narration(caplog: pytest.LogCaptureFixture) -> Narration:
    caplog.set_level(logging.INFO)
    return Narration(caplog)


AWAY = (
    "WARNING Lost the store connection, data path unaffected retry_in_s=0.1 cause=connection refused."
    " Is it running?"
)
BACK = "INFO Restored the store connection"


def test_an_outage_is_one_line_for_all_users_of_the_store(narration: Narration) -> None:
    for second in range(5):
        narration.at(second).failed("config", REFUSED, 0.1)
        narration.at(second).failed("leases", REFUSED, 0.1)
    narration.at(6).answered("config")
    assert narration.said() == [AWAY]

    narration.at(7).answered("leases")
    narration.at(8).answered("leases")

    assert narration.said() == [AWAY, BACK]


def test_a_cause_with_another_remedy_has_its_own_line(narration: Narration) -> None:
    for error in (REFUSED, UNKNOWN_USER, REFUSED, UNKNOWN_USER):
        narration.store_log.failed("config", error, 0.1)

    assert [text.rpartition("cause=")[2] for text in narration.said()] == [
        "connection refused. Is it running?",
        "authentication failed. Check user and password.",
    ]


def test_a_starting_host_logs_the_failure(narration: Narration) -> None:
    narration.store_log.failed("config", REFUSED, 0.1, "Couldn't fetch network config")

    assert narration.said() == [
        "ERROR Couldn't fetch network config: connection refused. Is it running? Trying again in 0.1 s."
    ]


def test_consecutive_short_outages_are_counted(narration: Narration) -> None:
    """On a link that loses packets, for example, the first outage is logged, and the other outages are logged
    once a minute.
    """
    for second in range(3 * int(CALM_S)):
        narration.at(second).failed("config", REFUSED, 0.1)
        narration.at(second + 0.5).answered("config")

    away, back, *counted = narration.said()
    assert (away, back) == (AWAY, BACK)
    assert (
        counted
        == ["WARNING Lost the store connection 60 times in the last 60 s, each time for less than 10 s"] * 2
    )


def test_a_long_outage_after_a_short_one_is_logged(narration: Narration) -> None:
    narration.at(0).failed("config", REFUSED, 0.1)
    narration.at(1).answered("config")
    for second in range(2, 2 + int(SHORT_S) + 2):
        narration.at(second).failed("config", REFUSED, 0.1)
    narration.at(30).answered("config")

    assert narration.said() == [AWAY, BACK, AWAY, BACK]


def test_an_outage_after_a_quiet_period_is_logged_immediately(narration: Narration) -> None:
    narration.at(0).failed("config", REFUSED, 0.1)
    narration.at(1).answered("config")
    narration.at(1 + CALM_S).failed("config", REFUSED, 0.1)

    assert narration.said() == [AWAY, BACK, AWAY]


def test_an_ended_user_does_not_suppress_the_line_about_the_restored_connection(narration: Narration) -> None:
    narration.store_log.failed("config of blue", REFUSED, 0.1)
    narration.store_log.failed("config of red", REFUSED, 0.1)
    narration.store_log.forget("config of blue")
    narration.store_log.answered("config of red")

    assert narration.said() == [AWAY, BACK]


class Bench:
    """A running loop, its calls, and the times of its listings."""

    def __init__(self) -> None:
        self.clock = FakeClock(now=0.0)
        self.store = FakeStore(self.clock)
        self.told: list[tuple[str, ...]] = []
        self.listed_at: list[float] = []
        self.loop = ListAndWatch(
            store=self.store,
            prefix="subnets/",
            clock=self.clock,
            draw=lambda n: 0,
            store_log=StoreLog(self.clock),
            doing="Couldn't list",
            listed=self._listed,
            changed=self._changed,
        )

    def _listed(self, listing: Listing) -> None:
        self.listed_at.append(self.clock.now())
        self.told.append(("all", *(record.key for record in listing.records)))

    def _changed(self, changes: Sequence[Change]) -> None:
        self.told += [(type(change).__name__,) for change in changes]

    @property
    def pauses(self) -> list[float]:
        return [after - before for before, after in zip(self.listed_at, self.listed_at[1:], strict=False)]


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[None]:
    async with bench.clock.running(bench.loop.run()):
        yield


def put(key: str) -> Put:
    return Put(key=key, value=b"", ttl_s=None, expected=None)


def test_a_listing_is_followed_by_the_later_changes() -> None:
    async def check() -> None:
        bench = Bench()
        bench.store.change(put("subnets/a"))
        bench.store.change(put("config"))
        async with running(bench):
            bench.store.change(put("subnets/b"))
            await bench.clock.settle()
            bench.store.change(Delete(key="subnets/a", expected=None))
            await bench.clock.settle()

        assert bench.told == [("all", "subnets/a"), ("PutSeen",), ("DeleteSeen",)]

    asyncio.run(check())


def test_after_possibly_missed_changes_the_keys_are_listed_again(caplog: pytest.LogCaptureFixture) -> None:
    """Changes may be missed after a lost watch, and after a compaction, which is no outage of the store."""

    async def check() -> None:
        bench = Bench()
        async with running(bench):
            bench.store.cut_watches()
            bench.store.change(put("subnets/a"))
            await bench.clock.advance(RETRY_MAX_S)
            assert bench.told == [("all",), ("all", "subnets/a")]
            caplog.clear()

            bench.store.change(put("subnets/b"))
            bench.store.compact()
            await bench.clock.advance(RETRY_MAX_S)
            assert bench.told[-1] == ("all", "subnets/a", "subnets/b")

    asyncio.run(check())
    assert not caplog.records


def test_pauses_grow_until_a_watch_has_stayed_open() -> None:
    """A successful listing, or a watch that ends immediately, does not reset the pause."""

    async def check() -> None:
        bench = Bench()
        async with running(bench):
            bench.store.ends_watches_at_once = True
            bench.store.cut_watches()
            await bench.clock.advance(60)
            assert bench.pauses[:7] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
            assert max(bench.pauses) == RETRY_MAX_S

            bench.store.ends_watches_at_once = False
            await bench.clock.advance(RETRY_MAX_S + STEADY_S)
            count = len(bench.listed_at)
            bench.store.cut_watches()
            await bench.clock.advance(0.11)
            assert len(bench.listed_at) == count + 1

    asyncio.run(check())


def test_hosts_do_not_retry_at_the_same_time() -> None:
    """Each host shortens its pauses by a random part."""

    async def check() -> None:
        bench = Bench()
        bench.store.refuses_watches = True
        bench.loop._draw = lambda n: n - 1
        async with running(bench):
            await bench.clock.advance(60)

        assert max(bench.pauses) < 0.51 * RETRY_MAX_S

    asyncio.run(check())
