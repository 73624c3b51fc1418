"""Signs this host's lease, and accepts or refuses the leases of others by their signatures."""

import logging
from collections.abc import Callable, Collection
from ipaddress import IPv4Network

from pyflannel.engine.pacing import LogLimit
from pyflannel.errors import TargetError, WireError
from pyflannel.model.lease import Lease, LeaseKey
from pyflannel.plan.lease.trust import Trust
from pyflannel.ports import Clock, Memory
from pyflannel.wire.lease_signature import KnownKeys, format_known_keys, is_authentic, parse_known_keys, sign

log = logging.getLogger(__name__)

_HINT = "Allow the key of its host with --lease-keys, or delete the lease if no living host owns it."


class LeaseSigning:
    """The signatures of the leases of one network.

    Args:
        requires: refuse leases without an acceptable signature; otherwise only warn about them.
        prefix: prefix of the store, which each signature covers.
        key_of: returns the key pair of an owner.
        allowed: the keys of other hosts that are accepted; None for the first key of each owner.
        memory: keeps the counters and the keys of owners across restarts.
    """

    def __init__(
        self,
        *,
        requires: bool,
        prefix: str,
        key_of: Callable[[str], LeaseKey],
        allowed: frozenset[bytes] | None,
        memory: Memory,
        clock: Clock,
    ) -> None:
        self._requires = requires
        self._prefix = prefix
        self._key_of = key_of
        self._memory = memory
        self._warnings = LogLimit(log, clock, "leases that --lease-signing=require would refuse")
        self._warned: set[tuple[IPv4Network, str]] = set()
        self._trust = Trust(allowed=allowed)
        self._counter = 0
        self._kept = KnownKeys(0, {}, {})

    async def load(self) -> None:
        """Read the counters and keys that an earlier run kept."""
        octets = await self._memory.load()
        if octets is None:
            return
        try:
            self._kept = parse_known_keys(octets)
        except WireError as error:
            log.error(
                "Could not read the counters of leases, so old leases may be accepted: %s", error.in_full
            )
            return
        self._counter = self._kept.counter
        self._trust.floors.update(self._kept.floors)
        self._trust.owners.update(self._kept.owners)

    async def signed(self, lease: Lease) -> Lease:
        """Return a lease of this host with a signature, whose counter is kept before.

        Raises:
            TargetError: the host has no key.
        """
        owner = lease.attributes.owner
        if owner is None:
            return lease
        key = self._key_of(owner)
        self._counter += 1
        await self.keep()
        return sign(self._prefix, lease, self._counter, key)

    def check(
        self, lease: Lease, owner: str | None, running: IPv4Network | None, previous: IPv4Network | None
    ) -> None:
        """Accept a lease that the store shows, or refuse it.

        Args:
            lease: as read.
            owner: identity of this host.
            running: subnet that this host uses; None before its first lease.
            previous: subnet of its previous run.

        Raises:
            WireError: the lease is refused; the message names the reason.
        """
        if owner is not None and lease.attributes.owner == owner:
            why = self._objection_to_own(lease, owner, running, previous)
        else:
            why = self._trust.objection(lease, is_authentic(self._prefix, lease))
            if why is None:
                self._trust.accept(lease)
        if why is None:
            return
        if self._requires:
            raise WireError(f"not accepted: {why}", hint=_HINT)
        if (lease.subnet, why) not in self._warned:
            self._warned.add((lease.subnet, why))
            text = "--lease-signing=require would refuse the lease %s of %s: %s"
            self._warnings.line(logging.WARNING, text, lease.subnet, lease.attributes.host_text, why)

    def _objection_to_own(
        self, lease: Lease, owner: str, running: IPv4Network | None, previous: IPv4Network | None
    ) -> str | None:
        """Return why a lease that names this host is none of its own.

        The subnet of the previous run may have a lease of the time before this host signed.
        """
        key = lease.attributes.signing_key
        try:
            is_own = key == self._key_of(owner).public and is_authentic(self._prefix, lease)
        except TargetError:
            is_own = False
        if is_own:  # the saved counter may be older, as after a restore from a backup
            self._counter = max(self._counter, lease.attributes.counter or 0)
        if is_own or (running is None and lease.subnet == previous):
            return None
        return "it names this host, which has not signed it"

    def delete(self, subnet: IPv4Network) -> None:
        """Take note that the lease on a subnet was deleted."""
        self._trust.delete(subnet)

    def keep_only(self, subnets: Collection[IPv4Network]) -> None:
        """Take note that a listing has leases on these subnets only."""
        for subnet in self._trust.holders.keys() - set(subnets):
            self._trust.delete(subnet)

    async def keep(self) -> None:
        """Save the counters, if they changed, before the accepted leases take effect."""
        known = KnownKeys(self._counter, dict(self._trust.floors), dict(self._trust.owners))
        if known != self._kept and await self._memory.save([format_known_keys(known)]):
            self._kept = known
