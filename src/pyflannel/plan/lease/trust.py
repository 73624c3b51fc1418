"""Which signed leases a host accepts. The decision depends on the key of the lease, and on the order of the
statements of a key.

Each signed lease is a statement: the owner of the key states that it uses the subnet. Each statement of a key
has a higher counter than the previous statement. A host refuses a statement that is older than one that it
accepted, or that another key replaced on the subnet of the lease. Therefore the host does not accept an old
lease that is written to the store again.
"""

from collections.abc import Mapping

from msgspec import Struct, field

from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import LARGEST
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.status import Notice, SignatureFault

_WRITER = "Find the program that writes this lease, and restrict the writers of the store."

FAULTS: Mapping[SignatureFault, Notice] = {
    "unsigned": Notice(
        "it is not signed",
        "Start flanneld on its host with --lease-signing=require or warn. If no living host owns the lease,"
        " delete it.",
    ),
    "invalid": Notice("its signature does not match its key", _WRITER),
    "not_allowed": Notice(
        "its key is not allowed",
        "Compare the key with lease-key.json on its host. If the two keys are equal, add the key to the"
        " allow-list. Otherwise delete the lease.",
    ),
    "replayed": Notice(
        "it is an old lease: its key signed a newer lease, or another host took the subnet since", _WRITER
    ),
    "changed_key": Notice(
        "its owner had another key before",
        "If the host was installed again, use --lease-keys, or stop flanneld here, delete lease-counters.json"
        f" and start it. Otherwise: {_WRITER[0].lower()}{_WRITER[1:]}",
    ),
    "held_subnet": Notice("another key holds the subnet, and its lease was not deleted", _WRITER),
    "too_many_keys": Notice(
        f"this host knows {LARGEST} other keys already",
        "Use --lease-keys, or stop flanneld here, delete lease-counters.json and start it.",
    ),
    "not_ours": Notice("it names this host, which has not signed it", _WRITER),
}
"""The text and the remedy for each reason of a refusal."""


class Trust(Struct, kw_only=True):
    """The keys that a host knows, and the order of their statements.

    Attributes:
        allowed: the keys that may sign; None if the first key of each owner is accepted permanently.
        floors: lowest acceptable counter of each key. These counters must survive a restart.
        owners: the first known key of each owner; used only without an allow-list. These keys must survive a
            restart.
        holders: key and counter of the latest accepted lease on each subnet. These values must survive a
            restart.
        free: subnets whose lease was deleted since then, or may have been deleted while this host did not
            run.
    """

    allowed: frozenset[bytes] | None = None
    floors: dict[bytes, int] = field(default_factory=dict)
    owners: dict[str, bytes] = field(default_factory=dict)
    holders: dict[IpNetwork, tuple[bytes, int]] = field(default_factory=dict)
    free: dict[IpNetwork, None] = field(default_factory=dict)

    def restore(
        self,
        floors: Mapping[bytes, int],
        owners: Mapping[str, bytes],
        holders: Mapping[IpNetwork, tuple[bytes, int]],
    ) -> None:
        """Continue after a restart with these values."""
        self.floors.update(floors)
        self.owners.update(owners)
        self.holders.update(holders)
        self.free.update(dict.fromkeys(holders))

    def objection(self, lease: Lease, is_authentic: bool) -> SignatureFault | None:
        """Return the reason why a lease is not accepted; None if it is accepted. `is_authentic`: True if
        the lease is signed with the key in it.
        """
        attributes = lease.attributes
        key, counter = attributes.signing_key, attributes.counter
        if key is None or counter is None or attributes.signature is None:
            return "unsigned"
        if not is_authentic:
            return "invalid"
        if self.allowed is not None and key not in self.allowed:
            return "not_allowed"
        if counter < self.floors.get(key, 0):
            return "replayed"
        if self.allowed is None:
            if self.owners.get(attributes.owner or "", key) != key:
                return "changed_key"
            holder = None if lease.subnet in self.free else self.holders.get(lease.subnet)
            if holder is not None and holder[0] != key:
                return "held_subnet"
            if key not in self.floors and len(self.floors) >= LARGEST:
                return "too_many_keys"
        return None

    def accept(self, lease: Lease) -> None:
        """Record a lease that has been accepted."""
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
        self.free.pop(lease.subnet, None)

    def delete(self, subnet: IpNetwork) -> None:
        """Record that the lease on a subnet was deleted, so that any acceptable key may take the subnet."""
        if subnet in self.holders:
            self.free[subnet] = None
        if len(self.free) > LARGEST:
            oldest = next(iter(self.free))
            del self.free[oldest], self.holders[oldest]

    def _raise_floor(self, key: bytes, counter: int) -> None:
        self.floors[key] = max(counter, self.floors.get(key, 0))
