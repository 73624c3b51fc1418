"""Follows changes of keys in the store, and changes of the host. Logs when the connection to the store fails,
and when it works again.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import copy_context

from pyflannel.errors import CompactedError, StoreError, TargetError, sentences
from pyflannel.model.store_record import Change, Listing, StoreChanges
from pyflannel.plan.lease.holding import retry_pause_s
from pyflannel.ports import Changes, Clock, Store

log = logging.getLogger(__name__)

STEADY_S = 5.0
"""Minimum time in seconds for which a watch must be open, so that the end of the watch resets the backoff."""

SHORT_S = 10.0
"""Longest duration in seconds of a short outage of the store."""

CALM_S = 60.0
"""Minimum time in seconds between two outages that are reported separately. More frequent outages occur, for
example, on a link that loses packets."""


async def follow(
    store: Store, prefix: str, after: int, handle: Callable[[StoreChanges], Awaitable[None]]
) -> StoreError:
    """Pass each batch of a watch to `handle`, in order, until the watch ends; return the reason."""
    try:
        async with store.watch(prefix, after) as watcher:
            while True:
                await handle(await watcher.next())
    except StoreError as error:
        return error


class StoreLog:
    """Logs that the store is unreachable, and that it is reachable again, only once for all users of the
    store.

    An outage is logged once, and again if its cause changes to a cause with another remedy. If short outages
    follow each other, only their number is logged, at most once per `CALM_S`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # The context of the caller names one network, but all networks share the store.
        self._context = copy_context()
        self._failing: set[object] = set()
        self._began_at = 0.0
        self._ended_at = -math.inf
        self._logged: set[str] = set()  # the remedies that were already logged in this outage
        self._short_count = 0
        self._counted_from = -math.inf

    def failed(self, user: object, error: StoreError, retry_in_s: float, doing: str | None = None) -> None:
        """Record that a user of the store got no answer. `doing`: text of the log line for a failure before
        the first answer to this user.
        """
        now = self._clock.now()
        if not self._failing:
            self._began_at = now
        self._failing.add(user)
        is_news = self._began_at - self._ended_at >= CALM_S or now - self._began_at >= SHORT_S
        if not is_news or error.hint in self._logged:
            return
        self._logged.add(error.hint)
        if doing is not None:
            text = sentences(error.in_full, f"Trying again in {retry_in_s:.1f} s.")
            self._log(logging.ERROR, "%s: %s", doing, text)
        else:
            text = "Lost the store connection, data path unaffected retry_in_s=%.1f cause=%s"
            self._log(logging.WARNING, text, retry_in_s, error.in_full)

    def answered(self, user: object) -> None:
        """Record that a user of the store got an answer."""
        if user not in self._failing:
            return
        self._failing.remove(user)
        if self._failing:
            return
        now = self._ended_at = self._clock.now()
        if self._logged:
            self._log(logging.INFO, "Restored the store connection")
            self._logged.clear()
            self._counted_from = now
            return
        self._short_count += 1
        if now - self._counted_from >= CALM_S:
            self._log(
                logging.WARNING,
                "Lost the store connection %d times in the last %.0f s, each time for less than %.0f s",
                self._short_count,
                now - self._counted_from,
                SHORT_S,
            )
            self._short_count, self._counted_from = 0, now

    def _log(self, level: int, text: str, *arguments: object) -> None:
        self._context.run(log.log, level, text, *arguments, stacklevel=2)

    def forget(self, user: object) -> None:
        """Record that a user has ended."""
        self._failing.discard(user)


class ListAndWatch:
    """Passes all records under `prefix` and their changes to its user, and retries after failures.

    `listed` gets all records, at the start and each time a change may have been missed. `changed` gets the
    later changes, in order. `failed` gets each error. These functions are called one at a time, and must not
    block.
    """

    def __init__(
        self,
        *,
        store: Store,
        prefix: str,
        clock: Clock,
        draw: Callable[[int], int],
        store_log: StoreLog,
        doing: str,
        listed: Callable[[Listing], None],
        changed: Callable[[Sequence[Change]], None],
        failed: Callable[[StoreError], None] = lambda error: None,
    ) -> None:
        """`doing`: text of the log line about a failure before the first answer."""
        self._store = store
        self._prefix = prefix
        self._clock = clock
        self._draw = draw
        self._store_log = store_log
        self._doing: str | None = doing
        self._listed = listed
        self._changed = changed
        self._failed = failed
        self._opened_at: float | None = None

    async def run(self) -> None:
        """Follow until cancelled."""
        failures = 0
        try:
            while True:
                error = await self._list_and_watch()
                if self._opened_at is not None and self._clock.now() - self._opened_at >= STEADY_S:
                    failures = 0
                pause_s = retry_pause_s(failures, self._draw)
                failures += 1
                if not isinstance(error, CompactedError):
                    self._store_log.failed(self, error, pause_s, self._doing)
                    self._failed(error)
                await self._clock.sleep(pause_s)
        finally:
            self._store_log.forget(self)

    async def _list_and_watch(self) -> StoreError:
        """List the keys once and watch them until the watch ends; return the reason of the end."""
        self._opened_at = None
        try:
            listing = await self._store.list(self._prefix)
        except StoreError as error:
            return error
        self._doing = None
        self._listed(listing)
        return await follow(self._store, self._prefix, listing.revision, self._handle)

    async def _handle(self, changes: StoreChanges) -> None:
        if self._opened_at is None:
            self._opened_at = self._clock.now()
            self._store_log.answered(self)
        self._changed(changes.changes)


REOPEN_MIN_S = 1.0
"""First pause in seconds before a failed channel is opened again. The pause doubles up to REOPEN_MAX_S."""

REOPEN_MAX_S = 30.0


async def listen(
    source: Callable[[], AbstractAsyncContextManager[Changes]], clock: Clock, changed: Callable[[], object]
) -> None:
    """Call `changed` after each burst of changes, until cancelled. A channel that failed is opened again."""
    pause_s, cause = REOPEN_MIN_S, ""
    while True:
        try:
            async with source() as changes:
                if cause:
                    log.info("Receiving change notifications again, because this problem ended: %s", cause)
                    cause, pause_s = "", REOPEN_MIN_S
                    changed()  # changes may have been missed
                while True:
                    await changes.next()
                    changed()
        except TargetError as error:
            if not cause:
                log.warning("Not receiving change notifications, so checking at intervals: %s", error.in_full)
                changed()
            cause = str(error)
        await clock.sleep(pause_s)
        pause_s = min(2 * pause_s, REOPEN_MAX_S)
