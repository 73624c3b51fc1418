"""Log lines about the plan and about senders whose tunnel packets are dropped, limited in number."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from pyflannel.engine.pacing import LogLimit
from pyflannel.engine.planner import Blocked, Objection, Planner, PlanResult
from pyflannel.errors import sentences
from pyflannel.model.forwarder import Stranger
from pyflannel.model.lease import Lease
from pyflannel.model.status import StrangerStatus
from pyflannel.plan.backends import Backend
from pyflannel.plan.peers import Conflict
from pyflannel.ports import Clock, Guard

log = logging.getLogger(__name__)

NAMED_IN_LOG = 20
"""Peers that one update logs line by line."""

PEERS_A_MINUTE = 1000
"""Lines about peers that come and go. More hosts than that join within a minute only in a storm."""


class PlanLog:
    """Logs peers that come and go, conflicts, objections, notes and obstacles, each once."""

    def __init__(self, clock: Clock) -> None:
        self._refused = LogLimit(log, clock, "leases that are refused")
        self._peers = LogLimit(log, clock, "subnets that come and go", PEERS_A_MINUTE)
        self._conflicts: tuple[Conflict, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._reason = ""
        self._objections: Mapping[IPv4Network, Objection] = {}

    def tell(self, planner: Planner, result: PlanResult, backend: Backend | None) -> None:
        """Log what is news after an update of the planner."""
        changes = planner.peer_changes
        self._tell_peers("added", [change.new for change in changes if change.new and not change.old])
        self._tell_peers("removed", [change.old for change in changes if change.old and not change.new])
        self._tell_conflicts(planner.conflicts)
        self._tell_obstacle(result)
        if not isinstance(result, Blocked):
            self._tell_notes(planner.notes, backend)
            self._tell_objections(planner.objections)

    def _tell_peers(self, event: str, leases: list[Lease]) -> None:
        if len(leases) > NAMED_IN_LOG:
            self._peers.line(logging.INFO, "Subnets %s: %d", event, len(leases))
            return
        for lease in sorted(leases, key=lambda lease: lease.subnet):
            self._peers.line(logging.INFO, "Subnet %s: %s", event, lease.subnet)

    def _tell_conflicts(self, conflicts: tuple[Conflict, ...]) -> None:
        if conflicts is self._conflicts:
            return
        known = frozenset(self._conflicts)
        news = [conflict for conflict in conflicts if conflict not in known]
        self._conflicts = conflicts
        for conflict in news[:NAMED_IN_LOG]:
            self._refused.line(logging.WARNING, "Conflict: %s", conflict.text)
        if len(news) > NAMED_IN_LOG:
            more = len(news) - NAMED_IN_LOG
            self._refused.line(logging.WARNING, "Conflicts: %d more; flannelctl status names them", more)

    def _tell_obstacle(self, result: PlanResult) -> None:
        reason = result.reason if isinstance(result, Blocked) else ""
        if reason and reason != self._reason:
            log.warning("Waiting for %s", reason)
        self._reason = reason

    def _tell_notes(self, notes: tuple[str, ...], backend: Backend | None) -> None:
        """Log new notes; those about the config itself were logged with it."""
        of_config = backend.config_warnings if backend is not None else ()
        for note in notes:
            if note not in self._notes and note not in of_config:
                log.warning("Note: %s", note)
        self._notes = notes

    def _tell_objections(self, objections: Mapping[IPv4Network, Objection]) -> None:
        if objections is self._objections:
            return
        news = [one for subnet, one in objections.items() if _is_news(one, self._objections.get(subnet))]
        self._objections = objections
        for one in news[:NAMED_IN_LOG]:
            address = one.peer.attributes.public_ip
            self._refused.line(
                logging.WARNING, "%s lease=%s address=%s", one.reason, one.peer.subnet, address
            )
        if len(news) > NAMED_IN_LOG:
            more = len(news) - NAMED_IN_LOG
            self._refused.line(logging.WARNING, "Refused %d more peers: flannelctl peers names them", more)


def _is_news(one: Objection, known: Objection | None) -> bool:
    """Return whether an objection says something else than before: a lease that is renewed does not."""
    return (
        known is None
        or known.reason != one.reason
        or known.peer.attributes.public_ip != one.peer.attributes.public_ip
    )


LOOK_S = 5.0
"""Pause between two readings of the rejected senders; each is a few system calls."""

QUIET_S = 60.0
"""So long after a line about a stranger there is no other."""

NAMED_SENDERS = 16
"""So many strangers are named within that time; the others are counted together."""


@dataclass(frozen=True, slots=True)
class _Told:
    packets: int
    at: float


class GuardLog:
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
        free = NAMED_SENDERS - len(self._named_at)
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
