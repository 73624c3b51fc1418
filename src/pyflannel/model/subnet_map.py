"""A mapping by subnet that is never changed, and whose changed copies share most of it."""

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network
from typing import TypeVar

_Value = TypeVar("_Value")

_SHARD_MAX = 64
"""So many entries a shard may have on average, before there are four times as many shards."""

_GROWTH = 4


class SubnetMap(Mapping[IPv4Network, _Value]):
    """Values by subnet. A changed copy, and the difference from it, cost the entries of a shard, not all.

    A network of ten thousand leases changes one at a time, many times a second; a plain dictionary would be
    copied, and compared key by key, each time.
    """

    __slots__ = ("_length", "_shards")

    def __init__(self, entries: Iterable[tuple[IPv4Network, _Value]] = ()) -> None:
        """Make the map of these entries; the last of one subnet counts."""
        by_subnet = dict(entries)
        count = 1
        while len(by_subnet) > count * _SHARD_MAX:
            count *= _GROWTH
        shards: list[dict[IPv4Network, _Value]] = [{} for _ in range(count)]
        for subnet, value in by_subnet.items():
            shards[_place(subnet, count)][subnet] = value
        self._shards: tuple[Mapping[IPv4Network, _Value], ...] = tuple(shards)
        self._length = len(by_subnet)

    def with_changes(self, changes: Iterable[tuple[IPv4Network, _Value | None]]) -> "SubnetMap[_Value]":
        """Return the map after these changes, in their order: a new value, or None for none at all."""
        shards = list(self._shards)
        own: dict[int, dict[IPv4Network, _Value]] = {}
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
    ) -> Iterator[tuple[IPv4Network, _Value | None, _Value | None]]:
        """Yield each subnet whose value in `other` is another, with our value and its.

        Of two shards that differ, an equal value that is another object counts as another.
        """
        pairs: Iterable[tuple[Mapping[IPv4Network, _Value], Mapping[IPv4Network, _Value]]]
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

    def entries(self) -> Iterator[tuple[IPv4Network, _Value]]:
        """Yield subnets and values, as `items()` does after looking each of them up."""
        for shard in self._shards:
            yield from shard.items()

    def __getitem__(self, subnet: IPv4Network) -> _Value:
        return self._shards[_place(subnet, len(self._shards))][subnet]

    def __iter__(self) -> Iterator[IPv4Network]:
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


def _place(subnet: IPv4Network, count: int) -> int:
    """Return the shard of a subnet: its number among those of its length, so that neighbours part."""
    return (int(subnet.network_address) >> (32 - subnet.prefixlen)) % count
