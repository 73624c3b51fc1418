"""The Target that is the kernel's fast path: programs at hooks, and the entries of their maps."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.attaching import Attacher
from pyflannel.kernel.bpf.hooks import Hooks
from pyflannel.kernel.bpf.layout import SHARED, Outcome
from pyflannel.kernel.bpf.libbpf import Libbpf
from pyflannel.kernel.bpf.maps import TunnelMaps
from pyflannel.kernel.bpf.object_file import ObjectFile
from pyflannel.kernel.bpf.standing import Standing, StandingPrograms, describe, shared_maps
from pyflannel.kernel.bpf.watching import HookWatch, Place
from pyflannel.kernel.refusals import refusal_of
from pyflannel.model.bpf_container import BpfContainer
from pyflannel.model.bpf_peer import BpfPeer
from pyflannel.model.bpf_program import BpfProgram
from pyflannel.model.operation import Operation, Refusal, Remove, Replace
from pyflannel.model.state import Item, State

LOOK_S = 0.5
"""The kernel announces no program that goes. So often the hooks are looked at: a system call for each."""

_RIGHTS = (
    "Run it as root, or give it CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN; packets go through user space."
)
_FULL = "The map is full: packets to what has no entry go through user space."
_HINTS = {errno.EPERM: _RIGHTS, errno.EACCES: _RIGHTS, errno.ENOSPC: _FULL, errno.E2BIG: _FULL}
_ITEMS = (BpfProgram, BpfPeer, BpfContainer)


class BpfTarget:
    """A Target for BpfProgram, BpfPeer and BpfContainer items.

    Hooks hold programs, and programs hold maps: all of it stays when this process ends, and the next finds it
    by looking at the hooks. Where nothing can be read nothing is found, and each operation is refused with
    the reason: everything else is mended all the same.
    """

    def __init__(
        self, hooks: Hooks, library: Libbpf, object_file: ObjectFile, look_s: float = LOOK_S
    ) -> None:
        self._hooks = hooks
        self._library = library
        self._object_file = object_file
        self._look_s = look_s
        self._programs = StandingPrograms(hooks)
        self._attacher = Attacher(
            hooks=hooks, programs=self._programs, library=library, object_file=object_file
        )
        self._maps: dict[str, TunnelMaps] = {}
        self._watch = HookWatch(hooks)

    def close(self) -> None:
        """Let go of the maps, which stay with the programs."""
        for maps in self._maps.values():
            maps.close()
        self._maps.clear()

    async def snapshot(self, desired: State) -> State:
        """Return all programs of ours, and the entries of the tunnels that the plan has."""
        try:
            return State.collect(await self._read(desired))
        except (OSError, TargetError):
            return State.EMPTY

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in order; neighbouring ones on peers go out as one batch."""
        refusals: list[Refusal] = []
        for (is_peer, device, is_removal), run in groupby(operations, _batch):
            if is_peer:
                refusals += await self._change_peers(device, list(run), is_removal)
            else:
                refusals += [refused for one in run if (refused := await self._perform(one)) is not None]
        return refusals

    async def changes(self) -> AsyncIterator[None]:
        """Yield when the programs at a hook of the plan are not those of the last look."""
        while True:
            await asyncio.sleep(self._look_s)
            if await self._watch.has_changed():
                yield

    def counts(self, device: str) -> Mapping[Outcome, tuple[int, int]]:
        """Return packets and octets by outcome of a tunnel; empty when it has no fast path.

        Raises:
            OSError: they cannot be read.
        """
        return self._maps[device].counts() if device in self._maps else {}

    async def _read(self, desired: State) -> list[Any]:
        names = dict(socket.if_nameindex())
        planned: list[Any] = [item for item in desired if isinstance(item, _ITEMS)]
        await self._watch.remember({_place(item) for item in planned if isinstance(item, BpfProgram)})
        standing = await self._programs.find(names)
        self._hold_maps({_device(item) for item in planned}, standing)
        items: list[Any] = []
        items += describe(
            standing,
            names,
            self._object_file.build,
            {device: maps.ids for device, maps in self._maps.items()},
        )
        for maps in self._maps.values():
            items += maps.peers()
            items += maps.containers(names)
        return items

    def _hold_maps(self, devices: set[str], standing: Iterable[Standing]) -> None:
        """Take over the maps that planned tunnels' programs use, and let go of all others."""
        for device in self._maps.keys() - devices:
            self._maps.pop(device).close()
        for device in devices - self._maps.keys():
            found = shared_maps(standing, device)
            if found:
                self._maps[device] = self._completed(device, found)

    async def _maps_of(self, device: str) -> TunnelMaps:
        """Return the maps that the tunnel's programs use, or new ones when there is none."""
        if device not in self._maps:
            standing = await self._programs.find(dict(socket.if_nameindex()))
            self._maps[device] = self._completed(device, shared_maps(standing, device))
        return self._maps[device]

    def _completed(self, device: str, found: Mapping[str, int]) -> TunnelMaps:
        missing = [layout.name for layout in SHARED if layout.name not in found]
        made = self._library.create_maps(self._object_file, missing) if missing else {}
        return TunnelMaps(device, {**found, **made})

    async def _change_peers(
        self, device: str, operations: Sequence[Operation], is_removal: bool
    ) -> list[Refusal]:
        peers: list[Any] = [_item(operation) for operation in operations]
        try:
            maps = await self._maps_of(device)
            if is_removal:
                refused = maps.remove_peers([peer.subnet for peer in peers])
            else:
                refused = maps.put_peers(peers)
        except (OSError, TargetError) as error:
            return [_refusal(operation, error) for operation in operations]
        return [_refusal(operations[place], error) for place, error in refused.items()]

    async def _perform(self, operation: Operation) -> Refusal | None:
        item = _item(operation)
        is_removal = isinstance(operation, Remove)
        try:
            match item:
                case BpfProgram() if is_removal:
                    await self._attacher.detach(item)
                    await self._watch.note(_place(item))
                case BpfProgram():
                    maps = await self._maps_of(item.tunnel.device)
                    await self._attacher.attach(item, maps.descriptors)
                    await self._watch.note(_place(item))
                case BpfContainer() if is_removal:
                    (await self._maps_of(item.device)).remove_container(item.address)
                case BpfContainer():
                    (await self._maps_of(item.device)).put_container(item)
                case _:
                    raise TypeError(f"not an operation on the fast path: {operation!r}")
        except (OSError, TargetError) as error:
            return _refusal(operation, error)
        return None


def _item(operation: Operation) -> Item:
    return operation.new if isinstance(operation, Replace) else operation.item


def _batch(operation: Operation) -> tuple[bool, str, bool]:
    """Return what neighbours must have in common to be one batch: peers, of one tunnel, put or removed."""
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
        return Refusal(operation=operation, cause=str(error), hint=error.hint)
    refused = refusal_of(operation, error)
    hint = _HINTS.get(error.errno or 0, refused.hint)
    return Refusal(operation=operation, cause=refused.cause, hint=hint)
