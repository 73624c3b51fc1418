"""Former defects of the engine, each restored alone. The law must find all these defects."""

import math
from collections.abc import Iterable

import pytest

from pyflannel.engine import targets
from pyflannel.engine.planner import Planner
from pyflannel.engine.reconciler import Reconciler
from pyflannel.engine.work import Work
from pyflannel.model.item import Item, Key, Rank
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Unreadable
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.model.state import Blocked, Operation
from pyflannel.plan import diff
from pyflannel.plan.peers import PeerChange, Peers


def forget_changes_behind_an_obstacle(patch: pytest.MonkeyPatch) -> None:
    """Process changed peers while the backend cannot run, and omit them from the next plan."""
    patch.setattr(Planner, "_block", lambda planner, reason: Blocked(reason))


def forget_changes_of_ipv6(patch: pytest.MonkeyPatch) -> None:
    """Plan the IPv6 part of a peer only in a complete plan."""
    update = Peers.update

    def changes_of_ipv4(peers: Peers, leases: SubnetMap[Lease]) -> list[PeerChange]:
        return [change for change in update(peers, leases) if change.family == 4]

    patch.setattr(Peers, "update", changes_of_ipv4)


def lose_a_later_change(patch: pytest.MonkeyPatch) -> None:
    """Treat a key as written after its write, although its object changed again in the meantime."""
    settle = Work.settle

    def settle_all(work: Work, key: Key, found: Item | None, kind: type[Item], since: int) -> None:
        settle(work, key, found, kind, work.generation)

    patch.setattr(Work, "settle", settle_all)


def look_while_refused(patch: pytest.MonkeyPatch) -> None:
    """Read all objects each second while any operation is refused."""
    audit_due_s = vars(Reconciler)["_audit_due_s"].fget

    def due_s(engine: Reconciler) -> float:
        due: float = audit_due_s(engine)
        return min(due, engine._looked_at + 1.0) if any(engine.refused()) else due

    patch.setattr(Reconciler, "_audit_due_s", property(due_s))


def build_before_removing(patch: pytest.MonkeyPatch) -> None:
    """Remove a renamed vxlan device as late as other links. Until the renamed link is removed, the kernel
    refuses its successor.
    """
    patch.setattr(diff, "_LINK_IN_THE_WAY_RANK", diff._REMOVAL_RANK - Rank.LINK)


def wait_for_all_targets(patch: pytest.MonkeyPatch) -> None:
    """Compare only after all targets have responded."""

    def awaited_until(reader: targets._Reader, now: float) -> float:
        return math.inf if reader.is_asked and reader.reading is None else -math.inf

    patch.setattr(targets._Reader, "awaited_until", awaited_until)


def sleep_through_events(patch: pytest.MonkeyPatch) -> None:
    """Retry refused operations only after their pause, regardless of events."""

    def is_hopeless(engine: Reconciler, operation: Operation) -> bool:
        mark = engine._work.get(operation.subject.key)
        return mark is not None and mark.refusal is not None

    patch.setattr(Reconciler, "_is_hopeless", is_hopeless)
    patch.setattr(Work, "hasten", lambda work, key, pause_s: None)


def drop_unreadable_leases(patch: pytest.MonkeyPatch) -> None:
    """Forget a lease that became unreadable at the next listing, although a watch keeps it."""

    def listed(
        known: LeaseSet, leases: Iterable[Lease], unreadable: Iterable[Unreadable], revision: int
    ) -> LeaseSet:
        return LeaseSet.of(leases, revision)

    patch.setattr(LeaseSet, "listed", listed)
