"""The leases of a network, as far as they are known."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import ClaimGone, ClaimSeen, LeaseChange, LeaseGone, LeaseSeen, Unreadable
from pyflannel.model.subnet_map import SubnetMap


@dataclass(frozen=True, slots=True)
class LeaseSet:
    """Leases by subnet, and the revision up to which they were listed at once.

    A listing replaces everything; a change from before the listing is old news and ignored. A value that
    became unreadable does not take the lease away: its host may be up and well.
    """

    by_subnet: SubnetMap[Lease] = field(default_factory=SubnetMap)
    listed_at: int = 0

    @classmethod
    def of(cls, leases: Iterable[Lease], revision: int = 0) -> "LeaseSet":
        """Return the set that a listing at `revision` shows."""
        return cls(SubnetMap((lease.subnet, lease) for lease in leases), revision)

    def after(self, changes: Iterable[LeaseChange]) -> "LeaseSet":
        """Return the set after these changes, in their order; itself when nothing changed."""
        entries: list[tuple[IPv4Network, Lease | None]] = []
        for change in changes:
            match change:
                case LeaseSeen(lease) if lease.revision > self.listed_at:
                    entries.append((lease.subnet, lease))
                case LeaseGone(subnet, revision) if revision > self.listed_at:
                    entries.append((subnet, None))
                case LeaseSeen() | LeaseGone() | Unreadable() | ClaimSeen() | ClaimGone():
                    pass
        return LeaseSet(self.by_subnet.with_changes(entries), self.listed_at) if entries else self

    def __iter__(self) -> Iterator[Lease]:
        return (lease for _, lease in self.by_subnet.entries())

    def __len__(self) -> int:
        return len(self.by_subnet)
