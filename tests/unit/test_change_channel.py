"""Channels of changes: no change is lost, an ended reader is reported, and readers end with the block."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pyflannel.errors import TargetError
from pyflannel.ports import Announce, ChangeChannel


class Reader:
    """A reader that the test controls."""

    def __init__(self) -> None:
        self.announce: Announce = lambda: None
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    async def read(self, announce: Announce) -> None:
        self.announce, self.task = announce, asyncio.current_task()
        await self.end


async def returns(awaitable: Awaitable[None]) -> bool:
    """Return whether the call returns soon. Cancel a call that does not return."""
    try:
        async with asyncio.timeout(0.01):
            await awaitable
    except TimeoutError:
        return False
    return True


def test_bursts_before_the_call_are_coalesced() -> None:
    async def check() -> tuple[bool, bool]:
        reader = Reader()
        async with ChangeChannel(reader.read) as changes:
            await asyncio.sleep(0)
            reader.announce()
            reader.announce()
            return await returns(changes.next()), await returns(changes.next())

    assert asyncio.run(check()) == (True, False)


def test_a_cancelled_call_loses_no_burst() -> None:
    async def check() -> bool:
        reader = Reader()
        async with ChangeChannel(reader.read) as changes:
            waiting = asyncio.ensure_future(changes.next())
            await asyncio.sleep(0)
            reader.announce()
            waiting.cancel()  # before the cancelled call runs again
            await asyncio.wait([waiting])
            return waiting.cancelled() and await returns(changes.next())

    assert asyncio.run(check())


def test_changes_of_each_reader_are_announced() -> None:
    async def check() -> list[bool]:
        one, two = Reader(), Reader()
        async with ChangeChannel(one.read, two.read) as changes:
            await asyncio.sleep(0)
            heard = []
            for reader in (one, two):
                reader.announce()
                heard.append(await returns(changes.next()))
            return heard

    assert asyncio.run(check()) == [True, True]


ENDS: dict[str, Callable[[Reader], object]] = {
    "returns": lambda reader: reader.end.set_result(None),
    "is refused": lambda reader: reader.end.set_exception(TargetError("the kernel refused", hint="Look.")),
    "meets an error of the system": lambda reader: reader.end.set_exception(OSError(5, "Input/output error")),
    "is cancelled from elsewhere": lambda reader: reader.task and reader.task.cancel(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_an_ended_reader_fails_waiting_and_later_calls(
    end: Callable[[Reader], object],
) -> None:
    async def check() -> None:
        reader, other = Reader(), Reader()
        async with ChangeChannel(reader.read, other.read) as changes:
            waiting = asyncio.ensure_future(changes.next())
            await asyncio.sleep(0)
            end(reader)
            with pytest.raises(TargetError):
                await asyncio.wait_for(waiting, 10)
            with pytest.raises(TargetError):
                await changes.next()

    asyncio.run(check())


def test_a_defect_of_a_reader_is_not_a_target_error() -> None:
    """A defect ends the program with a traceback."""

    async def check() -> None:
        reader = Reader()
        async with ChangeChannel(reader.read) as changes:
            await asyncio.sleep(0)
            reader.end.set_exception(KeyError("mistake"))
            with pytest.raises(KeyError):
                await changes.next()

    asyncio.run(check())


def test_readers_end_with_the_block_in_any_case() -> None:
    async def fail(*readers: Reader) -> None:
        async with ChangeChannel(*(reader.read for reader in readers)):
            await asyncio.sleep(0)
            raise ValueError("the test's")

    async def check() -> int:
        with pytest.raises(ValueError, match="the test's"):
            await fail(Reader(), Reader())
        return len(asyncio.all_tasks())

    assert asyncio.run(check()) == 1
