"""The choice of a subnet: the host's own lease, the subnet of its previous run, or a free subnet."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_protocol import (
    DeleteLease,
    Exhausted,
    Listed,
    Picking,
    PutLease,
    Report,
    Reusing,
    ReusingPrevious,
    Unsuitable,
    Wanted,
)
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.backend.vxlan import may_stay
from pyflannel.plan.lease.state import Draw


def pick(
    config: NetworkConfig, occupied: Iterable[IPv4Network], draw: Callable[[int], int]
) -> IPv4Network | None:
    """Return a subnet of the config that overlaps none of `occupied`, or None if there is none.

    `draw(n)` returns a random number below n. The cost grows with the number of leases, not with the size of
    the network: the free subnets are counted, not listed.
    """
    if config.subnet_min is None or config.subnet_max is None:
        return None
    size = 1 << (32 - config.subnet_length)
    first, count = int(config.subnet_min), (int(config.subnet_max) - int(config.subnet_min)) // size + 1
    taken = _taken(occupied, first, size, count)
    free = count - len(taken)
    if free <= 0:
        return None
    index = _nth_free(taken, draw(free))
    return IPv4Network((IPv4Address(first + index * size), config.subnet_length))


def _taken(occupied: Iterable[IPv4Network], first: int, size: int, count: int) -> list[int]:
    """Return the indexes of the subnets that are not free, in order."""
    indexes: set[int] = set()
    for network in occupied:
        # broadcast_address is not used, because each network would cache it forever.
        offset = int(network.network_address) - first
        begin, end = offset // size, (offset + (1 << (32 - network.prefixlen)) - 1) // size
        indexes.update(range(max(begin, 0), min(end, count - 1) + 1))
    return sorted(indexes)


def _nth_free(taken: list[int], nth: int) -> int:
    """Return the index of the nth free subnet: taken[i] has taken[i] - i free ones before it."""
    return nth + bisect_right(range(len(taken)), nth, key=lambda i: taken[i] - i)


@dataclass(frozen=True, slots=True)
class Contest:
    """This host may take the lease if its holder is dead: ask the holder."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class TakenBy:
    """Another host holds the subnet that this host uses, or one that overlaps it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class NoneFree:
    """No subnet is free now."""


Choice = PutLease | Contest | TakenBy | NoneFree


def is_ours(lease: Lease, wanted: Wanted) -> bool:
    """Return whether a lease names this host: by its owner or, in a lease without an owner, by address."""
    owner = lease.attributes.owner
    if owner is None:
        return _has_our_address(lease, wanted)
    return owner == wanted.owner


def merged_attributes(existing: LeaseAttributes, wanted: Wanted) -> LeaseAttributes:
    """Return the attributes of a lease that replaces an existing one: the VTEP that peers know is kept.

    The VTEP of another owner is not kept, because that owner may return and then has the same MAC address.
    """
    attributes, owner = wanted.attributes, existing.owner
    if owner is not None and owner != wanted.owner:
        return attributes
    if attributes.vtep is None or not may_stay(existing.vtep, attributes.vtep):
        return attributes
    return replace(attributes, backend_data=existing.backend_data, vtep=existing.vtep)


def claim_on(lease: Lease, wanted: Wanted) -> PutLease:
    """Return the write that gives an existing lease the wanted attributes; a reservation remains one."""
    return PutLease(
        lease=replace(lease, attributes=merged_attributes(lease.attributes, wanted)),
        ttl_s=wanted.ttl_s if lease.has_ttl else None,
        expected=lease.revision,
    )


def create(subnet: IPv4Network, wanted: Wanted) -> PutLease:
    """Return the write that takes a free subnet, on condition that the network config is unchanged."""
    lease = Lease(subnet=subnet, attributes=wanted.attributes)
    return PutLease(lease=lease, ttl_s=wanted.ttl_s, expected=0, config_revision=wanted.config_revision)


def recreate(running: IPv4Network, wanted: Wanted, expected: int = 0) -> PutLease:
    """Return the write that acquires the subnet in use again, regardless of the current config."""
    lease = Lease(subnet=running, attributes=wanted.attributes)
    return PutLease(lease=lease, ttl_s=wanted.ttl_s, expected=expected)


def keep(running: IPv4Network, listed: Listed, wanted: Wanted, answered: frozenset[str]) -> Choice:
    """Choose for a host that already uses the subnet `running`: that subnet or none.

    `answered` contains the owners that are known to be alive.
    """
    for unreadable in listed.unreadable:
        if unreadable.subnet == running:
            return recreate(running, wanted, expected=unreadable.revision)
    existing = next((lease for lease in listed.leases if lease.subnet == running), None)
    if existing is not None and _looks_like_ours(existing, wanted) and _owner(existing) not in answered:
        return Contest(existing) if must_contest(existing, wanted) else claim_on(existing, wanted)
    others = (
        lease for lease in listed.leases if lease.subnet.overlaps(running) and not is_ours(lease, wanted)
    )
    if (other := existing or next(others, None)) is not None:
        return TakenBy(other)
    return recreate(running, wanted)


def choose(
    listed: Listed, wanted: Wanted, answered: frozenset[str], draw: Draw
) -> tuple[Choice, tuple[DeleteLease | Report, ...]]:
    """Choose for a host without a subnet; also return the deletions and reports before the choice.

    In this order: the host's own lease, by owner, then by address as in the original; the subnet of the
    previous run; the lease of a dead host with this host's address; any free subnet.
    `answered` contains the owners that are known to be alive.
    """
    before: list[DeleteLease | Report] = []
    own = (lease for lease in listed.leases if _looks_like_ours(lease, wanted))
    for lease in sorted(own, key=lambda lease: _preference(lease, wanted)):
        if not is_ours(lease, wanted) and _is_previous_free(occupied(listed), wanted):
            break  # running containers still use addresses of the previous subnet
        if not wanted.network.admits(lease.subnet):
            is_deleted = lease.has_ttl and _has_our_address(lease, wanted)
            before.append(Unsuitable(lease.subnet, "deleted" if is_deleted else "kept"))
            if is_deleted:
                before.append(DeleteLease(lease))
        elif must_contest(lease, wanted):
            if _owner(lease) not in answered:
                return Contest(lease), tuple(before)
        else:
            return claim_on(lease, wanted), (*before, Reusing(lease))
    choice, after = choose_free(occupied(listed), wanted, draw)
    return choice, (*before, *after)


def choose_free(
    taken: Sequence[IPv4Network], wanted: Wanted, draw: Draw
) -> tuple[PutLease | NoneFree, tuple[Report, ...]]:
    """Choose a subnet that overlaps none of `taken`: that of the previous run, or any."""
    reports: list[Report] = []
    previous = wanted.previous
    if previous is not None and _is_previous_free(taken, wanted):
        return create(previous, wanted), (ReusingPrevious(previous),)
    if previous is not None and not any(previous.overlaps(subnet) for subnet in taken):
        reports.append(Unsuitable(previous, "previous"))
    reports.append(Picking(wanted.network))
    subnet = pick(wanted.network, (*taken, *wanted.avoided), draw)
    if subnet is None and wanted.avoided:
        subnet = pick(wanted.network, taken, draw)
    if subnet is None:
        return NoneFree(), (*reports, Exhausted(wanted.network))
    return create(subnet, wanted), tuple(reports)


def _is_previous_free(taken: Sequence[IPv4Network], wanted: Wanted) -> bool:
    """Return whether the subnet of the previous run is available."""
    previous = wanted.previous
    if previous is None or not wanted.network.admits(previous):
        return False
    return not any(previous.overlaps(subnet) for subnet in taken)


def occupied(listed: Listed) -> list[IPv4Network]:
    """Return the leased subnets, including those of unreadable leases."""
    return [lease.subnet for lease in listed.leases] + [bad.subnet for bad in listed.unreadable]


def _preference(lease: Lease, wanted: Wanted) -> tuple[int, int]:
    """Return the sort key of a lease: the strongest match with this host first, then the newest."""
    if lease.attributes.owner is not None and is_ours(lease, wanted):
        rank = 1 if must_contest(lease, wanted) else 0
    elif is_ours(lease, wanted):
        rank = 2
    else:
        rank = 3
    return rank, -lease.revision


def must_contest(lease: Lease, wanted: Wanted) -> bool:
    """Return whether another living host may use this lease, although it matches this host."""
    # With another address: this host's old address, or that of a clone. With another identity: an earlier
    # identity of this host, or a living host with the same address. A clone has the same machine-id.
    return not (is_ours(lease, wanted) and _has_our_address(lease, wanted))


def _looks_like_ours(lease: Lease, wanted: Wanted) -> bool:
    return is_ours(lease, wanted) or _has_our_address(lease, wanted)


def _has_our_address(lease: Lease, wanted: Wanted) -> bool:
    address = wanted.attributes.public_ip
    return address != IPv4Address(0) and lease.attributes.public_ip == address


def _owner(lease: Lease) -> str:
    return lease.attributes.owner or ""
