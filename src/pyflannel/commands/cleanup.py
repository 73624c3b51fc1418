"""cleanup: takes everything of flannel off this host: processes, kernel objects, files, the lease."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pyflannel.assembly.directories import Places
from pyflannel.assembly.options import store_url_from_environment
from pyflannel.assembly.store_flags import etcd_password_of
from pyflannel.assembly.stores import open_store
from pyflannel.commands.daemon_process import running_daemon, stop_daemon
from pyflannel.commands.examination import known_networks, membership_of, status_of_host
from pyflannel.errors import BusyError, FlannelError, TargetError, WireError, sentences
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.pins import pin_directory, pin_standing, remove_pin_directory
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget, read_rules, remove_rules
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.host.locks import DeviceClaim, RunLock
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.kernel.network.next_hops import remove_next_hops
from pyflannel.kernel.network.snapshot import survey
from pyflannel.model.item import Item
from pyflannel.model.lease import Lease
from pyflannel.model.link import MARK, Link
from pyflannel.model.packet_filter import FIRST_DEVICE, LeftRules
from pyflannel.model.route import DEVICES, route_protocol
from pyflannel.model.state import Remove, State
from pyflannel.model.status import Membership
from pyflannel.model.store_record import Conflict, Delete, Record, Written
from pyflannel.plan.diff import diff, order
from pyflannel.plan.leftovers import left_by_original, rules_left
from pyflannel.plan.ownership import ours
from pyflannel.ports import Store, Target
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.forwarder_launch import LOG_NAME
from pyflannel.processes.found import find_original
from pyflannel.processes.systemd import service_of
from pyflannel.wire.forwarder_control import SOCKET_NAME
from pyflannel.wire.lease_record import SUBNETS, lease_of


async def lay_pins(places: Places) -> str:
    """Mount it and fill it with what stands; return what was done, in a line.

    Raises:
        TargetError: it cannot be had here.
    """
    try:
        with pin_directory(str(places.bpf)) as directory:
            count = await pin_standing(directory)
    except NotADirectoryError as error:
        raise TargetError(
            f"{places.bpf} is not a directory",
            hint="Remove it, and look for the program that made it: flanneld makes no file or symlink there.",
        ) from error
    except OSError as error:
        raise TargetError(
            f"no eBPF programs can be pinned in {places.bpf}: {error.strerror}",
            hint="It takes root, and a kernel with eBPF. Without it packets go through user space.",
        ) from error
    return f"{places.bpf} holds the programs that stand here: {count}"


_NAMED = 8
"""So many of one kind are named one by one."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of it, in lines for people: taken away, left on purpose, left because something failed."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def remove_objects(places: Places, membership: Membership, *, doubtful_rules: bool = False) -> Removal:
    """Remove the forwarder, our kernel objects, and, for the default daemon, the objects of the original.

    One after the other, so that one that does not answer hides nothing of the rest. No daemon may run. Filter
    rules that may be the original's or anybody's go where `doubtful_rules` says so.
    """
    done = Removal()
    async with AsyncExitStack() as opened:
        enter = opened.enter_async_context
        try:
            linux = await enter(LinuxTarget())
            device = claimed_name(places, await survey())
        except FlannelError as error:
            done.problems.append(error.in_full)
            return done
        forwarder, fast_path = ForwarderTarget(places.run_dir), BpfTarget(FastPath(str(places.bpf)))
        iptables, nftables = IptablesTarget(), NftTarget()
        for adapter in (forwarder, fast_path, iptables, nftables):
            await enter(adapter)
        unreachable = await forwarder.end_unreachable()
        done.removed.extend(f"forwarder (pid {pid}), which answered nobody" for pid in unreachable)
        for target in (fast_path, forwarder, iptables, nftables, linux):
            await _empty(target, places.mark, device, done)
        if device is not None:
            await _remove_next_hops(route_protocol(device), done)
        if places.mark == MARK:
            await _remove_originals(linux, membership, done)
            networks = known_networks(places, membership)
            await _remove_rules(rules_left(await read_rules(), networks), done, doubtful_rules)
    return done


def claimed_name(places: Places, found: Iterable[Item]) -> str | None:
    """Return the name that the daemon claimed, which tells its routes and filter rules; None if unknown.

    Without a word of it, the usual daemon would have flannel0, unless another daemon has.
    """
    if (kept := places.device()) is not None:
        return kept
    aliases = {item.name: item.alias for item in found if isinstance(item, Link)}
    if (marked := next((one for one in DEVICES if aliases.get(one) == places.mark), None)) is not None:
        return marked
    if places.mark != MARK or aliases.get(FIRST_DEVICE, "").startswith(MARK):
        return None
    if FIRST_DEVICE in _names_of_others(places, aliases.values()):
        return None
    try:
        DeviceClaim([FIRST_DEVICE]).close()
    except BusyError:
        return None
    return FIRST_DEVICE


def _names_of_others(places: Places, aliases: Iterable[str]) -> set[str | None]:
    """Return the names that other daemons kept: those with links here, and the networks of our own daemon."""
    marked = {Path(alias.removeprefix(MARK).strip()) for alias in aliases if alias.startswith(f"{MARK} ")}
    with suppress(OSError):
        marked.update(entry for entry in places.run_dir.iterdir() if entry.is_dir())
    return {Places(run_dir=run_dir).device() for run_dir in marked}


async def _empty(target: Target, mark: str, device: str | None, done: Removal) -> None:
    try:
        found = ours(await target.snapshot(State.EMPTY), State.EMPTY, mark, device)
        refusals = await target.apply(order(diff(State.EMPTY, found)))
        left = ours(await target.snapshot(State.EMPTY), State.EMPTY, mark, device)
    except FlannelError as error:
        done.problems.append(error.in_full)
        return
    done.removed.extend(in_lines(item for item in found if item.key not in left.by_key))
    done.problems.extend(sentences(refusal.cause, refusal.hint) for refusal in refusals)
    if not refusals:
        done.problems.extend(f"{line} is still there" for line in in_lines(left))


async def _remove_next_hops(protocol: int, done: Removal) -> None:
    """Remove the next hops of routes that another program deleted. We remove ours with their routes."""
    try:
        if count := await remove_next_hops(protocol):
            done.removed.append(f"{count} next hop{'' if count == 1 else 's'} without a route")
    except FlannelError as error:
        done.problems.append(error.in_full)


async def _remove_originals(linux: LinuxTarget, membership: Membership, done: Removal) -> None:
    """Remove what an original flannel left; one that runs still uses it."""
    try:
        found = left_by_original(await survey(), membership)
        if found and (pid := find_original()) is not None:
            done.kept.extend(f"{line} of the flanneld with pid {pid}, which runs" for line in in_lines(found))
            return
        refusals = await linux.apply(order(diff(State.EMPTY, found)))
    except FlannelError as error:
        done.problems.append(error.in_full)
        return
    refused = {refusal.operation for refusal in refusals}
    gone = [item for item in found if Remove(item) not in refused]
    done.removed.extend(f"{line}, which the original flannel left" for line in in_lines(gone))
    done.problems.extend(sentences(refusal.cause, refusal.hint) for refusal in refusals)


async def _remove_rules(left: Iterable[LeftRules], done: Removal, takes_doubtful: bool) -> None:
    """Remove the rules that an original left; those that it may have left only where that was asked for."""
    pid = find_original()
    for one in left:
        if pid is not None:
            done.kept.extend(f"{line}; of the flanneld with pid {pid}, which runs" for line in one.shown)
        elif not one.is_sure and not takes_doubtful:
            done.kept.extend(
                f"{line}; the original's or anybody's, goes with --doubtful-rules" for line in one.shown
            )
        else:
            try:
                await remove_rules(one)
            except FlannelError as error:
                done.problems.append(error.in_full)
            else:
                done.removed.extend(f"{line}, which the original flannel left" for line in one.shown)


def in_lines(items: Iterable[Item]) -> Iterator[str]:
    """Yield what the items are called, a line each; of a kind of which there are many, how many."""
    found = list(items)
    counts = Counter(type(item) for item in found)
    yield from (item.title for item in found if counts[type(item)] <= _NAMED)
    for kind, count in counts.items():
        if count > _NAMED:
            yield f"{count} {kind.PLURAL}"


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
    membership = await membership_of(places, status)
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
        removal = await remove_objects(places, membership, doubtful_rules=cleanup.doubtful_rules)
        report.removed.extend(removal.removed)
        report.kept.extend(removal.kept)
        report.problems.extend(removal.problems)
        _remove_files(
            report,
            places.subnet_file,
            places.subnet_file.with_name(f".{places.subnet_file.name}"),  # an original was killed writing it
            places.device_file,
            places.run_identity,
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
        report.problems.append(f"the lease was not deleted: {error.in_full}")
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
    return lease if lease.attributes.owner == owner else None


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
