"""Channels of changes: nothing is lost, nobody waits for a reader that is gone, none outlives its block."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from pyflannel.errors import TargetError
from pyflannel.ports import Announce, ChangeChannel


class Reader:
    """A reader that does as the test says."""

    def __init__(self) -> None:
        self.announce: Announce = lambda: None
        self.end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    async def read(self, announce: Announce) -> None:
        self.announce, self.task = announce, asyncio.current_task()
        await self.end


async def returns(awaitable: Awaitable[None]) -> bool:
    """Return whether it returns soon; it is cancelled otherwise."""
    try:
        async with asyncio.timeout(0.01):
            await awaitable
    except TimeoutError:
        return False
    return True


def test_bursts_that_came_while_nobody_asked_are_one() -> None:
    async def check() -> tuple[bool, bool]:
        reader = Reader()
        async with ChangeChannel(reader.read) as changes:
            await asyncio.sleep(0)
            reader.announce()
            reader.announce()
            return await returns(changes.next()), await returns(changes.next())

    assert asyncio.run(check()) == (True, False)


def test_whoever_is_cancelled_while_waiting_loses_nothing() -> None:
    async def check() -> bool:
        reader = Reader()
        async with ChangeChannel(reader.read) as changes:
            waiting = asyncio.ensure_future(changes.next())
            await asyncio.sleep(0)
            reader.announce()
            waiting.cancel()  # before it runs again
            await asyncio.wait([waiting])
            return waiting.cancelled() and await returns(changes.next())

    assert asyncio.run(check())


def test_each_of_several_readers_is_heard() -> None:
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
    "is cancelled by somebody": lambda reader: reader.task and reader.task.cancel(),
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS.keys())
def test_a_reader_that_ends_fails_whoever_waits_and_whoever_asks_later(
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


def test_a_mistake_in_a_reader_is_no_target_error() -> None:
    """It ends the program, which says where it is."""

    async def check() -> None:
        reader = Reader()
        async with ChangeChannel(reader.read) as changes:
            await asyncio.sleep(0)
            reader.end.set_exception(KeyError("mistake"))
            with pytest.raises(KeyError):
                await changes.next()

    asyncio.run(check())


def test_readers_end_with_the_block_however_it_ends() -> None:
    async def fail(*readers: Reader) -> None:
        async with ChangeChannel(*(reader.read for reader in readers)):
            await asyncio.sleep(0)
            raise ValueError("the test's")

    async def check() -> int:
        with pytest.raises(ValueError, match="the test's"):
            await fail(Reader(), Reader())
        return len(asyncio.all_tasks())

    assert asyncio.run(check()) == 1
