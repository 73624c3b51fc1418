"""Who of the leases' holders is a peer: all but ourselves and those that could never work."""

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import SubnetMap

_FIRST_RESERVED = 0xF0000000
_BROADCAST = 0xFFFFFFFF
"""240.0.0.0/4 has no use yet (RFC 1112 section 4), but for the limited broadcast."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Leases that cannot all be right, and what is done about it."""

    text: str


@dataclass(frozen=True, slots=True)
class PeerChange:
    """What a peer was and is; None where it was or is none."""

    old: Lease | None
    new: Lease | None


class Peers:
    """The peers among the leases, kept up as leases come and go.

    What is left out, each with a conflict that says why: a lease outside the network, over our own subnet,
    with our own address or with none, and one that overlaps another's. Of two that overlap, the one whose
    length is the network's stays, then the one that comes first. Two peers with one address are both peers,
    as after an upgrade in a mixed network.

    However the leases came, the peers are those that the leases of now make.
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
        """Take in the leases as they are now; return what changed, in no order."""
        sound = [
            (subnet, was, now)
            for subnet, old, new in self._leases.differences(leases)
            for was, now in [(self._left(subnet, old), self._came(subnet, new))]
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
        """Yield the peers whose subnet holds this address; nearly always nobody."""
        for length in self._lengths:
            subnet = IPv4Network((address, length), strict=False)
            if subnet in self._leases and self._is_sound(subnet) and subnet not in self._overlapped:
                yield self._leases[subnet]

    def inside(self, subnets: Iterable[IPv4Network]) -> list[Lease]:
        """Return the peers whose own address lies in one of these subnets of the network."""
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
        """The leases that are left out, and why."""
        return {**self._unsound, **self._overlapped}

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """What is wrong with the leases, in the order of the subnets; the same tuple while nothing changes.

        There may be as many conflicts as leases, and a change of a sound lease must not cost all of them.
        """
        if self._conflicts is None:
            self._conflicts = self._all_conflicts()
        return self._conflicts

    def _all_conflicts(self) -> tuple[Conflict, ...]:
        shared = {
            subnet: Conflict(
                f"{_who(self._leases[subnet])} has the address of lease {first} too: both are used"
            )
            for sharing in self._sharing.values()
            for first, *others in [sorted(sharing, key=_range)]
            for subnet in others
            if subnet not in self._overlapped
        }
        reserved = {
            subnet: Conflict(
                f"{_who(self._leases[subnet])} has a reserved address, which many hosts and routers drop"
            )
            for subnet in self._reserved
        }
        found = {**reserved, **shared, **self.ignored}
        return tuple(found[subnet] for subnet in sorted(found, key=_range))

    def _left(self, subnet: IPv4Network, lease: Lease | None) -> Lease | None:
        """Note that a lease is no longer so; return it if it was sound."""
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

    def _came(self, subnet: IPv4Network, lease: Lease | None) -> Lease | None:
        """Note that a lease is so now; return it if it is sound."""
        if lease is None or subnet == self._own.subnet:
            return None
        objection = self._objection(lease)
        if objection is not None:
            self._unsound[subnet] = Conflict(f"{_who(lease)} {objection}: ignored")
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
        """Return whether what was taken in for this subnet is another's lease, and sound."""
        return subnet not in self._unsound and subnet != self._own.subnet

    def _objection(self, lease: Lease) -> str | None:
        """Return what is wrong with a lease whatever others there are."""
        first, last = _range(lease.subnet)
        own_first, own_last = self._own_range
        if self._network is not None and not self._network[0] <= first <= last <= self._network[1]:
            return f"lies outside the network {self._network_text}"
        if first <= own_last and own_first <= last:
            return f"overlaps our own {self._own.subnet}"
        address = lease.attributes.public_ip
        if address == self._own.attributes.public_ip and not self._is_told_apart(lease):
            return "has our own address, its packets would come back to us"
        return "has no address" if address.is_unspecified else None

    def _is_told_apart(self, lease: Lease) -> bool:
        """Return whether a NAT may tell the lease's host from us, as the ports behind its address differ."""
        ports = self._own.attributes.port, lease.attributes.port
        return None not in ports and ports[0] != ports[1]

    def _overlaps(self) -> dict[IPv4Network, Conflict]:
        """Return the sound leases that overlap a better one."""
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
                overlapped[subnet] = Conflict(f"{_who(self._leases[subnet])} overlaps lease {other}: ignored")
        return overlapped

    def _place(self, subnet: IPv4Network) -> tuple[bool, int, int]:
        return subnet.prefixlen != self._subnet_length, int(subnet.network_address), subnet.prefixlen

    def _join(self, address: IPv4Address, subnet: IPv4Network) -> None:
        """Note who is at an address: nearly always one, for whom a set would be large."""
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
    """Return first and last address: what sorts as the subnet does, ten times as fast."""
    first = int(subnet.network_address)
    return first, first | (0xFFFFFFFF >> subnet.prefixlen)


def _who(lease: Lease) -> str:
    return f"lease {lease.subnet} of {lease.attributes.host_text}"
