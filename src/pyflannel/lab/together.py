"""Doing independent things at the same time."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")

_HEARING_S = 0.2
"""Python hears of a signal that comes just before a wait only after it, so no wait is longer."""


def together(calls: Iterable[Callable[[], Result]]) -> list[Result]:
    """Make all calls at once and return their results in order.

    An interrupt does not wait for the calls under way: whoever ends the lab ends what they wait for.

    Raises:
        Exception: the failure of one call, as it was.
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
