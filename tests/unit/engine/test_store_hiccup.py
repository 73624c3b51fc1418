"""The store in the log and in notifications of the service manager: one line per cause."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable

import pytest

from doubles.host_bench import HostBench
from pyflannel.model.store_record import Put


def lived(check: Callable[[HostBench], Awaitable[None]], caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines about the store while a ready host runs through these steps."""

    async def live() -> None:
        bench = HostBench()
        bench.store.change(Put(key="config", value=b'{"Network":"10.100.0.0/16"}', ttl_s=None, expected=0))
        running = asyncio.ensure_future(bench.supervisor.run())
        try:
            await bench.clock.advance(20)
            assert bench.supervisor.waiting_for is None
            caplog.clear()
            await check(bench)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    with caplog.at_level(logging.INFO):
        asyncio.run(live())
    return [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


def test_an_outage_of_the_store_is_one_line_and_its_end_another(caplog: pytest.LogCaptureFixture) -> None:
    """Config and leases are watched separately, but share one line."""

    async def check(bench: HostBench) -> None:
        bench.store.is_unreachable = True
        await bench.clock.advance(30)
        bench.store.is_unreachable = False
        await bench.clock.advance(60)
        assert bench.supervisor.waiting_for is None

    away, back = lived(check, caplog)

    assert away.startswith("WARNING Lost the store connection")
    assert back.startswith("INFO Restored the store connection")


def test_a_link_that_loses_packets_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Watches end and open again each second. The store counts as reachable when the watches stay open."""

    async def check(bench: HostBench) -> None:
        for _ in range(45):
            bench.store.cut_watches()
            await bench.clock.advance(1)
        await bench.clock.advance(60)

    assert len(lived(check, caplog)) <= 4


def test_a_config_cannot_assign_anything_in_a_notification() -> None:
    """A line feed would start another assignment: MAINPID=1, READY=1."""

    async def live() -> list[str]:
        bench = HostBench()
        config = json.dumps({"Network": "10.100.0.0/16", "Backend": {"Type": "x\nMAINPID=1\nREADY=1"}})
        bench.store.change(Put(key="config", value=config.encode(), ttl_s=None, expected=0))
        running = asyncio.ensure_future(bench.supervisor.run())
        try:
            await bench.clock.advance(20)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        return bench.notified

    notified = asyncio.run(live())

    assert any("mainpid=1" in text for text in notified)
    assert [text for text in notified if "\n" in text] == []
