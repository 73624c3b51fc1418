"""Tells an operator what the lease protocol reports: log lines, the phase, the warnings."""

import logging
from collections.abc import Collection
from datetime import UTC, datetime

from pyflannel.model.lease_protocol import (
    Acquired,
    Contested,
    Exhausted,
    Held,
    Lost,
    Picking,
    Renewed,
    Report,
    Reusing,
    ReusingPrevious,
    SharedAddress,
    StoreAway,
    StoreBack,
    Taken,
    Unsuitable,
)
from pyflannel.model.status import LeasePhase
from pyflannel.ports import Clock

log = logging.getLogger(__name__)

EXHAUSTED_HINT = "Widen Network, increase SubnetLen, or remove stale leases."
"""What to do when no subnet is free."""

_UNSUITABLE = {
    "deleted": "Found lease (%s) for current IP but not compatible with current config, deleting",
    "kept": "Found reservation or foreign lease (%s) for this host, not compatible with current config, kept",
    "previous": (
        "Found previously leased subnet (%s) that is not compatible with the Etcd network config, ignoring"
    ),
}

_LOSSES = ("lost", "taken")
"""Phases in which the store does not have our lease; one may follow the other."""

_HOLDERS = {
    True: "this host keeps",
    False: "the other host holds",
    None: "they are settling which of them keeps",
}


class LeaseNarrator:
    """Keeps what is true of the lease now; the texts of flannel where it has one.

    `held_changed` hears each subnet that the host is to run on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._phase: LeasePhase = "acquiring"
        self.since = clock.now()
        self.holder: str | None = None
        self.losses = 0
        self.store_error: str | None = None
        self.store_error_at: float | None = None
        self.store_since = clock.now()
        self.is_store_away = False
        self.shared: str | None = None
        self.shared_with: str | None = None
        self._is_shared_lease_known = False
        self.asked: str | None = None
        self.exhausted: str | None = None

    @property
    def phase(self) -> LeasePhase:
        """Where the lease stands."""
        return self._phase

    def tell(self, report: Report) -> None:
        """Say it, and remember what of it lasts."""
        match report:
            case Picking(network):
                log.info("Picking subnet in range %s ... %s", network.subnet_min, network.subnet_max)
            case Reusing(lease):
                public_ip = lease.attributes.public_ip
                log.info("Found lease (%s) for current IP (%s), reusing", lease.subnet, public_ip)
            case ReusingPrevious(subnet):
                log.info("Found previously leased subnet (%s), reusing", subnet)
            case Unsuitable(subnet, fate):
                log.warning(_UNSUITABLE[fate], subnet)
            case Exhausted(network):
                exhausted = f"no free /{network.subnet_length} is left in {network.network}"
                if exhausted != self.exhausted:
                    log.error("Cannot get a lease: %s, retrying. %s lease=none", exhausted, EXHAUSTED_HINT)
                self.exhausted, self.asked = exhausted, None
            case Acquired() | Renewed():
                self._tell_held(report)
            case StoreAway() | StoreBack():
                self._tell_store(report)
            case Lost() | Taken() | Contested() | SharedAddress():
                self._tell_trouble(report)

    def see_owners(self, owners: Collection[str]) -> None:
        """Hear who holds the leases that are wrong; whom we share an address with comes, and may go."""
        if self.shared_with in owners:
            self._is_shared_lease_known = True
        elif self._is_shared_lease_known:
            log.info("The host that shared our address or identity is gone owner=%s", self.shared_with)
            self.shared = self.shared_with = None
            self._is_shared_lease_known = False

    def _tell_held(self, report: Acquired | Renewed) -> None:
        held = report.held
        self.asked = self.exhausted = None
        match report:
            case Acquired() if self._phase == "acquiring":
                log.info("Lease acquired: %s", held.lease.subnet)
                log.info("Watching for new subnet leases")
            case Acquired():
                log.info("Lease acquired again: %s", held.lease.subnet)
            case Renewed() if held.expires_at is None:
                log.info("Lease is a reservation and is not renewed lease=%s", held.lease.subnet)
            case Renewed():
                log.info("Lease renewed, new expiration: %s lease=%s", self._time(held), held.lease.subnet)
        self._enter("held")
        self.holder = None

    def _tell_store(self, report: StoreAway | StoreBack) -> None:
        match report:
            case StoreAway(cause, retry_in_s):
                self.store_error = cause  # the last one: why it is away still
                self.store_error_at = self._clock.now()
                if self.is_store_away:
                    return
                log.warning(
                    "Store is away, trying again in %.1f s, the data path stays: %s", retry_in_s, cause
                )
                self.is_store_away = True
            case StoreBack():
                log.info("Store is back")
                self.is_store_away = False
        self.store_since = self._clock.now()

    def _tell_trouble(self, report: Lost | Taken | Contested | SharedAddress) -> None:
        match report:
            case Lost(lease):
                log.warning(
                    "Lease is gone from the store: taking it again, the data path stays lease=%s",
                    lease.subnet,
                )
                self._enter("lost")
            case Taken(lease, by):
                owner = by.attributes.owner.owner if by.attributes.owner else "an original flannel"
                holder = f"{by.attributes.public_ip} ({owner})"
                if self.holder != holder:
                    log.error(
                        "Subnet is held by %s now: this host runs on degraded and does not renumber unless"
                        " told (--on-subnet-lost=renumber) lease=%s theirs=%s",
                        holder,
                        lease.subnet,
                        by.subnet,
                    )
                self.holder = holder
                self._enter("taken")
            case Contested(lease):
                public_ip = lease.attributes.public_ip
                self.asked = (
                    f"the host at {public_ip}, which holds {lease.subnet} with our address or identity,"
                    " whether it lives"
                )
                log.warning(
                    "A lease with our address or identity is held by %s at %s: asking whether that host lives"
                    " lease=%s",
                    lease.attributes.owner.owner if lease.attributes.owner else "nobody known",
                    public_ip,
                    lease.subnet,
                )
            case SharedAddress(subnet, other, public_ip, is_ours):
                self.asked = None
                self.shared = (
                    f"two living hosts share an address or identity: the other is {other} at {public_ip};"
                    f" {_HOLDERS[is_ours]} lease {subnet};"
                    " give one of them an address of its own (--public-ip, --iface)"
                )
                self.shared_with, self._is_shared_lease_known = other, False
                log.error("Warning: %s", self.shared)

    def _enter(self, phase: LeasePhase) -> None:
        if phase in _LOSSES and self._phase not in _LOSSES:
            self.losses += 1
        if phase != self._phase:
            self._phase = phase
            self.since = self._clock.now()

    def _time(self, held: Held) -> str:
        assert held.expires_at is not None
        left_s = held.expires_at - self._clock.now()
        return datetime.fromtimestamp(self._clock.utc() + left_s, UTC).isoformat(timespec="seconds")
