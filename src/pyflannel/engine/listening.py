"""Listening to changes: a channel that failed is opened again, and no change is missed."""

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from pyflannel.errors import TargetError
from pyflannel.ports import Changes, Clock

log = logging.getLogger(__name__)

REOPEN_MIN_S = 1.0
"""First pause before a channel that failed is opened again. It doubles …"""

REOPEN_MAX_S = 30.0
"""… up to this."""


async def listen(
    source: Callable[[], AbstractAsyncContextManager[Changes]], clock: Clock, changed: Callable[[], object]
) -> None:
    """Call `changed` after each burst of changes, until cancelled."""
    pause_s, cause = REOPEN_MIN_S, ""
    while True:
        try:
            async with source() as changes:
                if cause:
                    log.info("Listening to changes again, after: %s", cause)
                    cause, pause_s = "", REOPEN_MIN_S
                    changed()  # anything may have changed meanwhile
                while True:
                    await changes.next()
                    changed()
        except TargetError as error:
            if not cause:
                log.warning("Cannot listen to changes, looking every few seconds: %s", error.in_full)
                changed()
            cause = str(error)
        await clock.sleep(pause_s)
        pause_s = min(2 * pause_s, REOPEN_MAX_S)
