"""The state of the lease protocol, and the leases that are known after each event."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import (
    Action,
    Event,
    Held,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    Listed,
    PutLease,
    Seen,
    Unreadable,
    Wanted,
)
from pyflannel.model.lease_set import LeaseSet

Draw = Callable[[int], int]
"""`draw(n)` gives a number below n."""


@dataclass(frozen=True, slots=True)
class Listing:
    """All leases were asked for."""


@dataclass(frozen=True, slots=True)
class Resting:
    """Nothing is asked until then; after it, all leases are."""

    until: float


@dataclass(frozen=True, slots=True)
class Putting:
    """A lease was asked for, at that time.

    Attributes:
        occupied: the subnets that were known not to be free.
    """

    put: PutLease
    sent_at: float
    occupied: tuple[IPv4Network, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contesting:
    """The holder of `lease` has until then to show that it lives.

    Attributes:
        asked_at: when we asked for the claim: it cannot have expired before its TTL from then.
        claim_revision: the claim's, once it is written; until then nobody was asked anything.
    """

    lease: Lease
    until: float
    asked_at: float
    claim_revision: int = 0


@dataclass(frozen=True, slots=True)
class Reidentifying:
    """We are the copy of a living host, and wait for an identity of our own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """The lease is ours. A renewal is under way when `put` is given, or comes at `renew_at`."""

    renew_at: float | None
    put: PutLease | None = None
    sent_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Degraded:
    """The host runs on a subnet that the store gave to somebody else."""

    by: Lease


Phase = Listing | Resting | Putting | Contesting | Reidentifying | Holding | Degraded


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseState:
    """All that the protocol knows.

    Attributes:
        held: what the host runs on; None before the first lease.
        revision: everything up to it was seen, by a listing or a watch; the watch goes on from it.
        is_watching: a watch is open.
        is_unsure: the watch was lost, or is opened later than what it goes on from; whether in the store that
            we know is to be checked once it says that it is open.
        is_checking: that is under way.
        watch_at: when to open the watch again.
        failures: how often in a row the store did not answer.
        short_watches: how many watches in a row did not stay open, although the store answered between them.
        answered: owners at our address that showed that they live.
        runs_since: when this daemon first held a lease; None before.
        is_in_doubt: a write of our lease may take effect without our knowledge, and what is seen next may be
            it: one failed, or, before our first, one of our last life may be on its way.
        missed: changes of the subnet that we run on, or ask for, while an answer was awaited; the answer
            tells which of them came after it.
        wake_at: the time that was asked for last.
    """

    wanted: Wanted
    phase: Phase = Resting(0.0)
    held: Held | None = None
    revision: int = 0
    is_watching: bool = False
    is_unsure: bool = False
    is_checking: bool = False
    watch_at: float | None = None
    failures: int = 0
    short_watches: int = 0
    answered: frozenset[str] = frozenset()
    runs_since: float | None = None
    is_in_doubt: bool = True
    missed: tuple[LeaseChange, ...] = ()
    wake_at: float | None = None

    @property
    def is_settled(self) -> bool:
        """The store's key names us."""
        return isinstance(self.phase, Holding)

    @property
    def is_sure(self) -> bool:
        """The store is the one that we know: in another one, a revision that we know may be another's."""
        return self.is_watching and not self.is_unsure and not self.is_checking


Step = tuple[LeaseState, tuple[Action, ...]]
"""Where a host stands after an event, and what is to be done."""


def known_leases(leases: LeaseSet, event: Event, state: LeaseState) -> LeaseSet:
    """Return the known leases after `event`; `leases` itself when it says nothing new.

    `state` is where the protocol stood when the event came. A listing that took longer to arrive than what
    an open watch has told since is old news: nothing would ever tell again what came after it.
    """
    match event:
        case Listed(revision=revision) if _is_overtaken(revision, state):
            return leases
        case Listed(leases=listed, unreadable=unreadable, revision=revision):
            return leases.listed(listed, unreadable, revision)
        case Seen(changes):
            return leases.after(changes)
        case _:
            return leases


def _is_overtaken(revision: int, state: LeaseState) -> bool:
    return state.is_watching and not state.is_unsure and revision < state.revision


def apply_key_precedence(event: Event, before: LeaseSet, after: LeaseSet) -> Event:
    """Return the event without keys that another key of the same IPv4 subnet takes precedence over.

    `before` and `after` are the known leases before and after the event. The protocol asks for IPv4 subnets
    alone: at a key with an IPv6 subnet it neither loses a lease nor finds somebody who took it.
    """
    match event:
        case Listed():
            return _by_precedence(event)
        case Seen(changes, revision):
            return Seen(tuple(one for one in changes if _has_precedence(one, before, after)), revision)
        case _:
            return event


def _by_precedence(listed: Listed) -> Listed:
    if not any(one.ipv6_subnet for one in listed.leases + listed.unreadable):
        return listed
    first = LeaseSet.of(listed.leases).by_subnet
    alone = [one for one in listed.unreadable if one.ipv6_subnet is None]
    known = {*first, *(one.subnet for one in alone)}
    # The subnet is occupied, and its own key is free.
    others = (replace(one, revision=0) for one in listed.unreadable if one.subnet not in known)
    return replace(
        listed,
        leases=tuple(lease for lease in listed.leases if first[lease.subnet] is lease),
        unreadable=(*alone, *others),
    )


def _has_precedence(change: LeaseChange, before: LeaseSet, after: LeaseSet) -> bool:
    match change:
        case LeaseSeen(lease):
            subnet, ipv6_subnet = lease.subnet, lease.ipv6_subnet
        case LeaseGone(subnet, _, ipv6_subnet) | Unreadable(subnet, _, ipv6_subnet):
            pass
        case _:
            return True
    return ipv6_subnet is None or any(_is_at(subnet, ipv6_subnet, leases) for leases in (before, after))


def _is_at(subnet: IPv4Network, ipv6_subnet: IPv6Network, leases: LeaseSet) -> bool:
    lease = leases.by_subnet.get(subnet)
    return lease is not None and lease.ipv6_subnet == ipv6_subnet
