"""The state of the lease protocol, and the known leases after each event."""

from collections.abc import Callable
from ipaddress import IPv6Network

from msgspec import Struct
from msgspec.structs import replace

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
from pyflannel.model.network_config import IpNetwork

Draw = Callable[[int], int]
"""`draw(n)` returns a random number below n."""


class Listing(Struct, frozen=True):
    """A list of all leases was requested."""


class Resting(Struct, frozen=True):
    """The host sends no request before `until`, and then requests a list of all leases."""

    until: float


class Putting(Struct, frozen=True):
    """A write of a lease was requested, at time `sent_at`.

    Attributes:
        occupied: the subnets that were known to be leased at that time.
    """

    put: PutLease
    sent_at: float
    occupied: tuple[IpNetwork, ...] = ()


class Contesting(Struct, frozen=True, kw_only=True):
    """The holder of `lease` must show before `until` that it is running.

    Attributes:
        asked_at: time at which the claim was requested. The claim cannot expire earlier than its TTL after
            this time.
        claim_revision: revision of the claim after it was written; 0 before that.
    """

    lease: Lease
    until: float
    asked_at: float
    claim_revision: int = 0


class Reidentifying(Struct, frozen=True):
    """This host is a copy of a running host, and waits for a new identity."""


class Holding(Struct, frozen=True, kw_only=True):
    """This host holds the lease. If `put` is set, a renewal is in progress; otherwise the next renewal is
    due at `renew_at`.
    """

    renew_at: float | None
    put: PutLease | None = None
    sent_at: float = 0.0


class Degraded(Struct, frozen=True):
    """The host keeps using a subnet that another host holds in the store."""

    by: Lease


Phase = Listing | Resting | Putting | Contesting | Reidentifying | Holding | Degraded


class LeaseState(Struct, frozen=True, kw_only=True):
    """The complete state of the protocol.

    Attributes:
        held: the lease that the host uses; None before the first lease.
        revision: latest revision that a list response or a watch has delivered; the watch continues from it.
        is_watching: True if a watch is open.
        is_unsure: True if the watch was lost, or was opened later than the list that it continues. When the
            watch is open, a check must show whether the store still has the same data.
        is_checking: True if this check is in progress.
        watch_at: time at which the watch will be opened again.
        failures: number of consecutive requests without an answer.
        short_watches: number of consecutive watches that did not stay open although the store answered.
        answered: owners with this host's address that have shown that they are running.
        runs_since: time at which this daemon first held a lease; None before that.
        is_in_doubt: True if a write of this host's lease may take effect without the knowledge of this host,
            so that the next change may be this write. A write is in doubt if a request failed, or if a write
            of the previous run may be in transit.
        missed: changes of the used or requested subnet that arrived while the host waited for an answer. The
            answer shows which of these changes are later.
        wake_at: the latest requested time of a wake-up.
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
        """True if the key in the store contains a lease of this host."""
        return isinstance(self.phase, Holding)

    @property
    def is_sure(self) -> bool:
        """True if the store has all its data; False if a known revision may belong to another write."""
        return self.is_watching and not self.is_unsure and not self.is_checking


Step = tuple[LeaseState, tuple[Action, ...]]
"""The state after an event, and the actions to perform."""


def known_leases(leases: LeaseSet, event: Event, state: LeaseState) -> LeaseSet:
    """Return the known leases after `event`; the object `leases` itself if nothing changed.

    `state` is the state of the protocol before the event. A list that is older than the changes from an open
    watch is ignored, because the watch would not deliver the later changes again.
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
    """Return the event without the keys over which another key of the same IPv4 subnet has precedence.

    `before` and `after` are the known leases before and after the event. The protocol requests only IPv4
    subnets. A key with an IPv6 subnet is therefore neither the loss of a lease nor another holder of the
    lease.
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
    leases, subnets = listed.leases, {lease.subnet for lease in listed.leases}
    if len(subnets) < len(leases):
        first = LeaseSet.of(leases).by_subnet
        leases = tuple(lease for lease in leases if first.get(lease.subnet) is lease)
    alone = [one for one in listed.unreadable if one.ipv6_subnet is None]
    known = {*subnets, *(one.subnet for one in alone)}
    # The subnet is occupied, although its own key is free.
    others = (replace(one, revision=0) for one in listed.unreadable if one.subnet not in known)
    return replace(
        listed,
        leases=leases,
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


def _is_at(subnet: IpNetwork, ipv6_subnet: IPv6Network, leases: LeaseSet) -> bool:
    lease = leases.by_subnet.get(subnet)
    return lease is not None and lease.ipv6_subnet == ipv6_subnet
