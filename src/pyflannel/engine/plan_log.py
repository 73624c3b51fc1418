"""Log lines about the plan and about senders whose tunnel packets are dropped, limited in number."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from pyflannel.engine.pacing import LogLimit
from pyflannel.engine.planner import Objection, Planner
from pyflannel.errors import sentences
from pyflannel.model.forwarder import Stranger
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.state import Blocked, PlanResult
from pyflannel.model.status import StrangerStatus
from pyflannel.plan.backends import Backend
from pyflannel.plan.peers import Conflict, place_of
from pyflannel.plan.routes import NO_IPV6
from pyflannel.ports import Clock, Guard

log = logging.getLogger(__name__)

NAMED_IN_LOG = 20
"""Maximum number of peers of one update that have their own log lines."""

PEERS_A_MINUTE = 1000
"""Maximum number of lines per minute about added and removed peers. More hosts rarely join within a
minute."""


class PlanLog:
    """Logs added and removed peers, conflicts, objections, notes and obstacles, each of them once."""

    def __init__(self, clock: Clock) -> None:
        self._refused = LogLimit(log, clock, "refused leases")
        self._peers = LogLimit(log, clock, "added and removed subnets", PEERS_A_MINUTE)
        self._conflicts: tuple[Conflict, ...] = ()
        self._notes: tuple[str, ...] = ()
        self._reason = ""
        self._objections: Mapping[IpNetwork, Objection] = {}

    def log_update(self, planner: Planner, result: PlanResult, backend: Backend | None) -> None:
        """Log the differences after an update of the planner."""
        changes = [change for change in planner.peer_changes if change.family == planner.first_family]
        added = [change.new for change in changes if change.new and not change.old]
        self._log_peers("added", added)
        if planner.has_both_families:
            self._log_without_ipv6([lease for lease in added if lease.part(6) is None])
        self._log_peers("removed", [change.old for change in changes if change.old and not change.new])
        self._log_conflicts(planner.conflicts)
        self._log_obstacle(result)
        if not isinstance(result, Blocked):
            self._log_notes(planner.notes, backend)
            self._log_objections(planner.objections)

    def _log_peers(self, event: str, leases: list[Lease]) -> None:
        if len(leases) > NAMED_IN_LOG:
            self._peers.line(logging.INFO, "Subnets %s: %d", event, len(leases))
            return
        for lease in sorted(leases, key=place_of):
            self._peers.line(logging.INFO, "Subnet %s: %s", event, lease.text)

    def _log_without_ipv6(self, leases: list[Lease]) -> None:
        for lease in sorted(leases, key=place_of)[:NAMED_IN_LOG]:
            self._log_reason(NO_IPV6, lease, lease.attributes.public_ip)
        if len(leases) > NAMED_IN_LOG:
            more = len(leases) - NAMED_IN_LOG
            self._refused.line(logging.WARNING, "Only IPv4 reaches %d more peers without IPv6", more)

    def _log_reason(self, reason: str, lease: Lease, address: IpAddress | None) -> None:
        name = lease.attributes.host_name
        host = f" host={name}" if name else ""
        self._refused.line(logging.WARNING, "%s lease=%s address=%s%s", reason, lease.text, address, host)

    def _log_conflicts(self, conflicts: tuple[Conflict, ...]) -> None:
        if conflicts is self._conflicts:
            return
        known = frozenset(self._conflicts)
        news = [conflict for conflict in conflicts if conflict not in known]
        self._conflicts = conflicts
        for conflict in news[:NAMED_IN_LOG]:
            self._refused.line(logging.WARNING, "Conflict: %s", conflict.text)
        if len(news) > NAMED_IN_LOG:
            more = len(news) - NAMED_IN_LOG
            self._refused.line(logging.WARNING, "Conflicts: %d more, listed by flannelctl status", more)

    def _log_obstacle(self, result: PlanResult) -> None:
        reason = result.reason if isinstance(result, Blocked) else ""
        if reason and reason != self._reason:
            log.warning("Waiting for %s", reason)
        self._reason = reason

    def _log_notes(self, notes: tuple[str, ...], backend: Backend | None) -> None:
        """Log new notes, except those about the config, which were logged together with the config."""
        of_config = backend.config_warnings if backend is not None else ()
        for note in notes:
            if note not in self._notes and note not in of_config:
                log.warning("Note: %s", note)
        self._notes = notes

    def _log_objections(self, objections: Mapping[IpNetwork, Objection]) -> None:
        if objections is self._objections:
            return
        news = [one for subnet, one in objections.items() if _is_news(one, self._objections.get(subnet))]
        self._objections = objections
        for one in news[:NAMED_IN_LOG]:
            attributes = one.peer.attributes
            address = attributes.public_ip if one.family == 4 else attributes.public_ipv6
            self._log_reason(one.reason, one.peer, address)
        if len(news) > NAMED_IN_LOG:
            more = len(news) - NAMED_IN_LOG
            self._refused.line(logging.WARNING, "Refused %d more peers, listed by flannelctl peers", more)


def _is_news(one: Objection, known: Objection | None) -> bool:
    """Return whether an objection differs from the known objection in more than a renewal of the lease."""
    return (
        known is None
        or known.reason != one.reason
        or known.peer.attributes.public_ip != one.peer.attributes.public_ip
        or known.peer.attributes.public_ipv6 != one.peer.attributes.public_ipv6
    )


LOOK_S = 5.0
"""Pause in seconds between two readings of the rejected senders. Each reading needs a few system calls."""

QUIET_S = 60.0
"""Shortest time in seconds between two lines about one sender."""

NAMED_SENDERS = 16
"""Maximum number of senders with their own log lines within QUIET_S. All further senders share one line."""


class _Logged(Struct, frozen=True):
    packets: int
    at: float


class GuardLog:
    """Logs each sender of rejected packets immediately, and later the number of its further packets.

    `explain` adds the leases of a sender and the remedy.
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
        self._logged: dict[object, _Logged] = {}
        self._named_at: list[float] = []
        self._logged_rest_at = -math.inf
        self._began = clock.now()

    async def run(self) -> None:
        """Read the rejected senders every `LOOK_S` seconds, until cancelled."""
        while True:
            self.log_senders(await self._guard.strangers())
            await self._clock.sleep(LOOK_S)

    def log_senders(self, strangers: Sequence[Stranger]) -> None:
        """Log the new packets of the senders that the guard currently remembers; forget all other senders."""
        now = self._clock.now()
        self._logged = {_key(one): logged for one in strangers if (logged := self._logged_of(one, now))}
        due = [one for one in strangers if self._news(one) and self._is_due(one, now)]
        due.sort(key=self._news, reverse=True)
        self._named_at = [at for at in self._named_at if now - at < QUIET_S]
        free = NAMED_SENDERS - len(self._named_at)
        self._log_each(due[:free], now)
        if due[free:] and now - self._logged_rest_at >= QUIET_S:
            self._log_together(due[free:], now)

    def _logged_of(self, stranger: Stranger, now: float) -> _Logged | None:
        """Return the last line about a sender; a sender that only the previous daemon logged counts as
        logged long ago.
        """
        is_of_before = now - stranger.age_s < self._began - QUIET_S
        return self._logged.get(_key(stranger)) or (
            _Logged(stranger.packets, -math.inf) if is_of_before else None
        )

    def _log_each(self, strangers: Sequence[Stranger], now: float) -> None:
        for one in self._explain(strangers):
            log.warning(
                "Rejected tunnel packets from=%s reason=%s packets=%d: %s",
                one.address,
                one.reason,
                self._news(one),
                sentences(one.cause, one.hint),
            )
            self._logged[_key(one)] = _Logged(one.packets, now)
            self._named_at.append(now)

    def _log_together(self, strangers: Sequence[Stranger], now: float) -> None:
        log.warning(
            "Rejected tunnel packets of %d more senders packets=%d, some listed by flannelctl status",
            len(strangers),
            sum(map(self._news, strangers)),
        )
        self._logged_rest_at = now
        for one in strangers:
            self._logged[_key(one)] = _Logged(one.packets, now)

    def _is_due(self, stranger: Stranger, now: float) -> bool:
        logged = self._logged.get(_key(stranger))
        return logged is None or now - logged.at >= QUIET_S

    def _news(self, stranger: Stranger | StrangerStatus) -> int:
        """Return the number of a sender's packets since the last log line about it; a restarted guard
        counts from 0.
        """
        logged = self._logged.get(_key(stranger))
        if logged is None or stranger.packets < logged.packets:
            return stranger.packets
        return stranger.packets - logged.packets


def _key(stranger: Stranger | StrangerStatus) -> object:
    return stranger.address, stranger.reason
