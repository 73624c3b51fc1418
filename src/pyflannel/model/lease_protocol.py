"""The values of the lease protocol: the wanted lease, the events, the actions and the reports.

Times are seconds of a clock that never steps and also counts while the host is suspended.
"""

from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from msgspec import Struct

from pyflannel.model.lease import LEASE_TTL_S, Claim, Lease, LeaseAttributes
from pyflannel.model.network_config import IpNetwork, NetworkConfig


class Wanted(Struct, frozen=True, kw_only=True):
    """The lease that this host wants.

    Attributes:
        network: the network config, with the range of subnets.
        config_revision: revision of the config in the store; None if the revision is unknown or out of date,
            so that no write depends on it.
        attributes: attributes of this host's lease; the owner is its identity.
        previous: the subnet of the previous run, from the old subnet.env; preferred if it is free.
        previous_ipv6: the IPv6 subnet of the previous run; preferred if it is free.
        avoided: prefixes in the network that this host needs or routes elsewhere. A new subnet overlaps such
            a prefix only if no other subnet is free.
        ttl_s: seconds until a lease expires unless it is renewed.
        renew_margin_s: seconds before the expiry at which the lease is renewed; at most half of the TTL.
        renumbers: True to take another subnet if another host holds the current subnet
            (`--on-subnet-lost=renumber`).
    """

    network: NetworkConfig
    config_revision: int | None = None
    attributes: LeaseAttributes
    previous: IPv4Network | None = None
    previous_ipv6: IPv6Network | None = None
    avoided: tuple[IpNetwork, ...] = ()
    ttl_s: int = LEASE_TTL_S
    renew_margin_s: float = 3600
    renumbers: bool = False

    @property
    def owner(self) -> str:
        """The identity of this host."""
        assert self.attributes.owner is not None  # a pyflannel host always has an identity
        return self.attributes.owner


class Held(Struct, frozen=True, kw_only=True):
    """The lease that the host uses.

    This lease changes only if an operator orders it, because containers have addresses of its subnet.

    Attributes:
        expires_at: time at which the lease expires unless it is renewed; None for a reservation.
    """

    lease: Lease
    expires_at: float | None = None


# Writes. Each write is conditional on the revision of the key.


class PutLease(Struct, frozen=True, kw_only=True):
    """Write a lease if its key has revision `expected` (0 means that the key must be absent).

    If `config_revision` is set, the network config must also have this revision. After a change of the
    config, a lease at another key may overlap this subnet.
    """

    lease: Lease
    ttl_s: int | None
    expected: int
    config_revision: int | None = None


class DeleteLease(Struct, frozen=True):
    """Delete a lease if it still has the known revision."""

    lease: Lease


class PutClaim(Struct, frozen=True):
    """Contest a lease, unless another host contests it already."""

    claim: Claim


class DeleteClaim(Struct, frozen=True):
    """Answer a claim, to show that the holder of the lease is alive."""

    claim: Claim


Write = PutLease | DeleteLease | PutClaim | DeleteClaim


class Check(Struct, frozen=True):
    """Read the key of a known lease. In a store that lost its data, the key is missing."""

    lease: Lease


# Changes that a watch delivers.


class LeaseSeen(Struct, frozen=True):
    """A lease was written."""

    lease: Lease


class LeaseGone(Struct, frozen=True):
    """A lease was deleted, or expired. The IPv6 subnet is set if its key contained one."""

    subnet: IpNetwork
    revision: int
    ipv6_subnet: IPv6Network | None = None


class Unreadable(Struct, frozen=True):
    """The key of `subnet` contains no valid lease, but the subnet counts as occupied.

    This value is also used for a key with an IPv6 subnet.
    """

    subnet: IpNetwork
    revision: int
    ipv6_subnet: IPv6Network | None = None


class ClaimSeen(Struct, frozen=True):
    """A claim was written."""

    claim: Claim


class ClaimGone(Struct, frozen=True):
    """A claim was answered, or expired."""

    subnet: IpNetwork
    revision: int


LeaseChange = LeaseSeen | LeaseGone | Unreadable | ClaimSeen | ClaimGone


# Events of the lease protocol.


class Started(Struct, frozen=True):
    """The protocol may begin."""


class Listed(Struct, frozen=True, kw_only=True):
    """All leases and claims at one revision."""

    leases: tuple[Lease, ...]
    claims: tuple[Claim, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    revision: int


class Seen(Struct, frozen=True):
    """All changes from a watch up to and including `revision`, in order."""

    changes: tuple[LeaseChange, ...]
    revision: int


class WatchLost(Struct, frozen=True):
    """The watch ended.

    Attributes:
        is_compacted: True if the store has compacted the revision from which the watch was to continue.
        was_steady: True if the watch was open long enough to count as working.
    """

    cause: str
    is_compacted: bool = False
    hint: str = ""
    was_steady: bool = True


class Wrote(Struct, frozen=True):
    """A write took effect at `revision`."""

    write: Write
    revision: int


class Conflicted(Struct, frozen=True):
    """The condition of a write was false. `current` is the lease at the key; None if the key contains no
    readable lease.
    """

    write: Write
    current: Lease | Claim | None


class Failed(Struct, frozen=True):
    """The store did not answer. A write may have taken effect nevertheless. The request is None for a list
    request.
    """

    write: Write | Check | None
    cause: str
    hint: str = ""


class Checked(Struct, frozen=True):
    """The lease at the checked key; None if the key contains no readable lease."""

    lease: Lease
    current: Lease | None


class Woke(Struct, frozen=True):
    """The requested time has been reached."""


class Ordered(Struct, frozen=True):
    """The wanted lease has changed: the address, the network config or the identity of the host."""

    wanted: Wanted


Event = Started | Listed | Checked | Seen | WatchLost | Wrote | Conflicted | Failed | Woke | Ordered


# Actions other than writes.


class List(Struct, frozen=True):
    """Request a list of all leases and claims."""


class Watch(Struct, frozen=True):
    """Watch leases and claims for changes after this revision."""

    after: int


class Wake(Struct, frozen=True):
    """Send a Woke event at this time. This time replaces the previously requested time."""

    at: float


class Reidentify(Struct, frozen=True):
    """Create a new identity, because this host is a copy of a running host. The answer is an Ordered
    event.
    """


# Reports to the operator.


class Picking(Struct, frozen=True):
    """This host picks a subnet at random."""

    network: NetworkConfig


class Reusing(Struct, frozen=True):
    """An existing lease matches this host and is used again."""

    lease: Lease


class ReusingPrevious(Struct, frozen=True):
    """The subnet of the old subnet.env is free and is acquired again."""

    subnet: IpNetwork


class Unsuitable(Struct, frozen=True):
    """The network config excludes a subnet of this host.

    Attributes:
        fate: `deleted` for a lease; `kept` for a reservation, because only the operator removes it;
            `previous` for the subnet in subnet.env, which is ignored.
    """

    subnet: IpNetwork
    fate: Literal["deleted", "kept", "previous"]


class Acquired(Struct, frozen=True):
    """This host holds the lease from this time on."""

    held: Held


class Renewed(Struct, frozen=True):
    """The lease was written again."""

    held: Held


class Lost(Struct, frozen=True):
    """This host's lease disappeared from the store. The host acquires the lease again; the data path is
    unaffected.
    """

    lease: Lease


class Taken(Struct, frozen=True):
    """Another host holds this host's subnet. This host keeps the subnet, degraded, until an operator
    orders it to renumber.
    """

    lease: Lease
    by: Lease


class Contested(Struct, frozen=True):
    """A lease with this host's address has another owner, which is asked whether it is alive."""

    lease: Lease


class SharedAddress(Struct, frozen=True):
    """Another running host has the address or the identity of this host. Both hosts report the conflict.

    Attributes:
        subnet: subnet of the lease that both hosts claim.
        other: identity of the other host, or its relation to this host.
        host: host name, if known, and address of the other host.
        is_ours: True if this host keeps that lease, False if the other host holds it, None if the conflict is
            undecided.
    """

    subnet: IpNetwork
    other: str
    host: str
    is_ours: bool | None


class Exhausted(Struct, frozen=True):
    """No subnet is free."""

    network: NetworkConfig


class Unassigned(Struct, frozen=True):
    """Kubernetes assigns this host no subnet that it can use, or the host cannot publish its lease.

    Attributes:
        cause: the missing condition.
        hint: the remedy.
    """

    cause: str
    hint: str


class StoreAway(Struct, frozen=True):
    """The store does not answer. The failure is reported at each attempt; the last known leases remain
    valid.
    """

    cause: str
    retry_in_s: float
    hint: str = ""


class StoreBack(Struct, frozen=True):
    """The store answers again."""


Report = (
    Picking
    | Reusing
    | ReusingPrevious
    | Unsuitable
    | Acquired
    | Renewed
    | Lost
    | Taken
    | Contested
    | SharedAddress
    | Exhausted
    | Unassigned
    | StoreAway
    | StoreBack
)
Action = Write | List | Check | Watch | Wake | Reidentify | Report
