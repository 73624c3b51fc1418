"""The peers: all other hosts with a lease, except hosts with an unusable lease."""

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_network

from msgspec import Struct

from pyflannel.model.lease import Lease, LeasePart
from pyflannel.model.lease_set import SubnetMap
from pyflannel.model.network_config import Family, IpAddress, IpNetwork

_FIRST_RESERVED = 0xF0000000
_BROADCAST = 0xFFFFFFFF
"""240.0.0.0/4 is unused (RFC 1112 section 4), except for the limited broadcast."""


class Conflict(Struct, frozen=True):
    """Leases that are in conflict, and the consequence of the conflict."""

    text: str


class PeerChange(Struct, frozen=True):
    """The previous and the current lease of a peer in an address family; None if the host was not, or is
    not, a peer.
    """

    old: Lease | None
    new: Lease | None
    family: Family = 4


class Peers:
    """The peers among the leases in one family, updated as leases change.

    A lease without a part in the family is not a peer in this family.

    These leases are ignored, each with a conflict that gives the reason: a lease outside the network, a lease
    that overlaps this host's subnet, a lease with this host's address or without an address, and a lease that
    overlaps another lease. Of two overlapping leases, the lease with the length of the network is kept, or
    otherwise the lease with the lower subnet. Two peers with one address are both peers, for example after an
    upgrade in a mixed network.

    The peers depend only on the current leases, not on their history.
    """

    def __init__(self, own: Lease, network: IpNetwork | None, subnet_length: int, family: Family = 4) -> None:
        self._own = own
        self._family = family
        own_part = own.part(family)
        self._own_subnet = None if own_part is None else own_part.subnet
        self._own_address = None if own_part is None else own_part.address
        self._own_range = (0, -1) if own_part is None else _range(own_part.subnet)
        self._network = None if network is None else _range(network)
        self._network_text = str(network)
        self._subnet_length = subnet_length
        self._leases: SubnetMap[Lease] = SubnetMap()
        self._unsound: dict[IpNetwork, Conflict] = {}
        self._overlapped: Mapping[IpNetwork, Conflict] = {}
        self._lengths: Counter[int] = Counter()
        self._at: dict[IpAddress, IpNetwork] = {}
        self._sharing: dict[IpAddress, set[IpNetwork]] = {}
        # The leases by their IPv6 subnet. Two leases may have the same IPv6 subnet, because only both subnets
        # together are a key of the store.
        self._by_ipv6: dict[IpNetwork, tuple[IpNetwork, ...]] = {}
        self._ipv6_doubles: set[IpNetwork] = set()
        self._inside: dict[IpNetwork, int] = {}
        self._reserved: set[IpNetwork] = set()
        self._conflicts: tuple[Conflict, ...] | None = ()

    def update(self, leases: SubnetMap[Lease]) -> list[PeerChange]:
        """Update the peers to these leases; return the changes, in no particular order."""
        sound = [
            (subnet, was, now)
            for subnet, old, new in self._leases.differences(leases)
            for was, now in [(self._remove(subnet, old), self._add(subnet, new))]
            if was is not None or now is not None
        ]
        self._leases = leases
        if not sound:
            return []
        may_overlap = len(self._lengths) > 1 or self._ipv6_doubles
        before, self._overlapped = self._overlapped, self._overlaps() if may_overlap else {}
        if not before and not self._overlapped:
            return [PeerChange(was, now, self._family) for _, was, now in sound]
        self._conflicts = None
        changed = {subnet: (was, now) for subnet, was, now in sound}
        for subnet in before.keys() ^ self._overlapped.keys():
            if subnet not in changed:
                changed[subnet] = leases[subnet], leases[subnet]
        changes = [
            PeerChange(
                None if subnet in before else was,
                None if subnet in self._overlapped else now,
                self._family,
            )
            for subnet, (was, now) in changed.items()
        ]
        return [change for change in changes if change.old is not change.new]

    def __iter__(self) -> Iterator[Lease]:
        for subnet, lease in self._leases.entries():
            if self._is_sound(lease) and subnet not in self._overlapped:
                yield lease

    def __len__(self) -> int:
        return sum(self._lengths.values()) - len(self._overlapped)

    def has_address(self, address: IpAddress) -> bool:
        """Return whether another host has this address in its lease. Only leases that are valid by themselves
        count.
        """
        return address in self._at

    def covering(self, address: IpAddress) -> Iterator[Lease]:
        """Yield the peers whose subnet contains this address; there is nearly always none."""
        for length in self._lengths:
            if (peer := self.at(ip_network((address, length), strict=False))) is not None:
                yield peer

    def at(self, subnet: IpNetwork) -> Lease | None:
        """Return the peer with this subnet in the family; None if there is none."""
        for key in self._leased(subnet):
            lease = self._leases.get(key)
            if lease is not None and self._is_sound(lease) and key not in self._overlapped:
                return lease
        return None

    def _leased(self, subnet: IpNetwork) -> tuple[IpNetwork, ...]:
        """Return the keys of the leases on a subnet of the family."""
        return (subnet,) if subnet.version == 4 else self._by_ipv6.get(subnet, ())

    def inside(self, subnets: Iterable[IpNetwork]) -> list[Lease]:
        """Return the peers with an address in one of these subnets of the network."""
        if not self._inside:
            return []
        by_mask: dict[int, set[int]] = {}
        for subnet in subnets:
            by_mask.setdefault(int(subnet.netmask), set()).add(int(subnet.network_address))
        found = [
            subnet
            for mask, bases in by_mask.items()
            for subnet, address in self._inside.items()
            if address & mask in bases and subnet not in self._overlapped
        ]
        return [self._leases[subnet] for subnet in dict.fromkeys(found)]

    @property
    def ignored(self) -> Mapping[IpNetwork, Conflict]:
        """The ignored leases, with the reason."""
        return {**self._unsound, **self._overlapped}

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """The conflicts, in the order of the subnets; the same tuple until they change.

        There may be as many conflicts as leases. A change of a valid lease must not take time for all
        conflicts.
        """
        if self._conflicts is None:
            self._conflicts = self._all_conflicts()
        return self._conflicts

    def _all_conflicts(self) -> tuple[Conflict, ...]:
        shared = {
            subnet: Conflict(
                f"{_text(self._leases[subnet])} has the same address as lease {first}: both are used"
            )
            for sharing in self._sharing.values()
            for first, *others in [sorted(sharing, key=_range)]
            for subnet in others
            if subnet not in self._overlapped
        }
        reserved = {
            subnet: Conflict(
                f"{_text(self._leases[subnet])} has a reserved address, which many hosts and routers drop"
            )
            for subnet in self._reserved
        }
        found = {**reserved, **shared, **self.ignored}
        return tuple(found[subnet] for subnet in sorted(found, key=_range))

    def _remove(self, subnet: IpNetwork, lease: Lease | None) -> Lease | None:
        """Remove the previous lease of a subnet; return it if it was valid."""
        part = None if lease is None else lease.part(self._family)
        if lease is None or part is None or not self._is_sound(lease):
            if self._unsound.pop(subnet, None) is not None:
                self._conflicts = None
            return None
        length = part.subnet.prefixlen
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]
        self._leave(part.address, subnet)
        if self._family == 6:
            self._forget_ipv6(part.subnet, subnet)
        self._inside.pop(subnet, None)
        if subnet in self._reserved:
            self._reserved.discard(subnet)
            self._conflicts = None
        return lease

    def _add(self, subnet: IpNetwork, lease: Lease | None) -> Lease | None:
        """Add the current lease of a subnet; return it if it is valid."""
        part = None if lease is None else lease.part(self._family)
        if lease is None or part is None or subnet == self._own.subnet:
            return None
        objection = self._objection(lease, part)
        if objection is not None:
            self._unsound[subnet] = Conflict(f"{_text(lease)} {objection}: ignored")
            self._conflicts = None
            return None
        self._lengths[part.subnet.prefixlen] += 1
        self._join(part.address, subnet)
        address = int(part.address)
        if self._network is not None and self._network[0] <= address <= self._network[1]:
            self._inside[subnet] = address
        if self._family == 6:
            self._note_ipv6(part.subnet, subnet)
        elif _FIRST_RESERVED <= address < _BROADCAST:
            self._reserved.add(subnet)
            self._conflicts = None
        return lease

    def _note_ipv6(self, ipv6_subnet: IpNetwork, subnet: IpNetwork) -> None:
        known = self._by_ipv6.get(ipv6_subnet, ())
        self._by_ipv6[ipv6_subnet] = (*known, subnet)
        if known:
            self._ipv6_doubles.add(ipv6_subnet)

    def _forget_ipv6(self, ipv6_subnet: IpNetwork, subnet: IpNetwork) -> None:
        others = tuple(one for one in self._by_ipv6.pop(ipv6_subnet, ()) if one != subnet)
        if others:
            self._by_ipv6[ipv6_subnet] = others
        if len(others) < 2:
            self._ipv6_doubles.discard(ipv6_subnet)

    def _is_sound(self, lease: Lease) -> bool:
        """Return whether a lease belongs to another host, has a part in the family, and is valid."""
        if lease.subnet in self._unsound or lease.subnet == self._own.subnet:
            return False
        return lease.part(self._family) is not None

    def _objection(self, lease: Lease, part: LeasePart) -> str | None:
        """Return the reason why a lease is invalid by itself, independent of other leases."""
        first, last = _range(part.subnet)
        own_first, own_last = self._own_range
        if self._network is not None and not self._network[0] <= first <= last <= self._network[1]:
            return f"is outside the network {self._network_text}"
        if first <= own_last and own_first <= last:
            return f"overlaps this host's subnet {self._own_subnet}"
        address = part.address
        if address == self._own_address and not self._has_other_port(lease):
            return "has this host's address, so its packets would return to this host"
        return "has no address" if address.is_unspecified else None

    def _has_other_port(self, lease: Lease) -> bool:
        """Return whether the port distinguishes the lease's host from this host behind the same NAT."""
        ports = self._own.attributes.port, lease.attributes.port
        return None not in ports and ports[0] != ports[1]

    def _overlaps(self) -> dict[IpNetwork, Conflict]:
        """Return the valid leases that overlap a lease with precedence."""
        overlapped: dict[IpNetwork, Conflict] = {}
        taken: list[tuple[int, int, IpNetwork]] = []
        parts = {
            lease.subnet: self._part_of(lease) for lease in self._leases.values() if self._is_sound(lease)
        }
        for subnet in sorted(parts, key=lambda key: (*self._place(parts[key]), *_range(key))):
            part = parts[subnet]
            first, last = _range(part)
            index = bisect_right(taken, first, key=lambda entry: entry[0])
            neighbours = taken[max(index - 1, 0) : index + 1]
            other = next((entry[2] for entry in neighbours if entry[0] <= last and first <= entry[1]), None)
            if other is None:
                insort(taken, (first, last, part))
            else:
                overlapped[subnet] = Conflict(
                    f"{_text(self._leases[subnet])} overlaps lease {other}: ignored"
                )
        return overlapped

    def _part_of(self, lease: Lease) -> IpNetwork:
        return lease.subnet if self._family == 4 or lease.ipv6_subnet is None else lease.ipv6_subnet

    def _place(self, subnet: IpNetwork) -> tuple[bool, int, int]:
        return subnet.prefixlen != self._subnet_length, int(subnet.network_address), subnet.prefixlen

    def _join(self, address: IpAddress, subnet: IpNetwork) -> None:
        """Record the subnet of an address. Nearly all addresses have only one subnet, so a set is used
        only if there are several.
        """
        first = self._at.setdefault(address, subnet)
        if first != subnet:
            self._sharing.setdefault(address, {first}).add(subnet)
            self._conflicts = None

    def _leave(self, address: IpAddress, subnet: IpNetwork) -> None:
        sharing = self._sharing.get(address)
        if sharing is None:
            del self._at[address]
            return
        self._conflicts = None
        sharing.discard(subnet)
        self._at[address] = next(iter(sharing))
        if len(sharing) == 1:
            del self._sharing[address]


def _range(subnet: IpNetwork) -> tuple[int, int]:
    """Return the first and the last address of a subnet, which have the same sort order as the subnet and are
    compared ten times as fast.
    """
    first = int(subnet.network_address)
    return first, first | ((1 << (subnet.max_prefixlen - subnet.prefixlen)) - 1)


def _text(lease: Lease) -> str:
    return f"lease {lease.text} of {lease.attributes.host_text}"


def subnet_of(lease: Lease, family: Family) -> IpNetwork:
    """Return the subnet of a peer in an address family in which the peer has a subnet."""
    return lease.subnet if family == 4 or lease.ipv6_subnet is None else lease.ipv6_subnet


def place_of(lease: Lease) -> tuple[int, int, int]:
    """Return a key that sorts leases by their subnets, and is compared ten times as fast as the subnet
    itself.
    """
    return place_of_subnet(lease.subnet)


def place_of_subnet(subnet: IpNetwork) -> tuple[int, int, int]:
    """Return a key that sorts subnets of both families, IPv4 first."""
    return subnet.version, int(subnet.network_address), subnet.prefixlen


def differences(before: Mapping[Family, Peers], now: Mapping[Family, Peers]) -> Iterator[PeerChange]:
    """Yield the peers that differ between `before` and `now`."""
    for family in sorted({*before, *now}):
        old = {peer.subnet: peer for peer in before.get(family, ())}
        new = {peer.subnet: peer for peer in now.get(family, ())}
        for subnet in old.keys() | new.keys():
            if old.get(subnet) is not new.get(subnet):
                yield PeerChange(old.get(subnet), new.get(subnet), family)
