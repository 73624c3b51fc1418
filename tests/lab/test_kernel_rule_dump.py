"""The result of reading the packet filter is valid until a notification reports a possible change."""

import asyncio
import os

import pytest

from pyflannel.kernel.filters.programs import RuleDump

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Filter:
    """A readable object, which is slow on request."""

    def __init__(self) -> None:
        self.rules = "old"
        self.reads = 0
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def read(self) -> str:
        self.reads += 1
        rules = self.rules
        self.began.set()
        await self.may_end.wait()
        return rules


def dump_of(filter_: Filter, resync_s: float) -> RuleDump[str]:
    return RuleDump(filter_.read, resync_s)


def test_a_result_of_reading_is_used_until_it_is_discarded(namespace) -> None:
    async def work() -> tuple[int, int]:
        filter_ = Filter()
        with dump_of(filter_, 60.0) as dump:
            assert [await dump.get(), await dump.get()] == ["old", "old"]
            before = filter_.reads
            dump.forget()
            filter_.rules = "new"
            assert await dump.get() == "new"
            return before, filter_.reads

    assert namespace.run(work) == (1, 2)


def test_no_caller_waits_while_another_caller_reads(namespace, listen) -> None:
    async def work() -> str:
        filter_ = Filter()
        with dump_of(filter_, 0.05) as dump:
            await dump.get()
            filter_.began.clear()
            filter_.may_end.clear()
            async with listen(dump.changes()):
                await filter_.began.wait()
                return await dump.get()

    assert namespace.run(work) == "old"


def test_a_result_of_reading_that_began_before_a_change_is_discarded(namespace, listen) -> None:
    async def work() -> str:
        filter_ = Filter()
        with dump_of(filter_, 0.05) as dump:
            await dump.get()
            filter_.began.clear()
            filter_.may_end.clear()
            async with listen(dump.changes()):
                await filter_.began.wait()
                filter_.rules = "new"
                dump.forget()
                filter_.may_end.set()
                for _ in range(10):
                    await asyncio.sleep(0)  # the reading ends; the next one begins much later
                return await dump.get()

    assert namespace.run(work) == "new"
