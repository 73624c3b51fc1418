"""Findings about the key of this host's lease in the store, which another program overwrites or deletes."""

from collections.abc import Iterator
from typing import NamedTuple

from pyflannel.model.lease import LeaseEntry
from pyflannel.model.status import Finding, Status


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
    store = last.status.store
    key = f"{'' if store is None else store.url}/subnets/{str(lease.subnet).replace('/', '-')}"
    history = f"flannelctl leases history {lease.subnet} --renewals"
    losses = lease.losses - before.losses
    if lease.phase == "taken":
        yield _taken(first.entry, last.entry, lease.holder or "another host", key, history, seconds)
    elif losses > 0:
        yield Finding(
            code="lease-deleted",
            severity="error",
            cause="another program deletes the lease of this host again and again, so peers lose the routes"
            " to its containers",
            evidence=(f"{key}: deleted {losses} times in {seconds:.1f} s, and written again by this host",),
            fix=f"{history}  # shows each write; stop the program that deletes the key.{_clients(key)}",
        )


def _clients(key: str) -> str:
    """Return the sentence about the clients of a store of etcd; "" for another store."""
    if not key.startswith("etcd"):
        return ""
    return " On each etcd server, `ss -tnp sport = :2379` lists the connected clients"


def _taken(
    first: LeaseEntry | None, last: LeaseEntry | None, holder: str, key: str, history: str, seconds: float
) -> Finding:
    written = [f"{key}: PublicIP {last.public_ip}, mod revision {last.revision}"] if last is not None else []
    rise = last.revision - first.revision if first is not None and last is not None else 0
    subnet = key.rpartition("/")[2].replace("-", "/")
    release = f"flannelctl leases release {subnet} --force"
    if rise > 0 and seconds > 0:
        written.append(
            f"{seconds:.1f} s before: mod revision {last.revision - rise if last else 0}, so the store got at"
            f" most {rise / seconds:.1f} writes per second"
        )
        return Finding(
            code="lease-taken",
            severity="error",
            cause=f"another program overwrites the lease of this host again and again: the store assigns"
            f" {subnet} to {holder}",
            evidence=tuple(written),
            fix=f"{history}  # shows each write. Stop the program that writes, then: {release}; this host"
            f" then takes its subnet again.{_clients(key)}",
        )
    return Finding(
        code="lease-taken",
        severity="error",
        cause=f"the store assigns {subnet}, the subnet of this host, to {holder}",
        evidence=tuple(written),
        fix=f"{release}  # if that host does not exist; this host then takes its subnet again. If it runs:"
        " restart flanneld here with --on-subnet-lost=renumber",
    )
