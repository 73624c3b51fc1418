"""The leases of a network, as far as they are known."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import ClaimGone, ClaimSeen, LeaseChange, LeaseGone, LeaseSeen, Unreadable


@dataclass(frozen=True, slots=True)
class LeaseSet:
    """Leases by subnet, and the revision up to which they were listed at once.

    A listing replaces everything; a change from before the listing is old news and ignored. A value that
    became unreadable does not take the lease away: its host may be up and well.
    """

    by_subnet: Mapping[IPv4Network, Lease] = field(default_factory=dict)
    listed_at: int = 0

    @classmethod
    def of(cls, leases: Iterable[Lease], revision: int = 0) -> "LeaseSet":
        """Return the set that a listing at `revision` shows."""
        return cls({lease.subnet: lease for lease in leases}, revision)

    def after(self, changes: Iterable[LeaseChange]) -> "LeaseSet":
        """Return the set after these changes, in their order; itself when nothing changed."""
        by_subnet: dict[IPv4Network, Lease] | None = None
        for change in changes:
            match change:
                case LeaseSeen(lease) if lease.revision > self.listed_at:
                    by_subnet = dict(self.by_subnet) if by_subnet is None else by_subnet
                    by_subnet[lease.subnet] = lease
                case LeaseGone(subnet, revision) if revision > self.listed_at:
                    by_subnet = dict(self.by_subnet) if by_subnet is None else by_subnet
                    by_subnet.pop(subnet, None)
                case LeaseSeen() | LeaseGone() | Unreadable() | ClaimSeen() | ClaimGone():
                    pass
        return self if by_subnet is None else LeaseSet(by_subnet, self.listed_at)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self.by_subnet.values())

    def __len__(self) -> int:
        return len(self.by_subnet)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two leases that cannot both be right, and what is done about it."""

    text: str


def settle(
    leases: Iterable[Lease], own: Lease, network: IPv4Network | None
) -> tuple[tuple[Lease, ...], tuple[Conflict, ...]]:
    """Return the peers to plan for, in the order of their subnets, and the conflicts among all leases.

    A peer outside the network, or over our own subnet, is left out: its packets could never arrive. Two
    peers with one address are both planned, as after an upgrade in a mixed network.
    """
    peers: list[Lease] = []
    conflicts: list[Conflict] = []
    by_address: dict[IPv4Address, Lease] = {}
    for lease in sorted(leases, key=_place):
        if lease.subnet == own.subnet:
            continue
        if network is not None and not lease.subnet.subnet_of(network):
            conflicts.append(Conflict(f"{_who(lease)} lies outside the network {network}: ignored"))
            continue
        if lease.subnet.overlaps(own.subnet):
            conflicts.append(Conflict(f"{_who(lease)} overlaps our own {own.subnet}: ignored"))
            continue
        if (other := by_address.setdefault(lease.attributes.public_ip, lease)) is not lease:
            conflicts.append(
                Conflict(f"{_who(lease)} has the address of lease {other.subnet} too: both are used")
            )
        elif lease.attributes.public_ip == own.attributes.public_ip:
            conflicts.append(
                Conflict(f"{_who(lease)} has our own address: its packets would come back to us")
            )
        peers.append(lease)
    return tuple(peers), tuple(conflicts)


def _place(lease: Lease) -> tuple[int, int]:
    """Return what sorts as the subnet does, ten times as fast: it is asked for every lease at every event."""
    return int(lease.subnet.network_address), lease.subnet.prefixlen


def _who(lease: Lease) -> str:
    return f"lease {lease.subnet} of {lease.attributes.public_ip}"
