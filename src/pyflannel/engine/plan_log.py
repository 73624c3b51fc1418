"""The log of the planner: what changed in the plan, in the operator's words, where it is news."""

import logging
from collections.abc import Mapping
from ipaddress import IPv4Network

from pyflannel.engine.pacing import LogLimit
from pyflannel.engine.planner import Blocked, Objection, Planner, PlanResult
from pyflannel.model.lease import Lease
from pyflannel.plan.backends import Backend
from pyflannel.plan.peers import Conflict
from pyflannel.ports import Clock

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
