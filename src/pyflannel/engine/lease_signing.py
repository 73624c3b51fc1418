"""Signs this host's lease, and accepts or refuses the leases of others by their signatures."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection

from msgspec.structs import replace

from pyflannel.engine.allowed_keys import AllowList
from pyflannel.engine.pacing import LogLimit
from pyflannel.errors import TargetError, WireError
from pyflannel.model.lease import Claim, Lease, LeaseKey
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.status import (
    REFUSED_LEASES_SHOWN,
    LeaseSigningStatus,
    RefusedLease,
    SignatureFault,
)
from pyflannel.plan.lease.state import LeaseState
from pyflannel.plan.lease.trust import FAULTS, Trust
from pyflannel.ports import Clock, Memory
from pyflannel.wire.lease_record import claim_key, lease_key
from pyflannel.wire.lease_signature import KnownKeys, format_known_keys, is_authentic, parse_known_keys, sign

log = logging.getLogger(__name__)

REFUSALS_KEPT = 1000
"""Number of refused leases that are remembered, so that each refused lease is logged once."""


class Refusals:
    """The refused leases since flanneld started. A client of the store can write any number of leases that
    are refused.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[tuple[str, SignatureFault], tuple[RefusedLease, float, int]] = {}
        self.counts: Counter[SignatureFault] = Counter()

    def add(self, lease: Lease, fault: SignatureFault) -> bool:
        """Record a refused lease; return whether it is the first refusal for its key with this reason."""
        key = lease_key(lease)
        known = self._kept.pop((key, fault), None)
        # a list response contains the same value again
        is_written = known is None or known[2] != lease.revision
        self.counts[fault] += is_written
        refused = RefusedLease(
            subnet=lease.subnet,
            public_ip=lease.attributes.public_ip,
            host_name=lease.attributes.host_name,
            fault=fault,
            cause=FAULTS[fault].text,
            hint=FAULTS[fault].hint,
            times=(known[0].times if known else 0) + is_written,
        )
        self.remove(key)
        self._kept[key, fault] = refused, self._clock.now(), lease.revision
        if len(self._kept) > REFUSALS_KEPT:
            del self._kept[next(iter(self._kept))]
        return known is None

    def remove(self, key: str) -> None:
        """Record that a key contains another lease, or no lease any more."""
        for fault in FAULTS:
            if (known := self._kept.get((key, fault))) is not None and known[0].is_in_store:
                self._kept[key, fault] = replace(known[0], is_in_store=False), *known[1:]

    def keep_only(self, keys: Collection[str]) -> None:
        """Record all keys of a list response, and forget the others."""
        for key in {key for key, _ in self._kept} - set(keys):
            self.remove(key)

    def shown(self) -> tuple[RefusedLease, ...]:
        """Return the refused leases for a status: leases that are still in the store are first, then the
        latest refusals.
        """
        now = self._clock.now()
        latest = (replace(refused, age_s=now - at) for refused, at, _ in reversed(self._kept.values()))
        return tuple(sorted(latest, key=lambda one: not one.is_in_store)[:REFUSED_LEASES_SHOWN])


class LeaseSigning:
    """The signatures of the leases of one network.

    Args:
        requires: True to refuse leases without an acceptable signature; False to only warn about them.
        prefix: prefix of the store, which each signature covers.
        key_of: function that returns the key pair of an owner.
        allowed: the keys of other hosts that are accepted; None for the first key of each owner.
        memory: object that keeps the counters and the keys of owners across restarts.
    """

    def __init__(
        self,
        *,
        requires: bool,
        prefix: str,
        key_of: Callable[[str], LeaseKey],
        allowed: AllowList | None,
        memory: Memory,
        clock: Clock,
    ) -> None:
        self._requires = requires
        self._prefix = prefix
        self._key_of = key_of
        self._memory = memory
        self._warnings = LogLimit(log, clock, "leases that --lease-signing=require would refuse")
        self._refusals = Refusals(clock)
        self._allowed = allowed
        self._own_key: bytes | None = None
        self._has_own = False
        self._has_copy = False
        self._kept_identity = LogLimit(log, clock, "writes that seem to be those of a copy of this host")
        self._trust = Trust(allowed=self.rules)
        self._counter = 0
        self._kept = KnownKeys(0, {}, {}, {})

    @property
    def prefix(self) -> str:
        """The prefix of the store, which each signature covers."""
        return self._prefix

    def key(self, owner: str) -> LeaseKey:
        """Return the key pair of an owner.

        Raises:
            TargetError: the key is unusable.
        """
        return self._key_of(owner)

    async def load(self) -> None:
        """Read the counters and keys that an earlier run saved."""
        if self._allowed is not None:
            await self._allowed.load()
        data = await self._memory.load()
        if data is None:
            return
        try:
            self._kept = parse_known_keys(data)
        except WireError as error:
            log.error(
                "Could not read the counters of leases, so old leases may be accepted: %s", error.in_full
            )
            return
        self._counter = self._kept.counter
        self._trust.restore(self._kept.floors, self._kept.owners, self._kept.holders)

    async def signed(self, lease: Lease) -> Lease:
        """Return a lease of this host with a signature, after saving its counter.

        Raises:
            TargetError: the host has no key.
        """
        owner = lease.attributes.owner
        if owner is None:
            return lease
        key = self._key_of(owner)
        self._own_key = key.public
        self._counter += 1
        await self.keep()
        return sign(self._prefix, lease, self._counter, key)

    def check(self, lease: Lease, value: bytes, state: LeaseState) -> None:
        """Accept a lease that the store shows, or refuse it.

        Args:
            lease: the lease as read from the store.
            value: value in the store that contains the lease.
            state: state of the lease protocol of this host.

        Raises:
            WireError: the lease is refused; the message names the reason.
        """
        if state.wanted.owner is not None and lease.attributes.owner == state.wanted.owner:
            fault = self._objection_to_own(lease, value, state)
        else:
            self._trust.allowed = self.rules
            fault = self._trust.objection(lease, is_authentic(self._prefix, lease, value))
            if fault is None:
                self._trust.accept(lease)
        if fault is None:
            self._refusals.remove(lease_key(lease))
            return
        is_first, notice = self._refusals.add(lease, fault), FAULTS[fault]
        if self._requires:
            raise WireError(f"{lease_key(lease)}: not accepted: {notice.text}", hint=notice.hint)
        if is_first:
            text = "--lease-signing=require would refuse the lease %s of %s: %s"
            self._warnings.line(logging.WARNING, text, lease.subnet, lease.attributes.host_text, notice.text)

    def _objection_to_own(self, lease: Lease, value: bytes, state: LeaseState) -> SignatureFault | None:
        """Return the reason why a lease that names this host was not written by this host.

        The subnet of the previous run may have a lease from the time before this host signed its leases.
        """
        try:
            is_own_key = lease.attributes.signing_key == self._key_of(state.wanted.owner).public
            is_own = is_own_key and is_authentic(self._prefix, lease, value)
        except TargetError:
            is_own = False
        if is_own:
            counter = lease.attributes.counter or 0
            self._has_copy |= self._has_own and counter > self._counter
            # The saved counter may be older, for example after a restore from a backup.
            self._has_own, self._counter = True, max(self._counter, counter)
        if is_own or (state.held is None and lease.subnet == state.wanted.previous):
            return None
        return "not_ours"

    def check_claim(self, claim: Claim, owner: str | None) -> None:
        """Refuse a claim with the identity of this host, unless this host has found a copy of itself.

        Raises:
            WireError: the claim is refused.
        """
        if self._requires and not self._has_copy and claim.owner == owner and claim.held_s is not None:
            raise WireError(
                f"{claim_key(claim.subnet)}: not accepted: no copy of this host has signed a lease",
                hint="Find the program that writes the claim, and restrict the writers of the store.",
            )

    def yields(self) -> bool:
        """Return whether this host may leave its identity to another host, which seems to be a copy of this
        host.

        The key of a new identity would not be in the allow-list. Therefore this host requires a proof of the
        copy: a lease that is signed with this host's key, and has a counter that this host has not used.
        """
        if self._requires and not self._has_copy:
            text = "Kept the identity of this host: no other host has signed a lease with its key"
            self._kept_identity.line(logging.ERROR, text)
            return False
        self._has_own = self._has_copy = False
        return True

    async def run(self) -> None:
        """Follow the allow-list, if there is one, until cancelled."""
        if self._allowed is not None:
            await self._allowed.run()

    def reload(self) -> bool:
        """Read the allow-list soon; return whether there is an allow-list."""
        if self._allowed is not None:
            self._allowed.reload()
        return self._allowed is not None

    async def rules_changed(self) -> None:
        """Wait until the allow-list has changed."""
        if self._allowed is None:
            await asyncio.Event().wait()
        else:
            await self._allowed.changed.wait()
            self._allowed.changed.clear()

    @property
    def rules(self) -> frozenset[bytes] | None:
        """The keys that are allowed now; None without an allow-list."""
        return None if self._allowed is None else self._allowed.keys

    async def see_allow_list(self, data: bytes | None) -> None:
        """Record the allow-list in the store; None if there is none."""
        if self._allowed is not None:
            await self._allowed.see(data)

    def is_revoked(self, lease: Lease, owner: str | None) -> bool:
        """Return whether the key of a lease is no longer allowed.

        The key of this host, whose identity is `owner`, is always allowed.
        """
        return (
            self._requires
            and self.rules is not None
            and lease.attributes.owner != owner
            and lease.attributes.signing_key not in self.rules
        )

    def delete(self, key: str, subnet: IpNetwork) -> None:
        """Record that the lease at a key, on a subnet, was deleted."""
        self._refusals.remove(key)
        self._trust.delete(subnet)

    def keep_only(self, keys: Collection[str], subnets: Collection[IpNetwork]) -> None:
        """Record that a listing contained only these keys, with accepted leases on only these subnets."""
        self._refusals.keep_only(keys)
        for subnet in self._trust.holders.keys() - set(subnets):
            self._trust.delete(subnet)

    def status(self) -> LeaseSigningStatus:
        """Return the current status of the signatures."""
        return LeaseSigningStatus(
            mode="require" if self._requires else "warn",
            allowed=None if self.rules is None else len(self.rules),
            is_own_key_allowed=self._is_own_key_allowed(),
            counter=None if self._allowed is None else self._allowed.counter,
            trouble=None if self._allowed is None else self._allowed.trouble,
            refused=self._refusals.shown(),
            refusals={fault: self._refusals.counts[fault] for fault in FAULTS},
        )

    def _is_own_key_allowed(self) -> bool | None:
        return None if self.rules is None or self._own_key is None else self._own_key in self.rules

    async def keep(self) -> None:
        """If the counters changed, save them before the accepted leases take effect."""
        trust = self._trust
        known = KnownKeys(self._counter, dict(trust.floors), dict(trust.owners), dict(trust.holders))
        if known != self._kept and await self._memory.save([format_known_keys(known)]):
            self._kept = known
