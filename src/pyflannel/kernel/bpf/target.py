"""The Target of the fast path: programs at hooks, and the entries of their maps."""

import asyncio
import errno
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Self

from msgspec.structs import replace

from pyflannel.errors import TargetError, target_errors
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.hooks import Hooks
from pyflannel.kernel.bpf.layout import CACHES_TCP, CACHES_UDP, Outcome, Permit, Sender
from pyflannel.kernel.filters.flow_permit import FlowRules, in_brief
from pyflannel.kernel.network.device_ioctls import link_index
from pyflannel.kernel.network.requests import refusal_of
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Direction, Feature
from pyflannel.model.forwarder import Stranger
from pyflannel.model.item import Item
from pyflannel.model.lease import Lease
from pyflannel.model.state import Operation, Refusal, Remove, Replace, State
from pyflannel.model.status import Notice
from pyflannel.ports import Announce, ChangeChannel, performed, refused_by

Place = tuple[str, Direction]
"""A hook: the name of its link, and the direction of the packets."""

_Look = tuple[int, tuple[int, ...]]
"""The index of a link, and the identifiers of its programs; 0 and no identifiers if the link does not
exist."""

_NOTHING: _Look = (0, ())


class HookWatch:
    """Remembers the programs at hooks, and detects changes by other programs."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._seen: dict[Place, _Look] = {}

    async def remember(self, places: Iterable[Place]) -> None:
        """Watch these hooks from now on, and no others."""
        self._seen = {place: await self._look(place) for place in places}

    async def note(self, place: Place) -> None:
        """Record a change by this process, so that it does not cause a notification."""
        self._seen[place] = await self._look(place)

    async def has_changed(self) -> bool:
        """Return whether a hook differs from the previous call, and remember its current programs."""
        before = self._seen
        await self.remember(before)
        return self._seen != before

    async def _look(self, place: Place) -> _Look:
        link, direction = place
        try:
            index = link_index(link)
            return index, await self._hooks.programs(index, direction)
        except OSError:
            return _NOTHING


LOOK_S = 0.5
"""Interval in seconds between checks of the hooks, because the kernel does not announce a detached program.
Each check is one system call."""

RENEW_S = 0.3
"""Interval in seconds between renewals of a permit."""

PERMIT_NS = 1_000_000_000

_SEE_DMESG = "Look at the kernel's log (dmesg) for the reason."
_RIGHTS = (
    "Run flanneld as root, or give it CAP_BPF and CAP_NET_ADMIN, and a bpffs at `.bpf` in its run directory."
)
_HINTS = {
    errno.EPERM: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.ENOSYS: "This kernel has no eBPF (CONFIG_BPF_SYSCALL).",
}


class BpfTarget:
    """A Target for BpfProgram, BpfPeer and BpfContainer items.

    If programs and maps are permanently unreadable, a scan finds nothing, and each operation is refused with
    the reason. Packets then pass through user space.
    """

    kinds = (BpfProgram, BpfPeer, BpfContainer)

    def __init__(
        self, fast_path: FastPath, look_s: float = LOOK_S, flow_rules: FlowRules | None = None
    ) -> None:
        self._fast_path = fast_path
        self._flow_rules = flow_rules or FlowRules()
        self._caching: tuple[BpfProgram, ...] = ()
        self._caches = asyncio.Event()
        self._not_cached: tuple[str, ...] = ()
        self._watch = HookWatch(fast_path.hooks)
        self._look_s = look_s
        self._has_places = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close all descriptors. Programs and maps remain in the kernel."""
        self._flow_rules.close()
        self._fast_path.close()

    async def snapshot(self, desired: State) -> State:
        """Return all programs of pyflannel, and the entries of the tunnels of the plan."""
        programs = list(desired.of_type(BpfProgram))
        planned: list[BpfProgram | BpfPeer | BpfContainer] = [
            *programs,
            *desired.of_type(BpfPeer),
            *desired.of_type(BpfContainer),
        ]
        places = {_place(item) for item in programs}
        if places:
            self._has_places.set()
        else:
            self._has_places.clear()
        self._caching = tuple(item for item in programs if item.tunnel.caches_flows)
        if self._caching:
            self._caches.set()
        else:
            self._caches.clear()
            self._not_cached = ()
        try:
            with target_errors("eBPF programs and maps cannot be read", hint=_SEE_DMESG):
                await self._watch.remember(places)
                return State.collect(await self._fast_path.read(planned))
        except TargetError as error:
            if not error.is_permanent:
                raise
            return State.EMPTY

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in order. Consecutive operations on peers form one batch."""
        return await performed(operations, self._apply(operations))

    async def _apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        for (is_peer, device, is_removal), run in groupby(operations, _batch):
            if is_peer:
                refusals += await self._change_peers(device, list(run), is_removal)
            else:
                refusals += [refused for one in run if (refused := await self._change(one)) is not None]
        return refusals

    def changes(self) -> ChangeChannel:
        """Open a channel that sends a notification for a hook of the plan if its programs changed since
        the last scan.
        """
        return ChangeChannel(self._read_changes, self._renew_permits)

    async def _read_changes(self, announce: Announce) -> None:
        while True:
            await self._has_places.wait()
            await asyncio.sleep(self._look_s)
            if await self._watch.has_changed():
                announce()

    async def _renew_permits(self, announce: Announce) -> None:
        """Permit the programs to cache flows, as long as the firewall decides only by the flow.

        A permit ends one second after the firewall was read, even if this process no longer runs. Therefore a
        decision of a previous ruleset is valid for at most one more second.
        """
        while True:
            await self._caches.wait()
            reasons = await self.renew()
            if reasons != self._not_cached:
                self._not_cached = reasons
                announce()  # the status then shows these refusals
            await asyncio.sleep(RENEW_S)

    async def renew(self) -> tuple[str, ...]:
        """Renew the permits; return the reason why flows, or TCP flows, do not bypass the firewall."""
        firewall = await self._flow_rules.look()
        try:
            link = await self._fast_path.foreign_hook(self._caching, firewall.filtered_links)
        except (OSError, TargetError) as error:
            return (f"the programs at the links cannot be read: {error}",)
        objections = firewall.objections
        if link is not None:
            objections = (*objections, f"{link} has a program or a filter of tc")
        protocols = 0 if objections else CACHES_UDP | (0 if firewall.tcp_objection else CACHES_TCP)
        permit = Permit(
            until_ns=firewall.read_at_ns + PERMIT_NS if protocols else 0,
            generation=firewall.generation,
            protocols=protocols,
        )
        try:
            for device in {item.tunnel.device for item in self._caching}:
                self._fast_path.put_permit(device, permit, firewall.direct_links if protocols else ())
        except OSError as error:
            return (f"the permit cannot be written: {error}",)
        if objections:
            return in_brief(objections)
        return (firewall.tcp_objection,) if firewall.tcp_objection else ()

    def counts(self, device: str) -> Mapping[Outcome, tuple[int, int]]:
        """Return packets and bytes by outcome of a tunnel; empty without a fast path.

        Raises:
            OSError: the maps cannot be read.
        """
        return self._fast_path.counts(device)

    async def received(self, device: str) -> Mapping[Sender, int]:
        """Return the bytes of the datagrams that the programs of a tunnel decapsulated, by sender.

        Raises:
            OSError: the maps cannot be read.
        """
        return await self._fast_path.received(device)

    def received_bytes(self, device: str, own: Lease, peer: Lease) -> int | None:
        """Return the bytes of the datagrams from a peer that the programs of a tunnel decapsulated; 0 without
        programs. None if the programs cannot distinguish the peer, because the subnets of both hosts have
        different lengths.

        Raises:
            TargetError: the maps cannot be read.
        """
        if peer.subnet.version == 6:
            return 0
        if own.subnet.prefixlen != peer.subnet.prefixlen:
            return None
        subnet, address = peer.ipv4
        with target_errors("eBPF maps cannot be read", hint=_SEE_DMESG):
            return self._fast_path.received_from(device, (address, subnet.network_address))

    def strangers(self, device: str) -> Sequence[Stranger]:
        """Return the senders whose packets the guard of a tunnel dropped; an empty list without a fast path.

        Raises:
            OSError: the maps cannot be read.
        """
        return self._fast_path.strangers(device)

    def features(self) -> tuple[Feature, ...]:
        """Return the features that the fast path uses, probed again."""
        return self._fast_path.features()

    def notices(self, device: str) -> tuple[Notice, ...]:
        """Return the problems of a tunnel that no repair can end, according to the latest scan."""
        return self._fast_path.notices(device)

    def uncached(self) -> tuple[str, ...]:
        """Return the reason why packets of flows do not bypass the firewall, according to the latest
        renewal.
        """
        return self._not_cached

    async def _change_peers(
        self, device: str, operations: Sequence[Operation], is_removal: bool
    ) -> list[Refusal]:
        peers = [peer for one in operations if isinstance(peer := _item(one), BpfPeer)]
        try:
            if is_removal:
                refused = await self._fast_path.remove_peers(device, [peer.subnet for peer in peers])
            else:
                refused = await self._fast_path.put_peers(device, peers)
        except (OSError, TargetError) as error:
            return [_refusal(operation, error) for operation in operations]
        return [_refusal(operations[place], error) for place, error in refused.items()]

    async def _change(self, operation: Operation) -> Refusal | None:
        item, is_removal = _item(operation), isinstance(operation, Remove)
        try:
            match item:
                case BpfProgram():
                    await (self._fast_path.detach(item) if is_removal else self._fast_path.attach(item))
                    await self._watch.note(_place(item))
                case BpfContainer() if is_removal:
                    await self._fast_path.remove_container(item)
                case BpfContainer():
                    await self._fast_path.put_container(item)
                case _:
                    raise TypeError(f"not an operation on the fast path: {operation!r}")
        except (OSError, TargetError) as error:
            return _refusal(operation, error)
        return None


def _item(operation: Operation) -> Item:
    return operation.new if isinstance(operation, Replace) else operation.item


def _batch(operation: Operation) -> tuple[bool, str, bool]:
    """Return the common properties of the operations in one batch: kind, tunnel, addition or removal."""
    item = _item(operation)
    return isinstance(item, BpfPeer), _device(item), isinstance(operation, Remove)


def _device(item: Item) -> str:
    match item:
        case BpfProgram():
            return item.tunnel.device
        case BpfPeer() | BpfContainer():
            return item.device
        case _:
            raise TypeError(f"not an item of the fast path: {item!r}")


def _place(item: BpfProgram) -> Place:
    return item.link, item.role.direction


def _refusal(operation: Operation, error: OSError | TargetError) -> Refusal:
    if isinstance(error, TargetError):
        return refused_by(operation, error)
    refused = refusal_of(operation, error)
    return replace(refused, hint=_HINTS.get(error.errno or 0, refused.hint))
