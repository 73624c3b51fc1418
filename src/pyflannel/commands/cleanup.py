"""cleanup: removes flannel from this host: processes, kernel objects, files, the lease."""

import asyncio
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from msgspec import Struct, field

from pyflannel.assembly.directories import DOCKER_SOCKET, Places
from pyflannel.assembly.options import kubernetes_from_environment
from pyflannel.assembly.store_flags import etcd_password_of, store_url_from_environment
from pyflannel.assembly.stores import KubernetesAddress, open_store, parse_store_url
from pyflannel.commands.local_daemon import running_daemon, stop_daemon
from pyflannel.commands.membership import known_networks, memberships_of, status_of_host
from pyflannel.commands.network_client import READ_S, is_missing
from pyflannel.errors import BusyError, FlannelError, WireError, sentences
from pyflannel.http.sockets import server_pid
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.pins import remove_pin_directory
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget, read_rules, remove_rules
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.kernel.host.files import read_end
from pyflannel.kernel.host.locks import DeviceClaim, RunLock
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.kernel.network.container_links import KernelContainerLinks
from pyflannel.kernel.network.linux import LinuxTarget, remove_next_hops
from pyflannel.kernel.network.snapshot import survey
from pyflannel.kernel.wireguard.target import WireguardTarget
from pyflannel.model.item import Item, Key
from pyflannel.model.lease import Lease
from pyflannel.model.link import MARK, Link
from pyflannel.model.packet_filter import FIRST_DEVICE, LeftRules
from pyflannel.model.route import DEVICES, Route, route_protocol
from pyflannel.model.state import Remove, State
from pyflannel.model.status import Membership, Status
from pyflannel.model.store_record import Conflict, Delete, Record, Written
from pyflannel.model.wireguard import LOG_NAME as WIREGUARD_LOG_NAME
from pyflannel.plan.diff import diff, order
from pyflannel.plan.leftovers import left_by_original, rules_left
from pyflannel.plan.ownership import ours
from pyflannel.plan.routes import fences_in_use
from pyflannel.ports import Store, Target
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.found import find_original
from pyflannel.processes.systemd import service_of
from pyflannel.processes.wireguard_go import WireguardGo
from pyflannel.wire.docker_plugin import parse_state
from pyflannel.wire.forwarder_control import LOG_NAME, SOCKET_NAME
from pyflannel.wire.lease_record import SUBNETS, lease_of

_NAMED = 8
"""Maximum number of objects of one kind that are listed individually. Further objects are only counted."""


class Removal(Struct, frozen=True):
    """Lines for people about removed objects, deliberately kept objects, and failures."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def remove_objects(
    places: Places,
    memberships: Sequence[Membership],
    *,
    doubtful_rules: bool = False,
    is_preview: bool = False,
) -> Removal:
    """Remove the forwarder, pyflannel's kernel objects and, for the default daemon, the objects of the
    original.

    The targets are emptied one after the other, so that the failure of one target does not affect the others.
    flanneld must not run.

    Args:
        places: the paths of the daemon.
        memberships: the network of this host, in each family.
        doubtful_rules: also remove filter rules that may belong to the original or to another program.
        is_preview: list the objects that would be removed, and change nothing.
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
        filters, wireguard_go = (
            (IptablesTarget(), NftTarget(), TunnelGuardTarget()),
            WireguardGo(places.run_dir),
        )
        for adapter in (forwarder, fast_path, wireguard_go, *filters):
            await enter(adapter)
        wireguard = WireguardTarget(lambda _: None, wireguard_go)
        if not is_preview:
            unreachable = await forwarder.end_unreachable()
            done.removed.extend(f"forwarder (pid {pid}), which did not respond" for pid in unreachable)
        await _remove_container_links(places, done, is_preview)
        await _empty(fast_path, places.mark, device, done, is_preview)
        try:
            async with asyncio.timeout(_PREVIEW_S if is_preview else None):
                await _empty(forwarder, places.mark, device, done, is_preview)
        except TimeoutError:
            done.problems.append(f"the forwarder did not respond within {_PREVIEW_S:g} s")
        for target in (wireguard, *filters):
            await _empty(target, places.mark, device, done, is_preview)
        await _empty(linux, places.mark, device, done, is_preview, await _fences(places, done))
        if device is not None and not is_preview:
            await _remove_next_hops(route_protocol(device), done)
        if places.mark == MARK:
            await _remove_originals(linux, memberships, done, is_preview)
            left = rules_left(await read_rules(), known_networks(places, *memberships))
            await _remove_rules(left, done, doubtful_rules, is_preview)
    return done


_PREVIEW_S = 0.7
"""Deadline for the forwarder in a preview, which must end within 5 s."""


def claimed_name(places: Places, found: Iterable[Item]) -> str | None:
    """Return the device name that the daemon claimed; None if unknown. This name identifies the routes and
    rules of the daemon.

    If no file and no link records the name, the default daemon has flannel0, unless another daemon has this
    name.
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
    """Return the recorded device names of other daemons with links in this network namespace, and of the
    networks of the same daemon.
    """
    marked = {Path(alias.removeprefix(MARK).strip()) for alias in aliases if alias.startswith(f"{MARK} ")}
    with suppress(OSError):
        marked.update(entry for entry in places.run_dir.iterdir() if entry.is_dir())
    return {Places(run_dir=run_dir).device() for run_dir in marked}


async def _fences(places: Places, done: Removal) -> list[Key]:
    """Return the keys of the routes that must be kept, because they drop packets of running containers that
    would otherwise leave the host unencrypted.
    """
    try:
        found = await survey()
    except FlannelError:
        return []  # the target reports the failure
    links = {item.name for item in found if isinstance(item, Link) and item.alias == places.mark}
    fences = fences_in_use([item for item in found if isinstance(item, Route)], links)
    done.kept.extend(
        f"{fence.title}, because containers of this host would otherwise send unencrypted packets. Remove"
        f" the containers and their bridge, then run `ip route delete {fence.kind} {fence.destination} metric"
        f" {fence.metric}`"
        for fence in fences
    )
    return [fence.key for fence in fences]


async def _empty(
    target: Target,
    mark: str,
    device: str | None,
    done: Removal,
    is_preview: bool,
    kept: Collection[Key] = (),
) -> None:
    try:
        found = ours(await target.snapshot(State.EMPTY), State.EMPTY, mark, device).without(kept)
        if is_preview:
            done.removed.extend(in_lines(found))
            return
        refusals = await target.apply(order(diff(State.EMPTY, found), State.EMPTY))
        left = ours(await target.snapshot(State.EMPTY), State.EMPTY, mark, device).without(kept)
    except FlannelError as error:
        done.problems.append(error.in_full)
        return
    done.removed.extend(in_lines(item for item in found if item.key not in left.by_key))
    done.problems.extend(sentences(refusal.cause, refusal.hint) for refusal in refusals)
    if not refusals:
        done.problems.extend(f"{line} still exists" for line in in_lines(left))


async def _remove_next_hops(protocol: int, done: Removal) -> None:
    """Remove next-hop objects whose routes another program deleted."""
    try:
        if count := await remove_next_hops(protocol):
            done.removed.append(f"{count} next hop{'' if count == 1 else 's'} without a route")
    except FlannelError as error:
        done.problems.append(error.in_full)


async def _remove_container_links(places: Places, done: Removal, is_preview: bool) -> None:
    """Remove the links of Docker's containers to their bridges, which the file of the plugin lists."""
    try:
        state = parse_state(read_end(places.docker))
    except (OSError, WireError):
        return
    async with KernelContainerLinks() as links:
        for endpoint in state.endpoints.values():
            try:
                if not is_preview:
                    await links.disconnect(endpoint)
            except FlannelError as error:
                done.problems.append(error.in_full)
            else:
                done.removed.append(f"link {endpoint.link} of a container of Docker")
    if state.networks:
        done.kept.append(
            f"Docker's {len(state.networks)} networks with the driver flannel, which no container can use;"
            " `docker network rm` removes them while flanneld runs with --docker-plugin"
        )


async def _remove_originals(
    linux: LinuxTarget, memberships: Sequence[Membership], done: Removal, is_preview: bool
) -> None:
    """Remove objects that the original flannel left, unless an original flanneld runs and uses them."""
    try:
        items = await survey()
        found = State.collect(item for one in memberships for item in left_by_original(items, one))
        if found and (pid := find_original()) is not None:
            done.kept.extend(
                f"{line} (in use by the original flanneld, pid {pid})" for line in in_lines(found)
            )
            return
        refusals = [] if is_preview else await linux.apply(order(diff(State.EMPTY, found), State.EMPTY))
    except FlannelError as error:
        done.problems.append(error.in_full)
        return
    refused = {refusal.operation for refusal in refusals}
    gone = [item for item in found if Remove(item) not in refused]
    done.removed.extend(f"{line} (left by the original flannel)" for line in in_lines(gone))
    done.problems.extend(sentences(refusal.cause, refusal.hint) for refusal in refusals)


async def _remove_rules(
    left: Iterable[LeftRules], done: Removal, takes_doubtful: bool, is_preview: bool
) -> None:
    """Remove the rules that the original left, and doubtful rules only if `takes_doubtful`."""
    pid = find_original()
    for one in left:
        if pid is not None:
            done.kept.extend(f"{line} (in use by the original flanneld, pid {pid})" for line in one.shown)
        elif not one.is_sure and not takes_doubtful:
            done.kept.extend(
                f"{line} (may belong to another program; --doubtful-rules removes it)" for line in one.shown
            )
        else:
            try:
                if not is_preview:
                    await remove_rules(one)
            except FlannelError as error:
                done.problems.append(error.in_full)
            else:
                done.removed.extend(f"{line} (left by the original flannel)" for line in one.shown)


def in_lines(items: Iterable[Item]) -> Iterator[str]:
    """Yield the titles of the items, one line each; for a kind with many items, only their number."""
    found = list(items)
    counts = Counter(type(item) for item in found)
    yield from (item.title for item in found if counts[type(item)] <= _NAMED)
    for kind, count in counts.items():
        if count > _NAMED:
            yield f"{count} {kind.PLURAL}"


class CleanupReport(Struct, frozen=True):
    """Lines for people about removed objects, deliberately kept objects, and failures."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Cleanup(Struct, frozen=True, kw_only=True):
    """The options of a cleanup.

    Attributes:
        store_url: URL of the store with the lease; None for the store of the running daemon, or otherwise the
            store of the environment. For one of several networks, the URL may omit the network.
        node_id: identity of the host, if the daemon runs with --node-id.
        doubtful_rules: also remove filter rules that may belong to the original or to another program.
        keep_lease: keep the lease and the identity, so that another program can take over the subnet.
    """

    places: Places
    store_url: str | None = None
    node_id: str | None = None
    keep_lease: bool = False
    doubtful_rules: bool = False


async def clean_up(cleanup: Cleanup, environ: Mapping[str, str]) -> CleanupReport:
    """Restore the state that the host had before flannel. A failure of one step is reported, and does not
    stop the cleanup.

    Raises:
        BusyError: the daemon does not exit, or another daemon starts.
        TargetError: the user has no permission to stop the daemon, or to write to its run directory.
        UsageError: the daemon runs in another network namespace.
    """
    report = CleanupReport()
    places = cleanup.places
    status = await status_of_host(places)
    memberships = await memberships_of(places, status)
    store_url = status.store.url if status.store else None
    running = running_daemon(places.lock)
    unit = None if running is None else service_of(running)
    pid = await stop_daemon(places.lock)
    if pid is not None:
        report.removed.append(f"flanneld (pid {pid})")
    if unit is not None:
        report.kept.append(
            f"unit {unit}: if it is enabled, run `systemctl disable {unit}` before the next boot"
        )
    run_dir_existed = places.run_dir.exists()  # checked before RunLock creates the directory
    with RunLock(str(places.lock), "flannelctl cleanup"):  # prevents the start of a daemon
        owner = await owner_of(cleanup, status)
        removal = await remove_objects(places, memberships, doubtful_rules=cleanup.doubtful_rules)
        report.removed.extend(removal.removed)
        report.kept.extend(removal.kept)
        report.problems.extend(removal.problems)
        _remove_files(report, *_run_files(places, report), *_dead_docker_socket(places))
        _remove_pins(report, places.bpf)
        if cleanup.keep_lease:
            report.kept.append("the lease, and the identity of this host")
        elif owner is None or await _release(
            cleanup.store_url or store_url, places.network, owner, environ, report
        ):
            _remove_files(report, *_state_files(places))
    if not cleanup.keep_lease:
        _remove_directory(places.state_dir, report)
    _remove_directory(places.run_dir, report if run_dir_existed else CleanupReport())
    return report


async def preview(cleanup: Cleanup, environ: Mapping[str, str]) -> CleanupReport:
    """Return the report that `clean_up` would return, as far as it is predictable. Change nothing."""
    report = CleanupReport()
    places = cleanup.places
    status = await status_of_host(places)
    if (pid := running_daemon(places.lock)) is not None:
        report.removed.append(f"flanneld (pid {pid})")
    memberships = await memberships_of(places, status)
    removal = await remove_objects(
        places, memberships, doubtful_rules=cleanup.doubtful_rules, is_preview=True
    )
    report.removed.extend(removal.removed)
    report.kept.extend(removal.kept)
    report.problems.extend(removal.problems)
    files = (*_run_files(places, report), *_dead_docker_socket(places))
    if not cleanup.keep_lease:
        files += _state_files(places)
    report.removed.extend(f"file {path}" for path in files if os.path.lexists(path))
    if places.bpf.exists():
        report.removed.append(f"directory {places.bpf}")
    if cleanup.keep_lease:
        report.kept.append("the lease, and the identity of this host")
    elif (owner := await owner_of(cleanup, status)) is not None:
        store_url = cleanup.store_url or (status.store.url if status.store else None)
        await _release(store_url, places.network, owner, environ, report, is_preview=True)
    return report


async def owner_of(cleanup: Cleanup, status: Status) -> str | None:
    """Return the identity of this host. In a container without state directory, the tunnel device contains
    the identity.
    """
    if owner := cleanup.node_id or status.owner:
        return owner
    with suppress(FlannelError):  # `remove_objects` reports the failure
        links = [item for item in await survey() if isinstance(item, Link)]
        owners = {link.owner for link in links if link.owner and link.alias == cleanup.places.mark}
        return owners.pop() if len(owners) == 1 else None
    return None


def _run_files(places: Places, report: CleanupReport) -> tuple[Path, ...]:
    """Return the files to remove from the run directory; report the files that a running original flannel
    uses.
    """
    subnet_files = (
        places.subnet_file,
        # temporary file of an original that was killed during a write
        places.subnet_file.with_name(f".{places.subnet_file.name}"),
    )
    files = (
        places.device_file,
        places.run_identity,
        places.control_socket,
        places.run_dir / SOCKET_NAME,
        places.run_dir / LOG_NAME,
        places.run_dir / WIREGUARD_LOG_NAME,
    )
    if places.mark != MARK or (pid := find_original()) is None:
        return *subnet_files, *files
    report.kept.extend(
        f"file {path} (in use by the original flanneld, pid {pid})"
        for path in subnet_files
        if os.path.lexists(path)
    )
    return files


def _dead_docker_socket(places: Places) -> tuple[Path, ...]:
    """Return the default socket of Docker's network plugin if a killed flanneld did not remove it.

    Docker would try to connect to a socket without a server for 15 seconds.
    """
    is_left = places.docker.exists() and DOCKER_SOCKET.is_socket() and server_pid(DOCKER_SOCKET) is None
    return (DOCKER_SOCKET,) if is_left else ()


def _state_files(places: Places) -> tuple[Path, ...]:
    wireguard = places.wireguard_key, places.next_wireguard_key
    own = places.identity, places.docker, places.last_known, places.spoilt_identity, places.prefix_file
    signing = places.lease_key, places.lease_counters, places.allow_list
    return (*wireguard, *signing, *own)


async def _release(
    store_url: str | None,
    network: str | None,
    owner: str,
    environ: Mapping[str, str],
    report: CleanupReport,
    *,
    is_preview: bool = False,
) -> bool:
    """Delete the leases of `owner` from the store, or the lease in its Node; return whether no lease of
    `owner` remains.
    """
    try:
        if (cluster := kubernetes_from_environment(environ)) is not None and cluster.node is not None:
            if not is_preview:
                await cluster.release(cluster.node, BoottimeClock())
            report.removed.append(f"annotations of Node {cluster.node}, whose network is unavailable now")
            return True
        url = store_url or store_url_from_environment(environ)
        if network is not None and "#" not in url:
            url = f"{url}#{network}"
        if is_missing(url):
            return True
        if isinstance(parse_store_url(url).store, KubernetesAddress):
            report.kept.append(
                "annotations of the Node, which the next flanneld on this host replaces; `flannelctl cleanup`"
                " with the environment of flanneld removes them (FLANNELD_KUBE_SUBNET_MGR, NODE_NAME)"
            )
            return True
        answer_s = READ_S if is_preview else None
        store = open_store(url, etcd_password_of(environ), answer_s=answer_s)
        try:
            listing = await store.list(SUBNETS)
            leases = [(record, lease) for record in listing.records if (lease := _lease_of(record, owner))]
            return all([await _delete(store, record, lease, report, is_preview) for record, lease in leases])
        finally:
            await store.close()
    except FlannelError as error:
        report.problems.append(f"could not delete the lease: {error.in_full}")
        return False


async def _delete(
    store: Store, record: Record, lease: Lease, report: CleanupReport, is_preview: bool
) -> bool:
    if not lease.has_ttl:
        report.kept.append(f"reservation of {lease.subnet}, which an operator made")
        return True
    if is_preview:
        report.removed.append(f"lease {lease.subnet}")
        return True
    match await store.write(Delete(key=record.key, expected=record.revision)):
        case Written():
            report.removed.append(f"lease {lease.subnet}")
        case Conflict(None):
            pass  # the lease has expired
        case Conflict():
            report.problems.append(
                f"lease {lease.subnet} was changed during the cleanup, perhaps by another flanneld"
            )
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
        # The temporary file of a killed process counts as a file of pyflannel.
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
    """Remove a directory unless it contains files of other programs."""
    try:
        path.rmdir()
        report.removed.append(f"directory {path}")
    except FileNotFoundError:
        pass
    except OSError:
        others = ", ".join(sorted(entry.name for entry in path.glob("*")))
        report.kept.append(f"directory {path}, which contains other files: {others}")
