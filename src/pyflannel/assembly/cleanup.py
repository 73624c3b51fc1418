"""Everything of flannel taken off this host: processes, kernel objects, files, the lease."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyflannel.assembly.daemon_process import running_daemon, stop_daemon
from pyflannel.assembly.footing import footing_of, status_of_host
from pyflannel.assembly.options import store_url_from_environment
from pyflannel.assembly.places import Places
from pyflannel.assembly.removal import remove_objects
from pyflannel.assembly.store import open_store
from pyflannel.assembly.store_flags import etcd_password_of
from pyflannel.errors import FlannelError, WireError
from pyflannel.kernel.bpf.pin_directory import remove_pin_directory
from pyflannel.kernel.host.lock import RunLock
from pyflannel.model.lease import Lease
from pyflannel.model.store_record import Conflict, Delete, Record, Written
from pyflannel.ports.store import Store
from pyflannel.processes.forwarder_launch import LOG_NAME
from pyflannel.processes.service import service_of
from pyflannel.wire.forwarder_control import SOCKET_NAME
from pyflannel.wire.lease_record import SUBNETS, lease_of


@dataclass(frozen=True, slots=True)
class CleanupReport:
    """What was done, in lines for people: taken away, left on purpose, left because something failed."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleanup:
    """What is to be cleaned up.

    Attributes:
        store_url: where our lease is; None for the store of the daemon that runs, or else of the environment.
            Of one of several networks the store of all will do.
        node_id: our identity, where it was given to the daemon instead of kept.
        doubtful_rules: filter rules that may be an original flannel's or anybody's go too.
        keep_lease: the host goes on under another program with the same subnet; the identity stays too.
    """

    places: Places
    store_url: str | None = None
    node_id: str | None = None
    keep_lease: bool = False
    doubtful_rules: bool = False


async def clean_up(cleanup: Cleanup, environ: Mapping[str, str]) -> CleanupReport:
    """Return the host to the state before flannel; whatever fails is reported, and the rest is still done.

    Raises:
        BusyError: the daemon does not end, or another one starts.
        TargetError: we may not stop it, or not write to its run directory.
        UsageError: the daemon works in another network namespace.
    """
    report = CleanupReport()
    places = cleanup.places
    status = await status_of_host(places)
    footing = await footing_of(places, status)
    store_url = status.store.url if status.store else None
    running = running_daemon(places.lock)
    unit = None if running is None else service_of(running)
    pid = await stop_daemon(places.lock)
    if pid is not None:
        report.removed.append(f"flanneld (pid {pid})")
    if unit is not None:
        report.kept.append(f"unit {unit}; if it is enabled, `systemctl disable {unit}` before the next boot")
    was_here = places.run_dir.exists()  # the lock makes it
    with RunLock(str(places.lock), "flannelctl cleanup"):  # no daemon starts meanwhile
        removal = await remove_objects(places, footing, doubtful_rules=cleanup.doubtful_rules)
        report.removed.extend(removal.removed)
        report.kept.extend(removal.kept)
        report.problems.extend(removal.problems)
        _remove_files(
            report,
            places.subnet_file,
            places.subnet_file.with_name(f".{places.subnet_file.name}"),  # an original was killed writing it
            places.device_file,
            places.control_socket,
            places.run_dir / SOCKET_NAME,
            places.run_dir / LOG_NAME,
        )
        _remove_pins(report, places.bpf)
        owner = cleanup.node_id or status.owner
        if cleanup.keep_lease:
            report.kept.append("the lease, and the identity that holds it")
        elif owner is None or await _release(
            cleanup.store_url or store_url, places.network, owner, environ, report
        ):
            _remove_files(report, places.identity, places.last_known, places.spoilt_identity)
    if not cleanup.keep_lease:
        _remove_directory(places.state_dir, report)
    _remove_directory(places.run_dir, report if was_here else CleanupReport())
    return report


async def _release(
    store_url: str | None,
    network: str | None,
    owner: str,
    environ: Mapping[str, str],
    report: CleanupReport,
) -> bool:
    """Delete the leases of `owner` from the store; return whether none is left there."""
    try:
        url = store_url or store_url_from_environment(environ)
        if network is not None and "#" not in url:
            url = f"{url}#{network}"
        store = open_store(url, etcd_password_of(environ))
        try:
            listing = await store.list(SUBNETS)
            leases = [(record, lease) for record in listing.records if (lease := _lease_of(record, owner))]
            return all([await _delete(store, record, lease, report) for record, lease in leases])
        finally:
            await store.close()
    except FlannelError as error:
        report.problems.append(f"the lease was not deleted: {error}. {error.hint}")
        return False


async def _delete(store: Store, record: Record, lease: Lease, report: CleanupReport) -> bool:
    if not lease.has_ttl:
        report.kept.append(f"reservation of {lease.subnet}, which an operator made")
        return True
    match await store.write(Delete(key=record.key, expected=record.revision)):
        case Written():
            report.removed.append(f"lease {lease.subnet}")
        case Conflict(None):
            pass  # it expired meanwhile
        case Conflict():
            report.problems.append(f"lease {lease.subnet} was written again meanwhile: by another flanneld?")
            return False
    return True


def _lease_of(record: Record, owner: str) -> Lease | None:
    """Return the lease in a record, if `owner` holds it."""
    try:
        lease = lease_of(record)
    except WireError:
        return None
    identity = lease.attributes.owner
    return lease if identity is not None and identity.owner == owner else None


def _remove_files(report: CleanupReport, *paths: Path) -> None:
    for path in paths:
        # A writer that was killed leaves the name that it was going to rename.
        for each in (path, path.with_name(f".{path.name}.new")):
            try:
                each.unlink()
                report.removed.append(f"file {each}")
            except FileNotFoundError:
                pass
            except OSError as error:
                report.problems.append(f"{each} cannot be removed: {error.strerror}")


def _remove_pins(report: CleanupReport, path: Path) -> None:
    try:
        if remove_pin_directory(str(path)):
            report.removed.append(f"directory {path}")
    except OSError as error:
        report.problems.append(f"{path} cannot be removed: {error.strerror}")


def _remove_directory(path: Path, report: CleanupReport) -> None:
    """Remove a directory that is empty now; what others put there keeps it."""
    try:
        path.rmdir()
        report.removed.append(f"directory {path}")
    except FileNotFoundError:
        pass
    except OSError:
        others = ", ".join(sorted(entry.name for entry in path.glob("*")))
        report.kept.append(f"directory {path}, which holds other files: {others}")
