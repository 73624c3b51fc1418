"""The log of the lease protocol: each report in words, in those of flannel where it has a text for it."""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from pyflannel.engine.condition import HostCondition
from pyflannel.engine.pacing import LogLimit
from pyflannel.errors import WireError, cut
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
from pyflannel.model.lease_set import LARGEST, LeaseSet
from pyflannel.ports import Clock

log = logging.getLogger(__name__)

SKIPPED_KEPT = 1000
"""Keys without a lease that are remembered, so that each is logged once."""

_KEY_KEPT = 256
"""Characters of a key that are remembered. A key of a lease has at most 68."""

EXHAUSTED_HINT = "Widen Network, increase SubnetLen, or remove stale leases."
"""What to do when no subnet is free."""

_UNSUITABLE = {
    "deleted": "Found lease (%s) for current IP but not compatible with current config, deleting",
    "kept": "Found reservation or foreign lease (%s) for this host, not compatible with current config, kept",
    "previous": (
        "Found previously leased subnet (%s) that is not compatible with the Etcd network config, ignoring"
    ),
}

_KEEPERS = {
    True: "this host keeps",
    False: "the other host holds",
    None: "they are settling which of them keeps",
}


class LeaseLog:
    """Logs reports of the lease protocol. A writer of the store can cause many, so lines are limited."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._limit = LogLimit(log, clock, "the lease of this host")

    def tell(self, report: Report, before: HostCondition) -> None:
        """Log a report of the lease protocol; `before` is the condition that it changes."""
        match report:
            case Picking(network):
                self._limit.line(
                    logging.INFO, "Picking subnet in range %s ... %s", network.subnet_min, network.subnet_max
                )
            case Reusing(lease):
                public_ip = lease.attributes.public_ip
                self._limit.line(
                    logging.INFO, "Found lease (%s) for current IP (%s), reusing", lease.subnet, public_ip
                )
            case ReusingPrevious(subnet):
                self._limit.line(logging.INFO, "Found previously leased subnet (%s), reusing", subnet)
            case Unsuitable(subnet, fate):
                self._limit.line(logging.WARNING, _UNSUITABLE[fate], subnet)
            case Exhausted():
                if report != before.lease.exhausted:
                    self._limit.line(
                        logging.ERROR,
                        "Cannot get a lease: %s, retrying. %s lease=none",
                        exhausted_text(report),
                        EXHAUSTED_HINT,
                    )
            case Acquired() | Renewed():
                self._tell_held(report, before)
            case StoreAway() | StoreBack():
                pass  # `StoreLog` logs it once for all users of the store
            case Lost() | Taken() | Contested() | SharedAddress():
                self._tell_trouble(report, before)

    def _tell_held(self, report: Acquired | Renewed, before: HostCondition) -> None:
        held = report.held
        match report:
            case Acquired() if before.lease.phase == "acquiring":
                self._limit.line(logging.INFO, "Lease acquired: %s", held.lease.subnet)
                self._limit.line(logging.INFO, "Watching for new subnet leases")
            case Acquired():
                self._limit.line(logging.INFO, "Lease acquired again: %s", held.lease.subnet)
            case Renewed() if held.expires_at is None:
                self._limit.line(
                    logging.INFO, "Lease is a reservation and is not renewed lease=%s", held.lease.subnet
                )
            case Renewed():
                self._limit.line(
                    logging.INFO,
                    "Lease renewed, new expiration: %s lease=%s",
                    _time(held, self._clock),
                    held.lease.subnet,
                )

    def _tell_trouble(self, report: Lost | Taken | Contested | SharedAddress, before: HostCondition) -> None:
        match report:
            case Lost(lease):
                self._limit.line(
                    logging.WARNING,
                    "Lease is gone from the store: taking it again, the data path stays lease=%s",
                    lease.subnet,
                )
            case Taken(lease, by):
                holder = holder_text(report)
                if before.lease.taken is None or holder_text(before.lease.taken) != holder:
                    self._limit.line(
                        logging.ERROR,
                        "Subnet is held by %s now: this host runs on degraded and does not renumber unless"
                        " told (--on-subnet-lost=renumber) lease=%s theirs=%s",
                        holder,
                        lease.subnet,
                        by.subnet,
                    )
            case Contested(lease):
                self._limit.line(
                    logging.WARNING,
                    "A lease with our address or identity is held by %s at %s: asking whether that host lives"
                    " lease=%s",
                    lease.attributes.owner or "nobody known",
                    lease.attributes.public_ip,
                    lease.subnet,
                )
            case SharedAddress():
                self._limit.line(logging.ERROR, "Warning: %s", shared_text(report))


class SkippedKeys:
    """Logs the keys of the store that hold no lease or claim, each once for each reason.

    A writer of the store can write any number of them, so memory and log are bounded.
    """

    def __init__(self, clock: Clock) -> None:
        self._limit = LogLimit(log, clock, "keys that hold no lease")
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        """Return how many are remembered."""
        return len(self._reasons)

    def skip(self, key: str, error: WireError) -> None:
        """Log that the record at a key is skipped, if that is news."""
        key, reason = cut(key, _KEY_KEPT), str(error)
        if self._reasons.pop(key, None) != reason:
            self._limit.line(logging.WARNING, "Skipped %s", error.in_full)
        self._reasons[key] = reason
        if len(self._reasons) > SKIPPED_KEPT:
            del self._reasons[next(iter(self._reasons))]

    def forget(self, key: str) -> None:
        """Note that a key is gone, or holds a lease now."""
        if self._reasons:
            self._reasons.pop(cut(key, _KEY_KEPT), None)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Note all keys that there are."""
        if self._reasons:
            present = {cut(key, _KEY_KEPT) for key in keys}
            self._reasons = {key: reason for key, reason in self._reasons.items() if key in present}


def log_shared_over(shared: SharedAddress) -> None:
    """Log that no other host has our address or identity any more."""
    log.info("The host that shared our address or identity is gone owner=%s", shared.other)


def holder_text(taken: Taken) -> str:
    """Return the host that holds our subnet."""
    owner = taken.by.attributes.owner or "an original flannel"
    return f"{taken.by.attributes.public_ip} ({owner})"


def contested_text(contested: Contested) -> str:
    """Return the host that is asked whether it lives."""
    lease = contested.lease
    return (
        f"the host at {lease.attributes.public_ip}, which holds {lease.subnet} with our address or identity,"
        " whether it lives"
    )


def left_out_text(leases: LeaseSet) -> str:
    """Return that there are more leases than a host takes, and what to do."""
    return (
        f"the network has more than {LARGEST} leases: {leases.left_out} that came later are left out;"
        " delete those that no host owns, or divide the network"
    )


def exhausted_text(exhausted: Exhausted) -> str:
    """Return which subnets are all leased."""
    network = exhausted.network
    return f"no free /{network.subnet_length} is left in {network.network}"


def shared_text(shared: SharedAddress) -> str:
    """Return the two hosts that share an address or identity, and what to do."""
    return (
        f"two living hosts share an address or identity: the other is {shared.other} at {shared.public_ip};"
        f" {_KEEPERS[shared.is_ours]} lease {shared.subnet};"
        " give one of them an address of its own (--public-ip, --iface)"
    )


def _time(held: Held, clock: Clock) -> str:
    assert held.expires_at is not None
    left_s = held.expires_at - clock.now()
    return datetime.fromtimestamp(clock.utc() + left_s, UTC).isoformat(timespec="seconds")
