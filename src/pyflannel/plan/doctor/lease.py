"""Findings about the key of this host's lease in the store, which another program overwrites or deletes."""

from collections.abc import Iterator
from typing import NamedTuple

from pyflannel.model.lease import LeaseEntry
from pyflannel.model.status import Finding, LeaseStatus, Status


class LeaseReading(NamedTuple):
    """The status of the daemon, and the lease that it knows at the key of this host; None without a lease."""

    status: Status
    entry: LeaseEntry | None


def is_disputed(status: Status) -> bool:
    """Return whether the lease of this host was deleted or overwritten since the daemon started."""
    lease = status.lease
    return status.is_live and lease is not None and (lease.losses > 0 or lease.phase in ("lost", "taken"))


def lease_findings(first: LeaseReading, last: LeaseReading, seconds: float) -> Iterator[Finding]:
    """Yield the finding that another program writes the key of this host's lease.

    `seconds`: the time between the two readings.
    """
    lease, before = last.status.lease, first.status.lease
    if lease is None or before is None or lease.subnet is None:
        return
    url = "" if last.status.store is None else last.status.store.url
    losses = lease.losses - before.losses
    if lease.phase == "taken":
        rise = last.entry.revision - first.entry.revision if first.entry and last.entry else 0
        is_repeated = rise > 0 and seconds > 0
        yield (
            _overwritten(lease, last.entry, url, rise, seconds)
            if is_repeated
            else _taken(lease, last.entry, url)
        )
    elif losses > 0:
        yield Finding(
            code="lease-deleted",
            severity="error",
            cause="another program deletes the lease of this host again and again, so peers lose the routes"
            " to its containers",
            evidence=(
                f"{url}: {lease.subnet} was deleted {losses} times in {seconds:.1f} s, and written again by"
                " this host",
            ),
            fix=f"{_history(lease, url)} Stop the program that deletes the lease",
        )


def _history(lease: LeaseStatus, url: str) -> str:
    """Return the command that shows the writes, and for etcd the command that shows its clients."""
    clients = (
        " On each etcd server, `ss -tnp sport = :2379` lists the connected clients."
        if url.startswith("etcd")
        else ""
    )
    return f"flannelctl leases history {lease.subnet} --renewals  # shows each write.{clients}"


def _written(entry: LeaseEntry | None, url: str) -> tuple[str, ...]:
    if entry is None:
        return ()
    return (f"{url}: {entry.subnet} has PublicIP {entry.public_ip}, mod revision {entry.revision}",)


def _release(lease: LeaseStatus) -> str:
    return f"flannelctl leases release {lease.subnet} --force"


def _overwritten(
    lease: LeaseStatus, entry: LeaseEntry | None, url: str, rise: int, seconds: float
) -> Finding:
    """Return the finding that another program writes the lease again and again.

    Args:
        lease: the lease of this host.
        entry: the lease in the store.
        url: URL of the store.
        rise: increase of the revision of the lease between two readings.
        seconds: time between the two readings.
    """
    return Finding(
        code="lease-taken",
        severity="error",
        cause="another program overwrites the lease of this host again and again: the store assigns"
        f" {lease.subnet} to {lease.holder or 'another host'}",
        evidence=(
            *_written(entry, url),
            f"{seconds:.1f} s before: its revision was lower by {rise}, so the store got at most"
            f" {rise / seconds:.1f} writes per second",
        ),
        fix=f"{_history(lease, url)} Stop the program that writes, then: {_release(lease)}; this host then"
        " takes its subnet again",
    )


def _taken(lease: LeaseStatus, entry: LeaseEntry | None, url: str) -> Finding:
    return Finding(
        code="lease-taken",
        severity="error",
        cause=f"the store assigns {lease.subnet}, the subnet of this host, to"
        f" {lease.holder or 'another host'}",
        evidence=_written(entry, url),
        fix=f"{_release(lease)}  # if that host does not exist; this host then takes its subnet again. If it"
        " runs: restart flanneld here with --on-subnet-lost=renumber",
    )
