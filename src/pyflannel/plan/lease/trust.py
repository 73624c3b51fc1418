"""Which signed leases a host accepts: by their key, and by the order of the statements of a key.

A lease is a statement of its key, and each statement has a higher counter than the one before. A host
refuses a statement that is older than one that it accepted, or that another key replaced on its subnet. So it
does not accept an old lease that is written to the store again.
"""

from dataclasses import dataclass, field
from ipaddress import IPv4Network

from pyflannel.model.lease import Lease


@dataclass(slots=True, kw_only=True)
class Trust:
    """The keys that a host knows, and the order of their statements.

    Attributes:
        allowed: the keys that may sign; None if the first key of each owner is accepted for good.
        floors: least acceptable counter by key. It must survive a restart.
        owners: key by owner, as first seen, without an allow-list. It must survive a restart.
        holders: key and counter of the latest accepted lease on each subnet.
    """

    allowed: frozenset[bytes] | None = None
    floors: dict[bytes, int] = field(default_factory=dict)
    owners: dict[str, bytes] = field(default_factory=dict)
    holders: dict[IPv4Network, tuple[bytes, int]] = field(default_factory=dict)

    def objection(self, lease: Lease, is_authentic: bool) -> str | None:
        """Return why a lease is not accepted; None if it is. `is_authentic`: its key signed it."""
        attributes = lease.attributes
        key, counter = attributes.signing_key, attributes.counter
        if key is None or counter is None or attributes.signature is None:
            return "it is not signed"
        if not is_authentic:
            return "its signature is not that of its key"
        if self.allowed is not None and key not in self.allowed:
            return "its key is not allowed"
        if counter < self.floors.get(key, 0):
            return "it is an old lease: its key signed a newer one, or another host took the subnet since"
        if self.allowed is None:
            if self.owners.get(attributes.owner or "", key) != key:
                return "its owner had another key before"
            if lease.subnet in self.holders and self.holders[lease.subnet][0] != key:
                return "another key holds the subnet, and its lease was not deleted"
        return None

    def accept(self, lease: Lease) -> None:
        """Remember a lease to which there is no objection."""
        attributes = lease.attributes
        key, counter = attributes.signing_key, attributes.counter
        assert key is not None
        assert counter is not None
        self._raise_floor(key, counter)
        former = self.holders.get(lease.subnet)
        if former is not None and former[0] != key:
            self._raise_floor(former[0], former[1] + 1)
        if self.allowed is None and attributes.owner is not None:
            self.owners[attributes.owner] = key
        self.holders[lease.subnet] = key, counter

    def delete(self, subnet: IPv4Network) -> None:
        """Take note that the lease on a subnet was deleted.

        With an allow-list, its statement remains the latest until another key takes the subnet.
        """
        if self.allowed is None:
            self.holders.pop(subnet, None)

    def _raise_floor(self, key: bytes, counter: int) -> None:
        self.floors[key] = max(counter, self.floors.get(key, 0))
