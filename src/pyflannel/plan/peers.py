"""The peers among the holders of leases: all other hosts, except those with unusable leases."""

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import SubnetMap

_FIRST_RESERVED = 0xF0000000
_BROADCAST = 0xFFFFFFFF
"""240.0.0.0/4 is unused (RFC 1112 section 4), except for the limited broadcast."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Conflicting leases, and the consequence."""

    text: str


@dataclass(frozen=True, slots=True)
class PeerChange:
    """The previous and the present lease of a peer; None if it was or is no peer."""

    old: Lease | None
    new: Lease | None


class Peers:
    """The peers among the leases, updated as leases change.

    These leases are ignored, each with a conflict that gives the reason: a lease outside the network, one
    that overlaps this host's subnet, one with this host's address or with no address, and one that overlaps
    another lease. Of two overlapping leases, the one with the length of the network is kept, or else the
    lower one. Two peers with one address are both peers, for example after an upgrade in a mixed network.

    The peers depend only on the present leases, not on their history.
    """

    def __init__(self, own: Lease, network: IPv4Network | None, subnet_length: int) -> None:
        self._own = own
        self._own_range = _range(own.subnet)
        self._network = None if network is None else _range(network)
        self._network_text = str(network)
        self._subnet_length = subnet_length
        self._leases: SubnetMap[Lease] = SubnetMap()
        self._unsound: dict[IPv4Network, Conflict] = {}
        self._overlapped: Mapping[IPv4Network, Conflict] = {}
        self._lengths: Counter[int] = Counter()
        self._at: dict[IPv4Address, IPv4Network] = {}
        self._sharing: dict[IPv4Address, set[IPv4Network]] = {}
        self._inside: dict[IPv4Network, int] = {}
        self._reserved: set[IPv4Network] = set()
        self._conflicts: tuple[Conflict, ...] | None = ()

    def update(self, leases: SubnetMap[Lease]) -> list[PeerChange]:
        """Update the peers to these leases; return the changes, in no order."""
        sound = [
            (subnet, was, now)
            for subnet, old, new in self._leases.differences(leases)
            for was, now in [(self._remove(subnet, old), self._add(subnet, new))]
            if was is not None or now is not None
        ]
        self._leases = leases
        if not sound:
            return []
        before, self._overlapped = self._overlapped, self._overlaps() if len(self._lengths) > 1 else {}
        if not before and not self._overlapped:
            return [PeerChange(was, now) for _, was, now in sound]
        self._conflicts = None
        changed = {subnet: (was, now) for subnet, was, now in sound}
        for subnet in before.keys() ^ self._overlapped.keys():
            if subnet not in changed:
                changed[subnet] = leases[subnet], leases[subnet]
        changes = [
            PeerChange(None if subnet in before else was, None if subnet in self._overlapped else now)
            for subnet, (was, now) in changed.items()
        ]
        return [change for change in changes if change.old is not change.new]

    def __iter__(self) -> Iterator[Lease]:
        for subnet, lease in self._leases.entries():
            if self._is_sound(subnet) and subnet not in self._overlapped:
                yield lease

    def __len__(self) -> int:
        return sum(self._lengths.values()) - len(self._overlapped)

    def has_address(self, address: IPv4Address) -> bool:
        """Return whether a lease of another host, sound by itself, has this address."""
        return address in self._at

    def covering(self, address: IPv4Address) -> Iterator[Lease]:
        """Yield the peers whose subnet contains this address; nearly always none."""
        for length in self._lengths:
            subnet = IPv4Network((address, length), strict=False)
            if subnet in self._leases and self._is_sound(subnet) and subnet not in self._overlapped:
                yield self._leases[subnet]

    def inside(self, subnets: Iterable[IPv4Network]) -> list[Lease]:
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
    def ignored(self) -> Mapping[IPv4Network, Conflict]:
        """The ignored leases, with the reason."""
        return {**self._unsound, **self._overlapped}

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """The conflicts, in the order of the subnets; the same tuple until they change.

        There may be as many conflicts as leases. A change of a valid lease must not need time for all of
        them.
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

    def _remove(self, subnet: IPv4Network, lease: Lease | None) -> Lease | None:
        """Remove the previous lease of a subnet; return it if it was valid."""
        if lease is None or not self._is_sound(subnet):
            if self._unsound.pop(subnet, None) is not None:
                self._conflicts = None
            return None
        self._lengths[subnet.prefixlen] -= 1
        if not self._lengths[subnet.prefixlen]:
            del self._lengths[subnet.prefixlen]
        self._leave(lease.attributes.public_ip, subnet)
        self._inside.pop(subnet, None)
        if subnet in self._reserved:
            self._reserved.discard(subnet)
            self._conflicts = None
        return lease

    def _add(self, subnet: IPv4Network, lease: Lease | None) -> Lease | None:
        """Add the present lease of a subnet; return it if it is valid."""
        if lease is None or subnet == self._own.subnet:
            return None
        objection = self._objection(lease)
        if objection is not None:
            self._unsound[subnet] = Conflict(f"{_text(lease)} {objection}: ignored")
            self._conflicts = None
            return None
        self._lengths[subnet.prefixlen] += 1
        self._join(lease.attributes.public_ip, subnet)
        address = int(lease.attributes.public_ip)
        if self._network is not None and self._network[0] <= address <= self._network[1]:
            self._inside[subnet] = address
        if _FIRST_RESERVED <= address < _BROADCAST:
            self._reserved.add(subnet)
            self._conflicts = None
        return lease

    def _is_sound(self, subnet: IPv4Network) -> bool:
        """Return whether the lease of this subnet belongs to another host and is valid."""
        return subnet not in self._unsound and subnet != self._own.subnet

    def _objection(self, lease: Lease) -> str | None:
        """Return the fault of a lease by itself, independent of other leases."""
        first, last = _range(lease.subnet)
        own_first, own_last = self._own_range
        if self._network is not None and not self._network[0] <= first <= last <= self._network[1]:
            return f"is outside the network {self._network_text}"
        if first <= own_last and own_first <= last:
            return f"overlaps this host's subnet {self._own.subnet}"
        address = lease.attributes.public_ip
        if address == self._own.attributes.public_ip and not self._has_other_port(lease):
            return "has this host's address, so its packets would return to this host"
        return "has no address" if address.is_unspecified else None

    def _has_other_port(self, lease: Lease) -> bool:
        """Return whether the port distinguishes the lease's host from this host behind the same NAT."""
        ports = self._own.attributes.port, lease.attributes.port
        return None not in ports and ports[0] != ports[1]

    def _overlaps(self) -> dict[IPv4Network, Conflict]:
        """Return the valid leases that overlap one with precedence."""
        overlapped: dict[IPv4Network, Conflict] = {}
        taken: list[tuple[int, int, IPv4Network]] = []
        for subnet in sorted(filter(self._is_sound, self._leases), key=self._place):
            first, last = _range(subnet)
            index = bisect_right(taken, first, key=lambda entry: entry[0])
            neighbours = taken[max(index - 1, 0) : index + 1]
            other = next((entry[2] for entry in neighbours if entry[0] <= last and first <= entry[1]), None)
            if other is None:
                insort(taken, (first, last, subnet))
            else:
                overlapped[subnet] = Conflict(
                    f"{_text(self._leases[subnet])} overlaps lease {other}: ignored"
                )
        return overlapped

    def _place(self, subnet: IPv4Network) -> tuple[bool, int, int]:
        return subnet.prefixlen != self._subnet_length, int(subnet.network_address), subnet.prefixlen

    def _join(self, address: IPv4Address, subnet: IPv4Network) -> None:
        """Note the subnet of an address. Nearly all addresses have one, so a set is only used for several."""
        first = self._at.setdefault(address, subnet)
        if first != subnet:
            self._sharing.setdefault(address, {first}).add(subnet)
            self._conflicts = None

    def _leave(self, address: IPv4Address, subnet: IPv4Network) -> None:
        sharing = self._sharing.get(address)
        if sharing is None:
            del self._at[address]
            return
        self._conflicts = None
        sharing.discard(subnet)
        self._at[address] = next(iter(sharing))
        if len(sharing) == 1:
            del self._sharing[address]


def _range(subnet: IPv4Network) -> tuple[int, int]:
    """Return first and last address, which sort as the subnet does, ten times as fast."""
    first = int(subnet.network_address)
    return first, first | (0xFFFFFFFF >> subnet.prefixlen)


def _text(lease: Lease) -> str:
    return f"lease {lease.subnet} of {lease.attributes.host_text}"
