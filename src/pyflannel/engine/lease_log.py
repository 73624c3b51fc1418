"""Logging of the lease protocol, with one line for each report. If the original logs the same event, the line
contains the text of the original.
"""

import logging
from collections.abc import Iterable
from datetime import UTC, datetime

from pyflannel.engine.condition import HostCondition
from pyflannel.engine.pacing import LogLimit
from pyflannel.errors import WireError, cut, sentences
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
    Unassigned,
    Unsuitable,
)
from pyflannel.model.lease_set import LARGEST, LeaseSet
from pyflannel.ports import Clock

log = logging.getLogger(__name__)

SKIPPED_KEPT = 1000
"""Number of invalid keys that are remembered, so that each key is logged once."""

_KEY_KEPT = 256
"""Maximum number of characters of a key that are remembered. The key of a lease has at most 68 characters."""

EXHAUSTED_HINT = "Widen Network, increase SubnetLen, or remove stale leases."
"""The remedy if no subnet is free."""

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
    None: "it is not decided yet which of them keeps",
}


class LeaseLog:
    """Logs reports of the lease protocol. A client of the store can cause many reports, so the number of
    lines is limited.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._limit = LogLimit(log, clock, "the lease of this host")

    def log_report(self, report: Report, before: HostCondition) -> None:
        """Log a report of the lease protocol; `before` is the condition before the report."""
        match report:
            case Picking(network):
                self._limit.line(
                    logging.INFO, "Picking subnet in range %s ... %s", network.subnet_min, network.subnet_max
                )
                if network.enable_ipv6:
                    self._limit.line(
                        logging.INFO,
                        "Picking ipv6 subnet in range %s ... %s",
                        network.ipv6_subnet_min,
                        network.ipv6_subnet_max,
                    )
            case Reusing(lease):
                public_ip = lease.attributes.public_ip
                self._limit.line(
                    logging.INFO, "Found lease (%s) for current IP (%s), reusing", lease.text, public_ip
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
            case Unassigned(cause, hint):
                if report != before.lease.unassigned:
                    text = sentences(cause, hint)
                    self._limit.line(logging.ERROR, "Waiting for a lease from Kubernetes: %s", text)
            case Acquired() | Renewed():
                self._log_held(report, before)
            case StoreAway() | StoreBack():
                pass  # `StoreLog` logs the outage once for all users of the store
            case Lost() | Taken() | Contested() | SharedAddress():
                self._log_trouble(report, before)

    def _log_held(self, report: Acquired | Renewed, before: HostCondition) -> None:
        held = report.held
        match report:
            case Acquired() if before.lease.phase == "acquiring":
                self._limit.line(logging.INFO, "Lease acquired: %s", held.lease.text)
                self._limit.line(logging.INFO, "Watching for new subnet leases")
            case Acquired():
                self._limit.line(logging.INFO, "Lease acquired again: %s", held.lease.text)
            case Renewed() if held.expires_at is None:
                self._limit.line(
                    logging.INFO, "Found a reservation, which needs no renewal lease=%s", held.lease.subnet
                )
            case Renewed():
                self._limit.line(
                    logging.INFO,
                    "Lease renewed, new expiration: %s lease=%s",
                    _time(held, self._clock),
                    held.lease.subnet,
                )

    def _log_trouble(self, report: Lost | Taken | Contested | SharedAddress, before: HostCondition) -> None:
        match report:
            case Lost(lease):
                self._limit.line(
                    logging.WARNING,
                    "Lost the lease in the store: acquiring it again, data path unaffected lease=%s",
                    lease.subnet,
                )
            case Taken(lease, by):
                holder = holder_text(report)
                if before.lease.taken is None or holder_text(before.lease.taken) != holder:
                    self._limit.line(
                        logging.ERROR,
                        "Lost the subnet to %s: this host keeps running, degraded. To change the subnet "
                        "of this host instead, start flanneld with --on-subnet-lost=renumber. lease=%s "
                        "other_lease=%s",
                        holder,
                        lease.subnet,
                        by.subnet,
                    )
            case Contested(lease):
                self._limit.line(
                    logging.WARNING,
                    "Found a lease with this host's address or identity, held by %s at %s: asking whether"
                    " that host is alive lease=%s",
                    lease.attributes.owner or "an unknown host",
                    lease.attributes.host_text,
                    lease.subnet,
                )
            case SharedAddress():
                self._limit.line(logging.ERROR, "Found a conflict: %s", shared_text(report))


class SkippedKeys:
    """Logs the keys of the store that contain no valid lease or claim, each key once for each reason.

    A client of the store can write any number of invalid keys, so memory and log are bounded.
    """

    def __init__(self, clock: Clock) -> None:
        self._limit = LogLimit(log, clock, "keys without a valid lease")
        self._reasons: dict[str, str] = {}

    def __len__(self) -> int:
        """Return the number of remembered keys."""
        return len(self._reasons)

    def skip(self, key: str, error: WireError) -> None:
        """Log that the record at a key is skipped, unless the last log line about this key has the same
        reason.
        """
        key, reason = cut(key, _KEY_KEPT), str(error)
        if self._reasons.pop(key, None) != reason:
            self._limit.line(logging.WARNING, "Skipped %s", error.in_full)
        self._reasons[key] = reason
        if len(self._reasons) > SKIPPED_KEPT:
            del self._reasons[next(iter(self._reasons))]

    def forget(self, key: str) -> None:
        """Record that a key is deleted, or contains a lease now."""
        if self._reasons:
            self._reasons.pop(cut(key, _KEY_KEPT), None)

    def keep_only(self, keys: Iterable[str]) -> None:
        """Record which keys exist, and forget all others."""
        if self._reasons:
            present = {cut(key, _KEY_KEPT) for key in keys}
            self._reasons = {key: reason for key, reason in self._reasons.items() if key in present}


def log_shared_over(shared: SharedAddress) -> None:
    """Log that no other host has this host's address or identity anymore."""
    log.info("The host with the same address or identity is gone owner=%s", shared.other)


def holder_text(taken: Taken) -> str:
    """Return the host that holds this host's subnet, as text."""
    attributes = taken.by.attributes
    if attributes.host_name is not None:
        return attributes.host_text
    return f"{attributes.public_ip} ({attributes.owner or 'an original flannel'})"


def contested_text(contested: Contested) -> str:
    """Return the host that is asked whether it is alive, as text."""
    lease = contested.lease
    return (
        f"the host at {lease.attributes.host_text}, which holds {lease.subnet} with this host's address or"
        " identity, whether it is alive"
    )


def left_out_text(leases: LeaseSet) -> str:
    """Return the text for more leases than a host accepts, with the remedy."""
    return (
        f"the network has more than {LARGEST} leases: the {leases.left_out} latest are ignored;"
        " delete the leases of removed hosts, or divide the network"
    )


def exhausted_text(exhausted: Exhausted) -> str:
    """Return the text for a network without a free subnet."""
    network = exhausted.network
    text = f"no /{network.subnet_length} is free in {network.network}"
    if network.enable_ipv6:
        text += f", or no /{network.ipv6_subnet_length} in {network.ipv6_network}"
    return text


def shared_text(shared: SharedAddress) -> str:
    """Return the text for two hosts that share an address or identity, with the remedy."""
    return (
        f"two living hosts share an address or identity: the other is {shared.other} at {shared.host};"
        f" {_KEEPERS[shared.is_ours]} lease {shared.subnet};"
        " give one of them its own address (--public-ip, --iface)"
    )


def _time(held: Held, clock: Clock) -> str:
    assert held.expires_at is not None
    left_s = held.expires_at - clock.now()
    return datetime.fromtimestamp(clock.utc() + left_s, UTC).isoformat(timespec="seconds")
