"""Tells an operator whose tunnel packets the guard drops: log lines, few however many they are."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyflannel.errors import sentences
from pyflannel.model.forwarder import Stranger
from pyflannel.model.status import StrangerStatus
from pyflannel.ports import Clock, Guard

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""Pause between two readings of the rejected senders; each is a few system calls."""

QUIET_S = 60.0
"""So long after a line about a stranger there is no other."""

NAMED = 16
"""So many strangers are named within that time; the others are counted together."""


@dataclass(frozen=True, slots=True)
class _Told:
    packets: int
    at: float


class GuardNarrator:
    """Names each stranger at once, and later what came from it since.

    `explain` adds to strangers what the leases say of them.
    """

    def __init__(
        self,
        guard: Guard,
        clock: Clock,
        explain: Callable[[Sequence[Stranger]], Sequence[StrangerStatus]],
    ) -> None:
        self._guard = guard
        self._clock = clock
        self._explain = explain
        self._told: dict[object, _Told] = {}
        self._named_at: list[float] = []
        self._told_rest_at = -math.inf
        self._began = clock.now()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self.tell(await self._guard.strangers())
            await self._clock.sleep(LOOK_S)

    def tell(self, strangers: Sequence[Stranger]) -> None:
        """Say what is news of those that the guard remembers now; whom it forgot we forget too."""
        now = self._clock.now()
        self._told = {_key(one): told for one in strangers if (told := self._told_of(one, now))}
        due = [one for one in strangers if self._news(one) and self._is_due(one, now)]
        due.sort(key=self._news, reverse=True)
        self._named_at = [at for at in self._named_at if now - at < QUIET_S]
        free = NAMED - len(self._named_at)
        self._tell_each(due[:free], now)
        if due[free:] and now - self._told_rest_at >= QUIET_S:
            self._tell_together(due[free:], now)

    def _told_of(self, stranger: Stranger, now: float) -> _Told | None:
        """Return what was logged of a stranger; the former daemon logged those of long before our start."""
        is_of_before = now - stranger.age_s < self._began - QUIET_S
        return self._told.get(_key(stranger)) or (
            _Told(stranger.packets, -math.inf) if is_of_before else None
        )

    def _tell_each(self, strangers: Sequence[Stranger], now: float) -> None:
        for one in self._explain(strangers):
            log.warning(
                "Turned away tunnel packets from=%s reason=%s packets=%d: %s",
                one.address,
                one.reason,
                self._news(one),
                sentences(one.cause, one.hint),
            )
            self._told[_key(one)] = _Told(one.packets, now)
            self._named_at.append(now)

    def _tell_together(self, strangers: Sequence[Stranger], now: float) -> None:
        log.warning(
            "Turned away tunnel packets of %d more strangers packets=%d: flannelctl status names some",
            len(strangers),
            sum(map(self._news, strangers)),
        )
        self._told_rest_at = now
        for one in strangers:
            self._told[_key(one)] = _Told(one.packets, now)

    def _is_due(self, stranger: Stranger, now: float) -> bool:
        told = self._told.get(_key(stranger))
        return told is None or now - told.at >= QUIET_S

    def _news(self, stranger: Stranger | StrangerStatus) -> int:
        """Return its packets since the last line about it; a guard that starts anew counts anew."""
        told = self._told.get(_key(stranger))
        if told is None or stranger.packets < told.packets:
            return stranger.packets
        return stranger.packets - told.packets


def _key(stranger: Stranger | StrangerStatus) -> object:
    return stranger.address, stranger.reason
