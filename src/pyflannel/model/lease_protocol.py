"""The lease protocol's vocabulary: what a host wants, what happens to it, and what it does about it.

Times are seconds of a clock that never steps and counts while the host sleeps.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from pyflannel.model.lease import LEASE_TTL_S, Claim, Lease, LeaseAttributes
from pyflannel.model.network_config import NetworkConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What this host asks of the store.

    Attributes:
        network: the range to take a subnet from.
        config_revision: the store's revision of that; None when it is not known or is out of date. Then no
            write depends on it.
        attributes: the attributes of our lease; its owner is our identity.
        previous: the subnet of our last life, from the old subnet.env; preferred when free.
        avoided: prefixes in the network that this host needs, or routes elsewhere: no new subnet overlaps one
            while there is another.
        ttl_s: how long a lease lasts unless it is renewed.
        renew_margin_s: how long before its end that is; at most half of it.
        renumbers: take another subnet when somebody else holds ours (`--on-subnet-lost=renumber`).
    """

    network: NetworkConfig
    config_revision: int | None = None
    attributes: LeaseAttributes
    previous: IPv4Network | None = None
    avoided: tuple[IPv4Network, ...] = ()
    ttl_s: int = LEASE_TTL_S
    renew_margin_s: float = 3600
    renumbers: bool = False

    @property
    def owner(self) -> str:
        """Our identity."""
        assert self.attributes.owner is not None  # a host of ours always has one
        return self.attributes.owner


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The subnet that the host runs on. Its containers have addresses of it: it never changes by itself.

    Attributes:
        expires_at: when the store drops the lease unless it is renewed; None for a reservation.
    """

    lease: Lease
    expires_at: float | None = None


# Writes. Each is conditional on the revision of the key.


@dataclass(frozen=True, slots=True, kw_only=True)
class PutLease:
    """Write a lease if its key has revision `expected` (0: is absent).

    And if the network config has revision `config_revision`, unless that is None: a subnet of another length
    may lie within this one, at another key.
    """

    lease: Lease
    ttl_s: int | None
    expected: int
    config_revision: int | None = None


@dataclass(frozen=True, slots=True)
class DeleteLease:
    """Delete a lease if it is still the one we saw."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class PutClaim:
    """Contest a lease, unless somebody does already."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class DeleteClaim:
    """Answer a claim: the holder of the lease is alive."""

    claim: Claim


Write = PutLease | DeleteLease | PutClaim | DeleteClaim


@dataclass(frozen=True, slots=True)
class Check:
    """Read the key of a lease that we know: a store that lost its data has it no longer."""

    lease: Lease


# What a watch sees.


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """A lease was written."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseGone:
    """A lease was deleted, or expired; with an IPv6 subnet where its key named one."""

    subnet: IPv4Network
    revision: int
    ipv6_subnet: IPv6Network | None = None


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Somebody wrote what is no lease at the key of `subnet`; the key is occupied all the same.

    So it is when the key names an IPv6 subnet beside it.
    """

    subnet: IPv4Network
    revision: int
    ipv6_subnet: IPv6Network | None = None


@dataclass(frozen=True, slots=True)
class ClaimSeen:
    """A claim was written."""

    claim: Claim


@dataclass(frozen=True, slots=True)
class ClaimGone:
    """A claim was answered, or expired."""

    subnet: IPv4Network
    revision: int


LeaseChange = LeaseSeen | LeaseGone | Unreadable | ClaimSeen | ClaimGone


# Events.


@dataclass(frozen=True, slots=True)
class Started:
    """The protocol may begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """All leases and claims at one revision."""

    leases: tuple[Lease, ...]
    claims: tuple[Claim, ...] = ()
    unreadable: tuple[Unreadable, ...] = ()
    revision: int


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a watch saw up to and with `revision`, in order."""

    changes: tuple[LeaseChange, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class WatchLost:
    """The watch ended.

    Attributes:
        is_compacted: the store no longer knows the revision it was to go on from.
        was_steady: it had been open for a while.
    """

    cause: str
    is_compacted: bool = False
    hint: str = ""
    was_steady: bool = True


@dataclass(frozen=True, slots=True)
class Wrote:
    """A write took effect at `revision`."""

    write: Write
    revision: int


@dataclass(frozen=True, slots=True)
class Conflicted:
    """A write lost its condition. `current` is the lease at the key; None when there is no readable one."""

    write: Write
    current: Lease | Claim | None


@dataclass(frozen=True, slots=True)
class Failed:
    """The store did not answer. A write may have taken effect all the same. None means the listing."""

    write: Write | Check | None
    cause: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """The lease at the key that was asked for; None when there is no readable one."""

    lease: Lease
    current: Lease | None


@dataclass(frozen=True, slots=True)
class Woke:
    """The time asked for has come."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """What the host asks for has changed: its address, its network config, its identity."""

    wanted: Wanted


Event = Started | Listed | Checked | Seen | WatchLost | Wrote | Conflicted | Failed | Woke | Ordered


# Actions beside the writes.


@dataclass(frozen=True, slots=True)
class List:
    """Ask the store for all leases and claims."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Watch leases and claims for all that comes after this revision."""

    after: int


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake us at this time; replaces the time asked for before."""

    at: float


@dataclass(frozen=True, slots=True)
class Reidentify:
    """Make a new identity: ours is a copy of a living host's. The answer is Ordered."""


# Reports to the operator.


@dataclass(frozen=True, slots=True)
class Picking:
    """A subnet is picked at random."""

    network: NetworkConfig


@dataclass(frozen=True, slots=True)
class Reusing:
    """A standing lease is ours and used again."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class ReusingPrevious:
    """The subnet of the old subnet.env is free and taken again."""

    subnet: IPv4Network


@dataclass(frozen=True, slots=True)
class Unsuitable:
    """A subnet of ours does not fit the network config.

    Attributes:
        fate: our lease is `deleted`; a reservation is `kept`, as it is the operator's to remove; the
            `previous` subnet of subnet.env is ignored.
    """

    subnet: IPv4Network
    fate: Literal["deleted", "kept", "previous"]


@dataclass(frozen=True, slots=True)
class Acquired:
    """The lease is ours from now on."""

    held: Held


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease was written again."""

    held: Held


@dataclass(frozen=True, slots=True)
class Lost:
    """Our lease is gone from the store; it is taken again, the data path stays."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Taken:
    """Another host holds our subnet; ours runs on, degraded, until the operator orders it to renumber."""

    lease: Lease
    by: Lease


@dataclass(frozen=True, slots=True)
class Contested:
    """A lease with our address belongs to another identity: its holder is asked whether it lives."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class SharedAddress:
    """Another living host has our address, or our identity; both report it.

    Attributes:
        subnet: of the lease by which they met.
        other: identity of the other host, or what it is to this one.
        is_ours: this host keeps that lease; else the other host holds it; None until they have settled that.
    """

    subnet: IPv4Network
    other: str
    public_ip: str
    is_ours: bool | None


@dataclass(frozen=True, slots=True)
class Exhausted:
    """No subnet is free."""

    network: NetworkConfig


@dataclass(frozen=True, slots=True)
class StoreAway:
    """The store does not answer, told at each try; the last known leases stay."""

    cause: str
    retry_in_s: float
    hint: str = ""


@dataclass(frozen=True, slots=True)
class StoreBack:
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
    | StoreAway
    | StoreBack
)
Action = Write | List | Check | Watch | Wake | Reidentify | Report
