"""Everything of flannel taken off this host: processes, kernel objects, files, the lease."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pyflannel.assembly.control_client import ControlClient
from pyflannel.assembly.daemon_process import running_daemon, stop_daemon
from pyflannel.assembly.options import store_url_from_environment
from pyflannel.assembly.places import Places
from pyflannel.assembly.store import open_store
from pyflannel.assembly.store_flags import etcd_password_of
from pyflannel.engine.targets import Targets
from pyflannel.errors import FlannelError, NotReadyError, WireError
from pyflannel.kernel.iptables import IptablesTarget
from pyflannel.kernel.linux import LinuxTarget
from pyflannel.kernel.lock import RunLock
from pyflannel.kernel.nftables import NftTarget
from pyflannel.model.address import Address
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.iptables_chain import IptablesChain
from pyflannel.model.lease import Lease
from pyflannel.model.link import Link
from pyflannel.model.nft_table import NftTable
from pyflannel.model.route import Route
from pyflannel.model.state import State
from pyflannel.model.store_record import Conflict, Delete, Record, Written
from pyflannel.plan.describe import name
from pyflannel.plan.diff import diff
from pyflannel.plan.order import order
from pyflannel.plan.ownership import ours
from pyflannel.ports.store import Store
from pyflannel.ports.target import Target
from pyflannel.processes.forwarder import ForwarderTarget
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
        node_id: our identity, where it was given to the daemon instead of kept.
        keep_lease: the host goes on under another program with the same subnet; the identity stays too.
    """

    places: Places
    store_url: str | None = None
    node_id: str | None = None
    keep_lease: bool = False


async def clean_up(cleanup: Cleanup, environ: Mapping[str, str]) -> CleanupReport:
    """Return the host to the state before flannel; whatever fails is reported, and the rest is still done.

    Raises:
        BusyError: the daemon does not end, or another one starts.
        TargetError: we may not stop it, or not write to its run directory.
        UsageError: the daemon works in another network namespace.
    """
    report = CleanupReport()
    places = cleanup.places
    store_url, owner = await _asked_of_daemon(places)
    running = running_daemon(places.lock)
    unit = None if running is None else service_of(running)
    pid = await stop_daemon(places.lock)
    if pid is not None:
        report.removed.append(f"flanneld (pid {pid})")
    if unit is not None:
        report.kept.append(f"unit {unit}; if it is enabled, `systemctl disable {unit}` before the next boot")
    was_here = places.run_dir.exists()  # the lock makes it
    with RunLock(str(places.lock), "flannelctl cleanup"):  # no daemon starts meanwhile
        await _remove_objects(places, report)
        _remove_files(
            report,
            places.subnet_file,
            places.control_socket,
            places.run_dir / SOCKET_NAME,
            places.run_dir / LOG_NAME,
        )
        owner = cleanup.node_id or owner or places.owner()
        if cleanup.keep_lease:
            report.kept.append("the lease, and the identity that holds it")
        elif owner is None or await _release(cleanup.store_url or store_url, owner, environ, report):
            spoilt = places.identity.with_suffix(".json.corrupt")
            _remove_files(report, places.identity, places.last_known, spoilt)
    if not cleanup.keep_lease:
        _remove_directory(places.state_dir, report)
    _remove_directory(places.run_dir, report if was_here else CleanupReport())
    return report


async def _asked_of_daemon(places: Places) -> tuple[str | None, str | None]:
    """Return the store and the owner that a running daemon names."""
    try:
        status = await ControlClient(places.control_socket).status()
    except (NotReadyError, WireError):
        return None, None
    return status.store.url if status.store else None, status.owner


async def _remove_objects(places: Places, report: CleanupReport) -> None:
    """Remove the forwarder and every kernel object of ours: the plan is that nothing is there."""
    try:
        linux = LinuxTarget()
    except FlannelError as error:
        report.problems.append(str(error))
        return
    forwarder, iptables, nftables = ForwarderTarget(places.run_dir), IptablesTarget(), NftTarget()
    try:
        unreachable = await forwarder.end_unreachable()
        report.removed.extend(f"forwarder (pid {pid}), which answered nobody" for pid in unreachable)
        # One after the other, so that one that does not answer hides nothing of the other. But whose the
        # filter rules are is told by the links.
        for target in (
            Targets({Forwarder: forwarder, ForwarderPeer: forwarder}),
            Targets({Link: linux, Address: linux, Route: linux, IptablesChain: iptables, NftTable: nftables}),
        ):
            await _empty(target, places.mark, report)
    finally:
        for adapter in (linux, iptables, nftables):
            adapter.close()


async def _empty(target: Target, mark: str, report: CleanupReport) -> None:
    try:
        found = ours(await target.snapshot(State.EMPTY), State.EMPTY, mark)
        refusals = await target.apply(order(diff(State.EMPTY, found)))
        left = ours(await target.snapshot(State.EMPTY), State.EMPTY, mark)
    except FlannelError as error:
        report.problems.append(f"{error}. {error.hint}")
        return
    report.removed.extend(name(item) for item in found if item.key not in left.by_key)
    report.problems.extend(f"{refusal.cause}. {refusal.hint}" for refusal in refusals)
    if not refusals:
        report.problems.extend(f"{name(item)} is still there" for item in left)


async def _release(
    store_url: str | None, owner: str, environ: Mapping[str, str], report: CleanupReport
) -> bool:
    """Delete the leases of `owner` from the store; return whether none is left there."""
    try:
        url = store_url or store_url_from_environment(environ)
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


def _remove_directory(path: Path, report: CleanupReport) -> None:
    """Remove a directory that is empty now; what others put there keeps it."""
    try:
        path.rmdir()
        report.removed.append(f"directory {path}")
    except FileNotFoundError:
        pass
    except OSError:
        report.kept.append(f"directory {path}, which holds other files")
