"""Waiting for an event with a deadline, and concurrent calls."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

from pyflannel.errors import LabError

POLL_S = 0.01


def wait_until(condition: Callable[[], bool], *, what: str, deadline_s: float) -> None:
    """Return as soon as `condition` is true.

    Raises:
        LabError: the condition was not true within `deadline_s` seconds; the message begins with `what`.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= end:
            raise LabError(
                f"{what}: not within {deadline_s:g} s", hint="Read the logs in the directory of the lab."
            )
        time.sleep(POLL_S)


Result = TypeVar("Result")

_HEARING_S = 0.2
"""Longest single wait in seconds. Python handles a signal that arrives just before a wait only after the wait
has ended."""


def together(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """Perform all calls concurrently and return their results in order.

    An interrupt does not wait for the running calls, because the end of the lab ends these calls.

    Raises:
        Exception: the failure of a call, if exactly one call failed.
        ExceptionGroup: several calls failed.
    """
    pending = list(calls)
    pool = ThreadPoolExecutor(max_workers=max(1, len(pending)))
    try:
        futures = [pool.submit(call) for call in pending]
        while wait(futures, timeout=_HEARING_S).not_done:
            pass
        failures = [failure for future in futures if (failure := future.exception()) is not None]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise BaseExceptionGroup("several parts of the lab failed", failures)
    return [future.result() for future in futures]
