"""One call to a member, within its time."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from pyflannel.errors import StoreError
from pyflannel.stores.etcd.failure import BROKEN

CONNECT_S = 2
"""How long an endpoint may take to accept a connection, with TLS where there is."""

CALL_S = 5
"""How long an endpoint may take to answer; etcd itself gives a request up after about 7 s."""

_TICKS = 20
"""In so many parts a time is counted."""

_Answer = TypeVar("_Answer")


async def within(seconds: float, call: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Return what `call` does, or raise TimeoutError after `seconds` in which this process ran."""
    async with _patience(seconds):
        return await apart(call)


@asynccontextmanager
async def _patience(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError in the body after `seconds` that were lived through.

    A process that stood still, as one of many on a busy machine does, would else blame an endpoint for an
    answer that lay there unread; and whoever then connects anew makes the machine busier. So the time is
    counted in ticks, of which each counts once, however late it comes.
    """
    loop = asyncio.get_running_loop()
    tick_s = seconds / _TICKS
    async with asyncio.timeout(None) as deadline:
        timer = loop.call_later(tick_s, lambda: count(_TICKS - 1))

        def count(left: int) -> None:
            nonlocal timer
            if left:
                timer = loop.call_later(tick_s, count, left - 1)
            else:
                deadline.reschedule(loop.time())  # what has arrived by now is seen first

        try:
            yield
        finally:
            timer.cancel()


async def apart(call: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Await `call` in a task of its own.

    grpclib 0.4 wakes a task whose connection broke by cancelling it and does not take that back
    (`Task.uncancel`): in the caller's own task, timeouts and task groups would go wrong from then on.
    For the same reason the error leaves the group as a value: the groups of Python 3.11 do likewise.
    """
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_answer_or_error(call))
    match task.result():
        case _Failed(error):
            raise error
        case answer:
            return answer


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


async def _answer_or_error(call: Coroutine[Any, Any, _Answer]) -> _Answer | _Failed:
    try:
        return await call
    except (*BROKEN, StoreError) as error:
        return _Failed(error)
