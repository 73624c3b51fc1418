"""The leases of a network, as far as they are known."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import ClaimGone, ClaimSeen, LeaseChange, LeaseGone, LeaseSeen, Unreadable
from pyflannel.model.subnet_map import SubnetMap

_KeyChange = tuple[IPv4Network, IPv6Network | None, Lease | None]
"""The subnets that a key names, and what stands there now."""


@dataclass(frozen=True, slots=True)
class LeaseSet:
    """Leases by subnet, and the revision up to which they were listed at once.

    A listing replaces everything; a change from before the listing is old news and ignored. A value that
    became unreadable does not take the lease away: its host may be up and well.

    An IPv4 subnet may have several keys, alone and with IPv6 subnets beside it. The one alone counts, or else
    that with the lowest IPv6 subnet, however they came.

    Attributes:
        outranked: the leases that do not count, by the subnet that they share with one that does.
        has_ipv6: a key with an IPv6 subnet was known, and may be still.
    """

    by_subnet: SubnetMap[Lease] = field(default_factory=SubnetMap)
    listed_at: int = 0
    outranked: Mapping[IPv4Network, tuple[Lease, ...]] = field(default_factory=dict)
    has_ipv6: bool = field(default=False, compare=False)

    @classmethod
    def of(cls, leases: Iterable[Lease], revision: int = 0) -> "LeaseSet":
        """Return the set that a listing at `revision` shows."""
        leases = tuple(leases)
        found = cls(SubnetMap((x.subnet, x) for x in leases if x.ipv6_subnet is None), revision)
        return found._with([(x.subnet, x.ipv6_subnet, x) for x in leases if x.ipv6_subnet is not None])

    def after(self, changes: Iterable[LeaseChange]) -> "LeaseSet":
        """Return the set after these changes, in their order; itself when nothing changed."""
        news: list[_KeyChange] = []
        for change in changes:
            match change:
                case LeaseSeen(lease) if lease.revision > self.listed_at:
                    news.append((lease.subnet, lease.ipv6_subnet, lease))
                case LeaseGone(subnet, revision, ipv6_subnet) if revision > self.listed_at:
                    news.append((subnet, ipv6_subnet, None))
                case LeaseSeen() | LeaseGone() | Unreadable() | ClaimSeen() | ClaimGone():
                    pass
        return self._with(news)

    def _with(self, news: Sequence[_KeyChange]) -> "LeaseSet":
        if not news:
            return self
        if not self.has_ipv6 and all(ipv6_subnet is None for _, ipv6_subnet, _ in news):
            changes = ((subnet, lease) for subnet, _, lease in news)
            return LeaseSet(self.by_subnet.with_changes(changes), self.listed_at)
        return self._ranked(news)

    def _ranked(self, news: Sequence[_KeyChange]) -> "LeaseSet":
        changed: dict[IPv4Network, Lease | None] = {}
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
        return LeaseSet(
            self.by_subnet.with_changes(changed.items()), self.listed_at, outranked, has_ipv6=True
        )

    def __iter__(self) -> Iterator[Lease]:
        return (lease for _, lease in self.by_subnet.entries())

    def __len__(self) -> int:
        return len(self.by_subnet)


def _rank(lease: Lease) -> tuple[int, int]:
    ipv6 = lease.ipv6_subnet
    return (-1, 0) if ipv6 is None else (int(ipv6.network_address), ipv6.prefixlen)
