"""The leases of the other hosts: the records of a store, and two ways to read them with equal result."""

from ipaddress import IPv6Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import LeaseChange, LeaseGone, LeaseSeen, Unreadable
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.model.network_config import IpNetwork


class LeaseRecords:
    """The store's records of leases, and the parts that a watch and listings have shown.

    Attributes:
        known: the leases that pyflannel knows.
        revision: the revision of the latest write.
    """

    def __init__(self) -> None:
        self.known = LeaseSet()
        self.revision = 0
        self._records: dict[IpNetwork, Lease | Unreadable] = {}
        self._shown: dict[IpNetwork, Lease] = {}
        self._is_watched = True

    def write(self, record: Lease | Unreadable) -> None:
        """Write a record. The revision of the change is one more than the latest revision."""
        self.revision += 1
        self._records[record.subnet] = record
        if not self._is_watched:
            return
        if isinstance(record, Lease):
            self._shown[record.subnet] = record
        self._see(LeaseSeen(record) if isinstance(record, Lease) else record)

    def delete(self, subnet: IpNetwork, ipv6_subnet: IPv6Network | None) -> None:
        """Delete a record. The key of the lease consists of both subnets."""
        self.revision += 1
        self._records.pop(subnet, None)
        if self._is_watched:
            self._shown.pop(subnet, None)
            self._see(LeaseGone(subnet, self.revision, ipv6_subnet))

    def _see(self, change: LeaseChange) -> None:
        self.known = self.known.after([change])

    def lose_watch(self) -> None:
        """Stop showing later writes."""
        self._is_watched = False

    def list(self) -> None:
        """Show all records at once, as after a compaction, and watch them from then on."""
        self._is_watched = True
        records = self._records.values()
        leases = [record for record in records if isinstance(record, Lease)]
        unreadable = [record for record in records if isinstance(record, Unreadable)]
        kept = [self._shown[one.subnet] for one in unreadable if one.subnet in self._shown]
        self._shown = {lease.subnet: lease for lease in (*leases, *kept)}
        self.known = self.known.listed(leases, unreadable, self.revision)

    @property
    def expected(self) -> SubnetMap[Lease]:
        """The valid leases: the latest readable value of each existing key."""
        return SubnetMap(self._shown.items())
