"""The deadline of a call counts only time in which the process ran. An unread answer is not late."""

import asyncio
import time
from typing import Any

import pytest
from grpclib.exceptions import StreamTerminatedError

from pyflannel.stores.etcd.failure import within

LIMIT_S = 0.2


def test_an_answer_that_arrived_while_the_process_was_stopped_is_used() -> None:
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


def test_a_stop_of_the_process_shortens_a_deadline_by_one_tick_only() -> None:
    """Stops of the process in several steps of a call do not exceed the deadline."""

    async def test() -> str:
        async def call() -> str:
            for _ in range(3):
                time.sleep(LIMIT_S)
                await asyncio.sleep(0)
            return "here"

        return await within(LIMIT_S, call())

    assert asyncio.run(test()) == "here"


def test_a_silent_endpoint_times_out() -> None:
    async def test() -> None:
        with pytest.raises(TimeoutError):
            await within(LIMIT_S, asyncio.Event().wait())

    asyncio.run(test())


def test_a_cancelled_call_leaves_no_timer() -> None:
    async def test() -> None:
        loop: Any = asyncio.get_running_loop()
        asking = asyncio.ensure_future(within(60, asyncio.Event().wait()))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking])

        assert asking.cancelled()
        assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    asyncio.run(test())


def test_a_cancellation_by_grpclib_is_an_error_and_does_not_cancel_the_caller() -> None:
    """When a connection breaks, grpclib cancels the waiting task. The caller would end without an error."""

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
