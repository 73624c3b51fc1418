"""The networks that run while configs are added to and removed from a store in memory."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.readiness import Readiness
from pyflannel.engine.store_followers import NetworkFollower, network_of
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Delete, Put
from pyflannel.plan.lease.holding import RETRY_MAX_S


class Bench:
    """A running follower, and its running networks."""

    def __init__(self, *allowed: str, impossible: str = "", ends_after_s: float = 0.0) -> None:
        self.ends_after_s = ends_after_s
        self.at_once = self._count = 0
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.running: set[str] = set()
        self.follower = NetworkFollower(
            store=self.store,
            clock=self.clock,
            draw=lambda n: n // 2,
            store_log=StoreLog(self.clock),
            allowed=allowed,
            objection=lambda name: Notice("a file has it") if name == impossible else None,
            run=self._run_network,
        )

    async def _run_network(self, name: str) -> None:
        self.running.add(name)
        self._count += 1
        self.at_once = max(self.at_once, self._count)
        try:
            await asyncio.Event().wait()
        finally:
            await self.clock.sleep(self.ends_after_s)
            self._count -= 1
            self.running.discard(name)

    async def put(self, key: str) -> None:
        await self.store.write(Put(key=key, value=b"{}", ttl_s=None, expected=None))

    async def delete(self, key: str) -> None:
        await self.store.write(Delete(key=key, expected=None))


@asynccontextmanager
async def following(bench: Bench) -> AsyncIterator[None]:
    task = asyncio.ensure_future(bench.follower.run())
    try:
        await bench.clock.settle()
        yield
    finally:
        task.cancel()
        await bench.clock.advance(bench.ends_after_s)
        await asyncio.gather(task, return_exceptions=True)


def test_a_network_runs_while_its_config_exists() -> None:
    async def check() -> None:
        bench = Bench()
        for key in ("config", "blue/config", "blue/subnets/10.1.1.0-24", "subnets/10.1.1.0-24"):
            await bench.put(key)
        async with following(bench):
            assert bench.running == {"blue"}

            await bench.put("red/config")
            await bench.put("blue/config")
            await bench.clock.settle()
            assert bench.running == {"blue", "red"}

            await bench.delete("blue/config")
            await bench.clock.settle()
            assert bench.running == {"red"}
        assert bench.running == set()

    asyncio.run(check())


def test_only_allowed_networks_run(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        bench = Bench("blue")
        await bench.put("red/config")
        async with following(bench):
            await bench.put("blue/config")
            await bench.put("red/config")
            await bench.clock.settle()

            assert bench.running == {"blue"}

    with caplog.at_level(logging.INFO):
        asyncio.run(check())
    assert caplog.text.count('Network "red" is not allowed') == 1


def test_a_network_that_cannot_run_is_logged_once_and_blocks_no_other_network(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check() -> None:
        bench = Bench(impossible="device")
        await bench.put("device/config")
        async with following(bench):
            await bench.put("blue/config")
            await bench.put("device/config")
            await bench.clock.settle()

            assert bench.running == {"blue"}

    asyncio.run(check())
    assert caplog.text.count('Network "device" cannot run on this host: a file has it') == 1


def test_a_network_whose_config_was_deleted_during_an_outage_ends() -> None:
    async def check() -> None:
        bench = Bench()
        other = bench.store.client()
        await bench.put("blue/config")
        async with following(bench):
            bench.store.is_unreachable = True
            await bench.clock.advance(5)
            assert bench.running == {"blue"}

            await other.write(Delete(key="blue/config", expected=None))
            bench.store.is_unreachable = False
            await bench.clock.advance(RETRY_MAX_S)

            assert bench.running == set()

    asyncio.run(check())


def test_a_network_that_is_created_again_starts_after_the_old_one_has_ended() -> None:
    """The config of the network is deleted and created in one batch of the watch. The old and the new network
    never run at the same time.
    """

    async def check() -> None:
        bench = Bench(ends_after_s=3.0)
        await bench.put("blue/config")
        async with following(bench):
            await bench.delete("blue/config")
            await bench.put("blue/config")
            await bench.clock.settle()
            assert bench.running == {"blue"}

            await bench.delete("blue/config")
            await bench.put("blue/config")
            await bench.clock.advance(10)

            assert (bench.running, bench.at_once) == ({"blue"}, 1)

    asyncio.run(check())


def test_a_store_that_ends_every_watch_is_listed_with_growing_pauses() -> None:
    async def check() -> None:
        bench = Bench()
        bench.store.refuses_watches = True
        async with following(bench):
            await bench.clock.advance(60)

            assert bench.store.listings < 30

    asyncio.run(check())


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("blue/config", "blue"),
        ("config", None),
        ("subnets/config", None),
        ("claims/config", None),
        ("blue/green/config", None),
        ("blue/subnets/10.1.1.0-24", None),
    ],
)
def test_the_key_of_a_config_names_its_network(key: str, name: str | None) -> None:
    assert network_of(key) == name


def test_several_networks_notify_the_service_manager_as_one() -> None:
    said: list[str] = []
    readiness = Readiness(said.append, ["blue", "red"])

    readiness.notifier("blue")("READY=1")
    readiness.notifier("red")("STATUS=waiting for a lease")
    assert said == ["STATUS=red: waiting for a lease"]
    readiness.notifier("red")("READY=1")

    assert said[1:] == ["READY=1"]
