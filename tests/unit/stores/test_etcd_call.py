"""A call's time is what this process lived through: an answer that waits to be read is not late."""

import asyncio
import time

import pytest
from grpclib.exceptions import StreamTerminatedError

from pyflannel.stores.etcd.failure import within

LIMIT_S = 0.2


def test_an_answer_that_came_while_the_process_stood_still_counts() -> None:
    async def test() -> str:
        answer = asyncio.get_running_loop().create_future()

        def stand_still() -> None:
            time.sleep(3 * LIMIT_S)
            answer.set_result("here")

        async def call() -> str:
            asyncio.get_running_loop().call_soon(stand_still)
            return str(await answer)

        return await within(LIMIT_S, call())

    assert asyncio.run(test()) == "here"


def test_each_standstill_counts_as_a_moment() -> None:
    """Several steps of a call may each have to wait for the process, and it is in time all the same."""

    async def test() -> str:
        async def call() -> str:
            for _ in range(3):
                time.sleep(LIMIT_S)
                await asyncio.sleep(0)
            return "here"

        return await within(LIMIT_S, call())

    assert asyncio.run(test()) == "here"


def test_a_silent_endpoint_is_given_up() -> None:
    async def test() -> None:
        with pytest.raises(TimeoutError):
            await within(LIMIT_S, asyncio.Event().wait())

    asyncio.run(test())


def test_a_cancelled_call_leaves_no_timer() -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        asking = asyncio.ensure_future(within(60, asyncio.Event().wait()))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])

        assert asking.cancelled()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]

    asyncio.run(test())


def test_a_call_that_grpclib_cancels_is_an_error_and_no_cancellation_of_the_caller() -> None:
    """So grpclib wakes who waits when a connection breaks: the caller would end without a word."""

    async def test() -> None:
        async def call() -> None:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

        with pytest.raises(StreamTerminatedError):
            await within(60, call())
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(test())
