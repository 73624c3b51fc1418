"""The known leases of a network, by subnet, in a map whose changed copies share the unchanged parts."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv6Network
from typing import TypeVar

from msgspec import field
from msgspec.structs import replace

from pyflannel.model.lease import Lease, Vtep, WireguardData
from pyflannel.model.lease_protocol import ClaimGone, ClaimSeen, LeaseChange, LeaseGone, LeaseSeen, Unreadable
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.store_record import PartlyCompared

_Value = TypeVar("_Value")

_SHARD_MAX = 64
"""Maximum number of entries of a shard on average, before the number of shards is quadrupled."""

_GROWTH = 4


class SubnetMap(Mapping[IpNetwork, _Value]):
    """Values by subnet. A changed copy, and the difference from it, take time only for one shard, not for all
    shards.

    In a network of ten thousand leases, single leases change many times per second. A plain dictionary would
    be copied and compared completely each time.
    """

    __slots__ = ("_length", "_shards")

    def __init__(self, entries: Iterable[tuple[IpNetwork, _Value]] = ()) -> None:
        """Create the map of these entries. The last entry of a subnet is used."""
        by_subnet = dict(entries)
        count = 1
        while len(by_subnet) > count * _SHARD_MAX:
            count *= _GROWTH
        shards: list[dict[IpNetwork, _Value]] = [{} for _ in range(count)]
        for subnet, value in by_subnet.items():
            shards[_place(subnet, count)][subnet] = value
        self._shards: tuple[Mapping[IpNetwork, _Value], ...] = tuple(shards)
        self._length = len(by_subnet)

    def with_changes(self, changes: Iterable[tuple[IpNetwork, _Value | None]]) -> "SubnetMap[_Value]":
        """Return the map after these changes, in the given order: a new value, or None to remove the
        subnet.
        """
        shards = list(self._shards)
        own: dict[int, dict[IpNetwork, _Value]] = {}
        length = self._length
        for subnet, value in changes:
            place = _place(subnet, len(shards))
            shard = own.get(place)
            if shard is None:
                shards[place] = own[place] = shard = dict(shards[place])
            length -= len(shard)
            if value is None:
                shard.pop(subnet, None)
            else:
                shard[subnet] = value
            length += len(shard)
        if length > len(shards) * _SHARD_MAX:
            return SubnetMap(entry for shard in shards for entry in shard.items())
        changed = SubnetMap[_Value]()
        changed._shards, changed._length = tuple(shards), length
        return changed

    def differences(
        self, other: "SubnetMap[_Value]"
    ) -> Iterator[tuple[IpNetwork, _Value | None, _Value | None]]:
        """Yield each subnet with a different value in `other`, with both values.

        In two shards that differ, a value that is equal but another object counts as different.
        """
        pairs: Iterable[tuple[Mapping[IpNetwork, _Value], Mapping[IpNetwork, _Value]]]
        if len(self._shards) == len(other._shards):
            pairs = zip(self._shards, other._shards, strict=True)
        else:
            pairs = [(dict(self.entries()), dict(other.entries()))]
        for mine, others in pairs:
            if mine is others or mine == others:
                continue
            for subnet, value in mine.items():
                if (new := others.get(subnet)) is not value:
                    yield subnet, value, new
            for subnet, value in others.items():
                if subnet not in mine:
                    yield subnet, None, value

    def entries(self) -> Iterator[tuple[IpNetwork, _Value]]:
        """Yield subnets and values. This method is faster than `items()`, which looks up each item."""
        for shard in self._shards:
            yield from shard.items()

    def __getitem__(self, subnet: IpNetwork) -> _Value:
        return self._shards[_place(subnet, len(self._shards))][subnet]

    def __iter__(self) -> Iterator[IpNetwork]:
        for shard in self._shards:
            yield from shard

    def __len__(self) -> int:
        return self._length

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SubnetMap):
            return NotImplemented
        if len(self._shards) == len(other._shards):
            return self._shards == other._shards
        return dict(self.entries()) == dict(other.entries())


def _place(subnet: IpNetwork, count: int) -> int:
    """Return the shard of a subnet, which is computed from the number of the subnet among the subnets of
    its length.
    """
    return (int(subnet.network_address) >> (subnet.max_prefixlen - subnet.prefixlen)) % count


LARGEST = 65_536
"""Maximum number of leases that one host accepts: the number of /24 subnets in a /8.

Each lease needs up to two kilobytes in this set, in the plan and in the kernel. Without a limit, a client of
the store could exhaust the memory of all hosts.
"""

_KeyChange = tuple[IpNetwork, IPv6Network | None, Lease | None]
"""The subnets in a key, and the current lease at the key."""


class LeaseSet(PartlyCompared, frozen=True, eq=False):
    """Leases by subnet, and the revision of the latest list response.

    A list response replaces the whole set. A change that is older than the list response is ignored.

    A key whose value becomes unreadable keeps its last valid lease while the key exists. The host may be
    running, and must receive packets until it writes its lease again. This rule applies to changes of a watch
    and to list responses. A list response that contains only known leases changes nothing. A host that starts
    during this time does not know the last valid value, and omits this lease.

    A lease keeps the revision since which its VTEP has been published, while the VTEP does not change.

    An IPv4 subnet may have several keys: one key without an IPv6 subnet, and several keys with an IPv6
    subnet. The key without an IPv6 subnet has precedence, then the key with the lowest IPv6 subnet,
    regardless of the order of the keys.

    Attributes:
        outranked: the ignored leases, by the subnet that they share with the valid lease.
        has_ipv6: True if a key with an IPv6 subnet was known, and may still exist.
        left_out: number of ignored leases, because the set already contains LARGEST leases. When there is
            room, the next list response adds ignored leases.
    """

    by_subnet: SubnetMap[Lease] = field(default_factory=SubnetMap)
    listed_at: int = 0
    outranked: Mapping[IpNetwork, tuple[Lease, ...]] = field(default_factory=dict)
    has_ipv6: bool = False
    left_out: int = 0

    @property
    def _compared(self) -> object:
        return self.by_subnet, self.listed_at, self.outranked

    @classmethod
    def of(cls, leases: Iterable[Lease], revision: int = 0) -> "LeaseSet":
        """Return the set for a list response at `revision`."""
        leases = tuple(leases)
        left_out = max(0, len(leases) - LARGEST)
        if left_out:
            leases = tuple(
                sorted(leases, key=lambda lease: (lease.since, lease.subnet.version, lease.subnet))
            )[:LARGEST]
        counting = SubnetMap((x.subnet, x) for x in leases if x.ipv6_subnet is None)
        found = cls(counting, revision, left_out=left_out)
        return found._with([(x.subnet, x.ipv6_subnet, x) for x in leases if x.ipv6_subnet is not None])

    def listed(self, leases: Iterable[Lease], unreadable: Iterable[Unreadable], revision: int) -> "LeaseSet":
        """Return the set after a list response at `revision` with these leases and unreadable keys."""
        leases = map(self._dated, leases)
        kept = (self._at(one.subnet, one.ipv6_subnet) for one in unreadable)
        return LeaseSet.of([*leases, *(lease for lease in kept if lease is not None)], revision)

    def after(self, changes: Iterable[LeaseChange]) -> "LeaseSet":
        """Return the set after these changes, in the given order; this set itself if nothing changed."""
        news: list[_KeyChange] = []
        room, left_out = LARGEST - len(self.by_subnet), 0
        if self.outranked:
            room -= sum(map(len, self.outranked.values()))
        for change in changes:
            match change:
                case LeaseSeen(lease) if lease.revision > self.listed_at:
                    if self._at(lease.subnet, lease.ipv6_subnet) is None:
                        room -= 1
                        if room < 0:
                            left_out += 1
                            continue
                    news.append((lease.subnet, lease.ipv6_subnet, self._dated(lease)))
                case LeaseGone(subnet, revision, ipv6_subnet) if revision > self.listed_at:
                    room += self._at(subnet, ipv6_subnet) is not None
                    news.append((subnet, ipv6_subnet, None))
                case LeaseSeen() | LeaseGone() | Unreadable() | ClaimSeen() | ClaimGone():
                    pass
        known = replace(self, left_out=self.left_out + left_out) if left_out else self
        return known._with(news)

    def without(self, is_left_out: Callable[[Lease], bool]) -> "LeaseSet":
        """Return the set without some leases; this set itself if it contains none of them."""
        others = (lease for some in self.outranked.values() for lease in some)
        gone = [lease for lease in (*self, *others) if is_left_out(lease)]
        return self._with([(lease.subnet, lease.ipv6_subnet, None) for lease in gone])

    def _at(self, subnet: IpNetwork, ipv6_subnet: IPv6Network | None) -> Lease | None:
        """Return the lease of the key with these subnets."""
        counts = self.by_subnet.get(subnet)
        others = () if counts is None else (counts, *self.outranked.get(subnet, ()))
        return next((lease for lease in others if lease.ipv6_subnet == ipv6_subnet), None)

    def _dated(self, lease: Lease) -> Lease:
        """Return a received lease with the revision since which its holder publishes its VTEP or key.

        The known lease of its key shows whether this write changed the VTEP or key.
        """
        known = self.by_subnet.get(lease.subnet)
        if known is not None and known.ipv6_subnet != lease.ipv6_subnet:
            known = self._at(lease.subnet, lease.ipv6_subnet)
        if known is None or not known.since:
            return lease
        since = known.since if _published(known) == _published(lease) else lease.revision
        return lease if since == lease.since else replace(lease, since=since)

    def _with(self, news: Sequence[_KeyChange]) -> "LeaseSet":
        if not news:
            return self
        if not self.has_ipv6 and all(ipv6_subnet is None for _, ipv6_subnet, _ in news):
            changes = ((subnet, lease) for subnet, _, lease in news)
            return replace(self, by_subnet=self.by_subnet.with_changes(changes))
        return self._ranked(news)

    def _ranked(self, news: Sequence[_KeyChange]) -> "LeaseSet":
        changed: dict[IpNetwork, Lease | None] = {}
        outranked = dict(self.outranked)
        for subnet, ipv6_subnet, lease in news:
            counts = changed[subnet] if subnet in changed else self.by_subnet.get(subnet)
            others = [
                each
                for each in ([] if counts is None else [counts, *outranked.get(subnet, ())])
                if each.ipv6_subnet != ipv6_subnet
            ]
            if not others:
                changed[subnet] = lease
                continue
            first, *rest = sorted([*others, *([] if lease is None else [lease])], key=_rank)
            if first is not counts:
                changed[subnet] = first
            outranked.pop(subnet, None)
            if rest:
                outranked[subnet] = tuple(rest)
        if not changed and outranked == self.outranked:
            return self
        return replace(
            self,
            by_subnet=self.by_subnet.with_changes(changed.items()),
            outranked=outranked,
            has_ipv6=True,
        )

    def __iter__(self) -> Iterator[Lease]:
        return (lease for _, lease in self.by_subnet.entries())

    def __len__(self) -> int:
        return len(self.by_subnet)


def _published(lease: Lease) -> object:
    """Return the MAC addresses or keys that belong to only one host; None if the lease has no such value."""
    attributes = lease.attributes
    if attributes.vtep_v6 is not None or attributes.wireguard_v6 is not None:
        return (
            _own_name(attributes.vtep, attributes.wireguard),
            _own_name(attributes.vtep_v6, attributes.wireguard_v6),
        )
    return _own_name(attributes.vtep, attributes.wireguard)


def _own_name(vtep: Vtep | None, wireguard: WireguardData | None) -> str | None:
    if vtep is not None:
        return vtep.mac
    return None if wireguard is None else wireguard.public_key


def _rank(lease: Lease) -> tuple[int, int]:
    ipv6 = lease.ipv6_subnet
    return (-1, 0) if ipv6 is None else (int(ipv6.network_address), ipv6.prefixlen)
