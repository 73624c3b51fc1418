"""Events of the Node of this host, which `kubectl describe node` shows.

The Events contain the reason why flanneld is not ready, in the same text as the status that the service
manager gets. With --warn-network-policies, the Events contain a warning about NetworkPolicies that no program
enforces.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from pyflannel.engine.pacing import pause
from pyflannel.errors import StoreError, TargetError
from pyflannel.model.kubernetes_node import IS_UP, NodeEvent
from pyflannel.ports import Clock

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""Seconds after which a reason becomes an Event. Most reasons end earlier, for example at each start."""

RETRY_S = 30.0

MOST_EVENTS, WINDOW_S = 6, 600.0
"""Maximum number of Events within a window of WINDOW_S seconds. The limit exists because etcd keeps each
Event for an hour."""

_STATUS, _WAITING = "STATUS=", "waiting for "


LOOK_S = 300.0
"""Interval in seconds between requests for NetworkPolicies. The first request is sent earlier."""

FIRST_LOOK_S = 20.0

Announce = Callable[[NodeEvent], Awaitable[None]]


class NodeEvents:
    """Creates an Event when flanneld is not ready for some seconds, and another Event when it is ready
    again.
    """

    def __init__(self, announce: Announce, clock: Clock) -> None:
        self._announce = announce
        self._clock = clock
        self._reason: str | None = None
        self._announced: str | None = None
        self._noted = asyncio.Event()
        self._times: deque[float] = deque(maxlen=MOST_EVENTS)
        self._has_failed = False

    def notifier(self, notify: Callable[[str], object]) -> Callable[[str], object]:
        """Return a function that passes each notification to `notify`, and also records its status for the
        Events.
        """

        def note(text: str) -> None:
            notify(text)
            if text.startswith(_STATUS):
                status = text.removeprefix(_STATUS)
                self._reason = status if status.startswith(_WAITING) else None
                self._noted.set()

        return note

    async def run(self) -> None:
        """Create Events until cancelled."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            if self._reason is not None:
                await self._clock.sleep(PATIENCE_S)
            if len(self._times) == MOST_EVENTS:
                await self._clock.sleep(max(0.0, self._times[0] + WINDOW_S - self._clock.now()))
            reason = self._reason
            if reason == self._announced:
                continue
            try:
                await self._announce(_event(reason))
            except StoreError as error:
                self._log_failure(error)
                await pause(self._clock, RETRY_S, until=self._noted)
                self._noted.set()
            else:
                self._announced, self._has_failed = reason, False
                self._times.append(self._clock.now())

    def _log_failure(self, error: StoreError) -> None:
        """Log the first failure. The reason why flanneld is not ready is in the log already."""
        if not self._has_failed:
            self._has_failed = True
            log.info("Couldn't create an Event of the Node: %s", error.in_full)


def _event(reason: str | None) -> NodeEvent:
    if reason is None:
        return NodeEvent(is_warning=False, reason=IS_UP.reason, message=IS_UP.message)
    return NodeEvent(is_warning=True, reason="FlannelNotReady", message=f"flanneld is {reason}")


class PolicyWarning:
    """Warns once if NetworkPolicies exist, and no known program enforces them on this host.

    The function `exist` asks the cluster for policies. The function `enforcer` returns the name of the
    program that enforces policies on this host.
    """

    def __init__(
        self,
        exist: Callable[[], Awaitable[bool]],
        enforcer: Callable[[], Awaitable[str | None]],
        announce: Announce,
        clock: Clock,
    ) -> None:
        self._exist = exist
        self._enforcer = enforcer
        self._announce = announce
        self._clock = clock
        self._shown: str | None = None

    async def run(self) -> None:
        """Check for policies at intervals until cancelled."""
        await self._clock.sleep(FIRST_LOOK_S)
        while True:
            try:
                await self._look()
            except (StoreError, TargetError) as error:
                self._show(f"Couldn't find out whether NetworkPolicies are enforced: {error.in_full}")
            await self._clock.sleep(LOOK_S)

    async def _look(self) -> None:
        if not await self._exist() or await self._enforcer() is not None:
            self._shown = None
            return
        text = (
            "NetworkPolicies exist, and no known program enforces them on this host: flannel does not. "
            "Install a program that enforces them, for example kube-network-policies."
        )
        if text != self._shown:
            self._show(text)
            event = NodeEvent(is_warning=True, reason="NetworkPolicyNotEnforced", message=text)
            await self._announce(event)

    def _show(self, text: str) -> None:
        """Log a text unless it was the last logged text."""
        if text != self._shown:
            self._shown = text
            log.warning("%s", text)
