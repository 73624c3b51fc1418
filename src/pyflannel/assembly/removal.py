"""Kernel objects and processes of flannel taken off this host: ours, and what the original left."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import assert_never

from pyflannel.assembly.footing import known_networks
from pyflannel.assembly.places import Places
from pyflannel.engine.targets import Targets
from pyflannel.errors import BusyError, FlannelError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.saved_rules import read_rules, remove_rules
from pyflannel.kernel.host.device_claim import DeviceClaim
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.kernel.network.stray_next_hops import remove_next_hops
from pyflannel.kernel.network.survey import survey
from pyflannel.model.address import Address
from pyflannel.model.bpf_container import BpfContainer
from pyflannel.model.bpf_peer import BpfPeer
from pyflannel.model.bpf_program import BpfProgram
from pyflannel.model.fdb_entry import FdbEntry
from pyflannel.model.filter_name import FIRST_DEVICE
from pyflannel.model.footing import Footing
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host_file import HostFile
from pyflannel.model.iptables_chain import IptablesChain
from pyflannel.model.link import MARK, Link
from pyflannel.model.neighbour import Neighbour
from pyflannel.model.nft_table import NftTable
from pyflannel.model.operation import Remove
from pyflannel.model.route import Route
from pyflannel.model.route_protocol import DEVICES, route_protocol
from pyflannel.model.saved_rules import LeftRules
from pyflannel.model.state import Item, State
from pyflannel.plan.describe import name
from pyflannel.plan.diff import diff
from pyflannel.plan.left_rules import rules_left
from pyflannel.plan.leftovers import left_by_original
from pyflannel.plan.order import order
from pyflannel.plan.ownership import ours
from pyflannel.ports.target import Target
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.holders import find_original

_NAMED = 8
"""So many of one kind are named one by one."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What became of it, in lines for people: taken away, left on purpose, left because something failed."""

    removed: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


async def remove_objects(places: Places, footing: Footing, *, doubtful_rules: bool = False) -> Removal:
    """Remove the forwarder, every kernel object of ours, and, for the usual daemon, what the original left.

    One after the other, so that one that does not answer hides nothing of the rest. No daemon may run. Filter
    rules that may be the original's or anybody's go where `doubtful_rules` says so.
    """
    done = Removal()
    with ExitStack() as opened:
        try:
            linux = LinuxTarget()
            opened.callback(linux.close)
            device = claimed_name(places, await survey())
        except FlannelError as error:
            done.problems.append(f"{error}. {error.hint}")
            return done
        forwarder, iptables, nftables = ForwarderTarget(places.run_dir), IptablesTarget(), NftTarget()
        fast_path = BpfTarget(FastPath(str(places.bpf)))
        opened.callback(fast_path.close)
        opened.callback(iptables.close)
        opened.callback(nftables.close)
        unreachable = await forwarder.end_unreachable()
        done.removed.extend(f"forwarder (pid {pid}), which answered nobody" for pid in unreachable)
        for target in (
            fast_path,
            Targets({Forwarder: forwarder, ForwarderPeer: forwarder}),
            Targets({IptablesChain: iptables, NftTable: nftables}),
            Targets(dict.fromkeys((Link, Address, Neighbour, FdbEntry, Route), linux)),
        ):
            await _empty(target, places.mark, device, done)
        if device is not None:
            await _remove_next_hops(route_protocol(device), done)
        if places.mark == MARK:
            await _remove_originals(linux, footing, done)
            networks = known_networks(places, footing)
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
        done.problems.append(f"{error}. {error.hint}")
        return
    done.removed.extend(in_lines(item for item in found if item.key not in left.by_key))
    done.problems.extend(f"{refusal.cause}. {refusal.hint}" for refusal in refusals)
    if not refusals:
        done.problems.extend(f"{line} is still there" for line in in_lines(left))


async def _remove_next_hops(protocol: int, done: Removal) -> None:
    """Remove the next hops of routes that somebody deleted; those of ours went with them."""
    try:
        if count := await remove_next_hops(protocol):
            done.removed.append(f"{count} next hop{'' if count == 1 else 's'} without a route")
    except FlannelError as error:
        done.problems.append(f"{error}. {error.hint}")


async def _remove_originals(linux: LinuxTarget, footing: Footing, done: Removal) -> None:
    """Remove what an original flannel left; one that runs still uses it."""
    try:
        found = left_by_original(await survey(), footing)
        if found and (pid := find_original()) is not None:
            done.kept.extend(f"{line} of the flanneld with pid {pid}, which runs" for line in in_lines(found))
            return
        refusals = await linux.apply(order(diff(State.EMPTY, found)))
    except FlannelError as error:
        done.problems.append(f"{error}. {error.hint}")
        return
    refused = {refusal.operation for refusal in refusals}
    gone = [item for item in found if Remove(item) not in refused]
    done.removed.extend(f"{line}, which the original flannel left" for line in in_lines(gone))
    done.problems.extend(f"{refusal.cause}. {refusal.hint}" for refusal in refusals)


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
                done.problems.append(f"{error}. {error.hint}")
            else:
                done.removed.extend(f"{line}, which the original flannel left" for line in one.shown)


def in_lines(items: Iterable[Item]) -> Iterator[str]:
    """Yield what the items are called, a line each; of a kind of which there are many, how many."""
    found = list(items)
    counts = Counter(type(item) for item in found)
    yield from (name(item) for item in found if counts[type(item)] <= _NAMED)
    for kind, count in counts.items():
        if count > _NAMED:
            yield f"{count} {_plural(next(item for item in found if type(item) is kind))}"


def _plural(item: Item) -> str:
    match item:
        case Link():
            return "links"
        case Address():
            return "addresses"
        case Neighbour():
            return "neighbours"
        case FdbEntry():
            return "FDB entries"
        case Route():
            return "routes"
        case Forwarder():
            return "forwarders"
        case ForwarderPeer():
            return "peers of the forwarder"
        case BpfProgram():
            return "programs"
        case BpfPeer():
            return "peers of the fast path"
        case BpfContainer():
            return "containers of the fast path"
        case IptablesChain():
            return "iptables chains"
        case NftTable():
            return "nftables tables"
        case HostFile():
            return "files"
        case _:
            assert_never(item)
