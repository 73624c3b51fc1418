"""Waiting for something to become true, always with a deadline."""

import time
from collections.abc import Callable

from pyflannel.errors import LabError

POLL_S = 0.01


def wait_until(condition: Callable[[], bool], *, what: str, deadline_s: float) -> None:
    """Return as soon as `condition` holds.

    Raises:
        LabError: it did not within `deadline_s` seconds; `what` says what was waited for.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() >= end:
            raise LabError(
                f"{what}: not within {deadline_s:g} s", hint="Read the logs in the lab's directory."
            )
        time.sleep(POLL_S)
