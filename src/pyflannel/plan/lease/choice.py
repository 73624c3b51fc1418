"""The choice of a subnet: the subnet of the host's own lease, the subnet of its previous run, or a free
subnet.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.lease import BackendPart, Lease, LeaseAttributes, Vtep
from pyflannel.model.lease_protocol import (
    DeleteLease,
    Exhausted,
    Listed,
    Picking,
    PutLease,
    Report,
    Reusing,
    ReusingPrevious,
    Unreadable,
    Unsuitable,
    Wanted,
)
from pyflannel.model.network_config import IpAddress, IpNetwork, NetworkConfig
from pyflannel.plan.backend.vxlan import may_stay
from pyflannel.plan.lease.state import Draw


def pick(
    config: NetworkConfig, occupied: Iterable[IpNetwork], draw: Callable[[int], int]
) -> IPv4Network | None:
    """Return a subnet of the config that overlaps none of `occupied`, or None if no subnet is free.

    `draw(n)` returns a random number below n. The cost grows with the number of leases, not with the size of
    the network, because the free subnets are counted, not listed.
    """
    if config.subnet_min is None or config.subnet_max is None:
        return None
    free = _Free(config.subnet_min, config.subnet_max, config.subnet_length, occupied)
    if free.count <= 0:
        return None
    return IPv4Network((free.base(free.nth(draw(free.count))), config.subnet_length))


def pick_ipv6(
    config: NetworkConfig, occupied: Iterable[IpNetwork], subnet: IPv4Network
) -> IPv6Network | None:
    """Return an IPv6 subnet for a host with this IPv4 subnet that overlaps none of `occupied`, or None.

    If possible, the number of the IPv6 subnet in the IPv6 range equals the number of the IPv4 subnet in the
    IPv4 range. Therefore two hosts that choose the same IPv4 subnet at the same time choose the same key. The
    store accepts only one of the two writes. The original chooses both at random, and may give an IPv4 subnet
    to two hosts.
    """
    least, greatest = config.ipv6_subnet_min, config.ipv6_subnet_max
    if least is None or greatest is None or config.subnet_min is None:
        return None
    free = _Free(least, greatest, config.ipv6_subnet_length, occupied)
    if free.count <= 0:
        return None
    offset = int(subnet.network_address) - int(config.subnet_min)
    index = (offset >> (32 - config.subnet_length)) % free.total
    if not free.has(index):
        index = free.nth(index % free.count)
    return IPv6Network((free.base(index), config.ipv6_subnet_length))


class _Free:
    """The free subnets of a range, by their number in the range.

    Attributes:
        total: number of all subnets.
        count: number of free subnets.
    """

    def __init__(
        self, least: IpAddress, greatest: IpAddress, length: int, occupied: Iterable[IpNetwork]
    ) -> None:
        width = least.max_prefixlen
        self._first, self._size = int(least), 1 << (width - length)
        self.total = (int(greatest) - self._first) // self._size + 1
        spans = []
        for network in occupied:
            if network.max_prefixlen == width:
                # broadcast_address is not used, because each network object would cache it forever.
                offset = int(network.network_address) - self._first
                last = offset + (1 << (width - network.prefixlen)) - 1
                spans.append((max(offset // self._size, 0), min(last // self._size + 1, self.total)))
        self._taken: list[tuple[int, int]] = []
        end = 0
        for start, stop in sorted(spans):
            if stop > max(start, end):
                self._taken.append((max(start, end), stop))
                end = stop
        self.count = self.total - sum(stop - start for start, stop in self._taken)

    def has(self, index: int) -> bool:
        """Return whether the subnet with this number is free."""
        place = bisect_right(self._taken, index, key=lambda span: span[0])
        return not place or index >= self._taken[place - 1][1]

    def nth(self, number: int) -> int:
        """Return the number in the range of the free subnet with this number among the free subnets."""
        for start, stop in self._taken:
            if number < start:
                break
            number += stop - start
        return number

    def base(self, index: int) -> int:
        """Return the first address of a subnet."""
        return self._first + index * self._size


class Contest(Struct, frozen=True):
    """This host may take the lease if its holder is dead, so the holder must be asked."""

    lease: Lease


class TakenBy(Struct, frozen=True):
    """Another host holds the subnet that this host uses, or a subnet that overlaps it."""

    lease: Lease


class NoneFree(Struct, frozen=True):
    """Currently, no subnet is free."""


Choice = PutLease | Contest | TakenBy | NoneFree


def is_ours(lease: Lease, wanted: Wanted) -> bool:
    """Return whether a lease names this host, either by its owner or, if the lease has no owner, by its
    address.
    """
    owner = lease.attributes.owner
    if owner is None:
        return _has_our_address(lease, wanted)
    return owner == wanted.owner


def merged_attributes(existing: LeaseAttributes, wanted: Wanted) -> LeaseAttributes:
    """Return the attributes of a lease that replaces an existing lease: the VTEPs that peers know are kept.

    The VTEPs of another owner are not kept, because that owner may return and then has the same MAC
    addresses.
    """
    attributes, owner = wanted.attributes, existing.owner
    if owner is not None and owner != wanted.owner:
        return attributes
    known = (existing.backend_part, *existing.also)
    part, *also = (_with_known_vteps(one, known) for one in (attributes.backend_part, *attributes.also))
    return attributes.with_backend(part, tuple(also))


def _with_known_vteps(part: BackendPart, known: Sequence[BackendPart]) -> BackendPart:
    ipv4 = next((one for one in known if _may_stay(one.vtep, part.vtep)), part)
    ipv6 = next((one for one in known if _may_stay(one.vtep_v6, part.vtep_v6)), part)
    return replace(
        part,
        backend_data=ipv4.backend_data,
        vtep=ipv4.vtep,
        backend_v6_data=ipv6.backend_v6_data,
        vtep_v6=ipv6.vtep_v6,
    )


def _may_stay(existing: Vtep | None, wanted: Vtep | None) -> bool:
    return wanted is not None and may_stay(existing, wanted)


def claim_on(lease: Lease, wanted: Wanted) -> PutLease:
    """Return the write that gives an existing lease the wanted attributes; a reservation remains a
    reservation.
    """
    return PutLease(
        lease=replace(lease, attributes=merged_attributes(lease.attributes, wanted)),
        ttl_s=wanted.ttl_s if lease.has_ttl else None,
        expected=lease.revision,
    )


def create(subnet: IPv4Network, ipv6_subnet: IPv6Network | None, wanted: Wanted) -> PutLease:
    """Return the write that takes free subnets, on condition that the network config is unchanged."""
    lease = Lease(subnet=subnet, ipv6_subnet=ipv6_subnet, attributes=wanted.attributes)
    return PutLease(lease=lease, ttl_s=wanted.ttl_s, expected=0, config_revision=wanted.config_revision)


def lacks_ipv6(lease: Lease, wanted: Wanted) -> bool:
    """Return whether the network has IPv6, and a lease has no IPv6 subnet."""
    return wanted.network.enable_ipv6 and lease.ipv6_subnet is None


def with_ipv6(lease: Lease, listed: Listed, wanted: Wanted) -> PutLease | None:
    """Return the write of a lease with the same IPv4 subnet and an IPv6 subnet; None if no IPv6 subnet is
    free.

    This lease has another key. The existing key is deleted first. An original that sees the deletion of a key
    removes its route to the IPv4 subnet, even if another key contains this subnet.
    """
    subnet = _free_ipv6(lease.ipv4.subnet, occupied(listed), wanted)
    if subnet is None:
        return None
    attributes = merged_attributes(lease.attributes, wanted)
    return PutLease(
        lease=Lease(subnet=lease.subnet, ipv6_subnet=subnet, attributes=attributes),
        ttl_s=wanted.ttl_s if lease.has_ttl else None,
        expected=0,
        config_revision=wanted.config_revision,
    )


def _free_ipv6(subnet: IPv4Network, taken: Sequence[IpNetwork], wanted: Wanted) -> IPv6Network | None:
    """Return the IPv6 subnet of the previous run, if it is free, or another free subnet."""
    previous = wanted.previous_ipv6
    if previous is not None and subnet == wanted.previous and _is_free(previous, taken, wanted):
        return previous
    found = pick_ipv6(wanted.network, (*taken, *wanted.avoided), subnet)
    return found or pick_ipv6(wanted.network, taken, subnet)


def recreate(running: Lease, wanted: Wanted, expected: int = 0) -> PutLease:
    """Return the write that acquires the subnets in use again, regardless of the current config."""
    lease = Lease(subnet=running.subnet, ipv6_subnet=running.ipv6_subnet, attributes=wanted.attributes)
    return PutLease(lease=lease, ttl_s=wanted.ttl_s, expected=expected)


def keep(held: Lease, listed: Listed, wanted: Wanted, answered: frozenset[str]) -> Choice:
    """Choose for a host that already uses the subnet of the lease `held`: either that subnet, or none.

    `answered` contains the owners that are known to be alive.
    """
    running = held.subnet
    for unreadable in listed.unreadable:
        if unreadable.subnet == running:
            is_same_key = unreadable.ipv6_subnet == held.ipv6_subnet
            return recreate(held, wanted, expected=unreadable.revision if is_same_key else 0)
    existing = next((lease for lease in listed.leases if lease.subnet == running), None)
    if existing is not None and _looks_like_ours(existing, wanted) and _owner(existing) not in answered:
        return Contest(existing) if must_contest(existing, wanted) else claim_on(existing, wanted)
    others = (
        lease for lease in listed.leases if lease.subnet.overlaps(running) and not is_ours(lease, wanted)
    )
    if (other := existing or next(others, None)) is not None:
        return TakenBy(other)
    return recreate(held, wanted)


def choose(
    listed: Listed, wanted: Wanted, answered: frozenset[str], draw: Draw
) -> tuple[Choice, tuple[DeleteLease | Report, ...]]:
    """Choose for a host without a subnet; also return the deletions and reports before the choice.

    Candidates in order of precedence: the host's own lease (by owner, or otherwise by address as in the
    original); the subnet of the previous run; the lease of a dead host with this host's address; any free
    subnet. `answered` contains the owners that are known to be alive.
    """
    before: list[DeleteLease | Report] = []
    own = (lease for lease in listed.leases if _looks_like_ours(lease, wanted))
    for lease in sorted(own, key=lambda lease: _preference(lease, wanted)):
        if not is_ours(lease, wanted) and _is_previous_free(occupied(listed), wanted):
            break  # running containers still use addresses of the previous subnet
        if not _is_admitted(lease, wanted):
            is_deleted = lease.has_ttl and _has_our_address(lease, wanted)
            before.append(Unsuitable(lease.subnet, "deleted" if is_deleted else "kept"))
            if is_deleted:
                before.append(DeleteLease(lease))
        elif must_contest(lease, wanted):
            if _owner(lease) not in answered:
                return Contest(lease), tuple(before)
        elif lacks_ipv6(lease, wanted):
            put = with_ipv6(lease, listed, wanted)
            if put is None:
                return NoneFree(), (*before, Exhausted(wanted.network))
            return put, (*before, DeleteLease(lease))
        else:
            return claim_on(lease, wanted), (*before, Reusing(lease))
    choice, after = choose_free(occupied(listed), wanted, draw)
    return choice, (*before, *after)


def choose_free(
    taken: Sequence[IpNetwork], wanted: Wanted, draw: Draw
) -> tuple[PutLease | NoneFree, tuple[Report, ...]]:
    """Choose a subnet that overlaps none of `taken`: the subnet of the previous run, or any other free
    subnet.
    """
    reports: list[Report] = []
    previous = wanted.previous
    if previous is not None and _is_previous_free(taken, wanted):
        choice = _with_free_ipv6(previous, taken, wanted)
        if isinstance(choice, PutLease):
            return choice, (ReusingPrevious(previous),)
    if previous is not None and not any(previous.overlaps(subnet) for subnet in taken):
        reports.append(Unsuitable(previous, "previous"))
    reports.append(Picking(wanted.network))
    subnet = pick(wanted.network, (*taken, *wanted.avoided), draw)
    if subnet is None and wanted.avoided:
        subnet = pick(wanted.network, taken, draw)
    if subnet is None:
        return NoneFree(), (*reports, Exhausted(wanted.network))
    choice = _with_free_ipv6(subnet, taken, wanted)
    if isinstance(choice, NoneFree):
        reports.append(Exhausted(wanted.network))
    return choice, tuple(reports)


def _with_free_ipv6(subnet: IPv4Network, taken: Sequence[IpNetwork], wanted: Wanted) -> PutLease | NoneFree:
    """Return the write that takes an IPv4 subnet and, if the network has IPv6, a free IPv6 subnet."""
    if not wanted.network.enable_ipv6:
        return create(subnet, None, wanted)
    ipv6_subnet = _free_ipv6(subnet, taken, wanted)
    return NoneFree() if ipv6_subnet is None else create(subnet, ipv6_subnet, wanted)


def _is_admitted(lease: Lease, wanted: Wanted) -> bool:
    config = wanted.network
    return config.admits(lease.subnet) and (lease.ipv6_subnet is None or config.admits(lease.ipv6_subnet))


def _is_previous_free(taken: Sequence[IpNetwork], wanted: Wanted) -> bool:
    """Return whether the IPv4 subnet of the previous run is available."""
    return wanted.previous is not None and _is_free(wanted.previous, taken, wanted)


def _is_free(subnet: IpNetwork, taken: Sequence[IpNetwork], wanted: Wanted) -> bool:
    return wanted.network.admits(subnet) and not any(subnet.overlaps(other) for other in taken)


def occupied(listed: Listed) -> list[IpNetwork]:
    """Return the leased subnets of both families, including those of unreadable leases."""
    known: tuple[Lease | Unreadable, ...] = (*listed.leases, *listed.unreadable)
    ipv6 = [one.ipv6_subnet for one in known if one.ipv6_subnet is not None]
    return [*(one.subnet for one in known), *ipv6]


def _preference(lease: Lease, wanted: Wanted) -> tuple[int, int]:
    """Return the sort key of a lease. The strongest match with this host is first, then the newest lease."""
    if lease.attributes.owner is not None and is_ours(lease, wanted):
        rank = 1 if must_contest(lease, wanted) else 0
    elif is_ours(lease, wanted):
        rank = 2
    else:
        rank = 3
    return rank, -lease.revision


def must_contest(lease: Lease, wanted: Wanted) -> bool:
    """Return whether another running host may use this lease, although it matches this host."""
    # A lease with another address has this host's old address, or the address of a clone. A lease with
    # another identity has an earlier identity of this host, or belongs to a running host with the same
    # address. A clone has the same machine-id.
    return not (is_ours(lease, wanted) and _has_our_address(lease, wanted))


def _looks_like_ours(lease: Lease, wanted: Wanted) -> bool:
    return is_ours(lease, wanted) or _has_our_address(lease, wanted)


def _has_our_address(lease: Lease, wanted: Wanted) -> bool:
    address = wanted.attributes.public_ip
    return address != IPv4Address(0) and lease.attributes.public_ip == address


def _owner(lease: Lease) -> str:
    return lease.attributes.owner or ""
