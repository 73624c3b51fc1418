"""The times at which the leases of peers last changed."""

from collections.abc import Iterable, Mapping

from pyflannel.model.lease import Lease
from pyflannel.model.network_config import IpNetwork
from pyflannel.plan.peers import PeerChange
from pyflannel.ports import Clock

REMEMBERED = 1024
"""Maximum number of remembered changes, so that ten thousand joining peers need no memory for this purpose.
The latest changes are kept."""


class PeerTimes:
    """Stores when each peer joined, returned, or changed its addresses, backend or keys."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed_at: dict[IpNetwork, float] = {}  # the oldest first

    def note(self, changes: Iterable[PeerChange]) -> None:
        """Record the changes of an update. The renewal of a lease is no change."""
        now = self._clock.now()
        for change in changes:
            lease = change.new or change.old
            if lease is None or (change.old and change.new and _is_renewal(change.old, change.new)):
                continue
            self._changed_at.pop(lease.subnet, None)
            self._changed_at[lease.subnet] = now
        for subnet in list(self._changed_at)[:-REMEMBERED]:
            del self._changed_at[subnet]

    def ages(self) -> Mapping[IpNetwork, float]:
        """Return the seconds since the last change of each remembered peer, by its subnet."""
        now = self._clock.now()
        return {subnet: now - at for subnet, at in self._changed_at.items()}


def _is_renewal(old: Lease, new: Lease) -> bool:
    return (old.attributes, old.ipv6_subnet) == (new.attributes, new.ipv6_subnet)
