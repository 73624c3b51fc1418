"""The fast path of the tunnels of this network namespace: their programs, and the maps that the programs
share.
"""

import errno
import os
import socket
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import cached_property
from ipaddress import IPv4Network

from pyflannel.kernel.bpf.features import examine
from pyflannel.kernel.bpf.hooks import Hooks, KernelHooks
from pyflannel.kernel.bpf.layout import (
    BYTES,
    SHARED,
    Outcome,
    Permit,
    Sender,
    Settings,
    devices_of,
    pack_settings,
)
from pyflannel.kernel.bpf.libbpf import Libbpf
from pyflannel.kernel.bpf.maps import TunnelMaps
from pyflannel.kernel.bpf.objects import KernelObjects, ObjectFile, read_object
from pyflannel.kernel.bpf.standing import Standing, StandingPrograms, describe, shared_maps
from pyflannel.kernel.bpf.syscall import opened
from pyflannel.kernel.network.device_ioctls import link_index
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Direction, Feature, Role, Tunnel
from pyflannel.model.forwarder import Stranger
from pyflannel.model.status import Notice

_BYPASSED = (Role.LAST_HOP, Role.SHORTCUT)
"""Roles of programs at links that cached packets bypass, besides the link of the tunnel."""

_NAMED = 8
"""Maximum number of hooks that a message names."""

_UNREADABLE = (
    "programs of an earlier flanneld seem to be attached at {}. Without CAP_SYS_ADMIN and without their pins,"
    " this flanneld can neither read nor remove them: they carry packets by tables that are not repaired"
)
_HAND_OVER = (
    "As root, run `flannelctl pins` and restart flanneld, so that it can use them,"
    " or run `flannelctl cleanup` to remove them."
)


class FastPath:
    """Reads and changes the programs and maps in the kernel. Keeps the maps of the planned tunnels open.

    `pins` is a directory, which need not exist (see KernelObjects).

    Hooks reference programs, and programs reference maps. Therefore programs and maps remain when this
    process exits, and the next process finds them at the hooks.

    Every method raises:
        OSError: the kernel refused the operation, or a link is missing.
        TargetError: libbpf or the object file is missing, or the kernel refused a map or a program.
    """

    def __init__(
        self,
        pins: str = "",
        *,
        choose_hooks: Callable[[KernelObjects], Hooks] = KernelHooks,
        read: Callable[[], ObjectFile] = read_object,
    ) -> None:
        self._objects = KernelObjects(pins)
        self.hooks = choose_hooks(self._objects)
        self._read_object = read
        self._programs = StandingPrograms(self.hooks, self._objects)
        self._maps: dict[str, TunnelMaps] = {}
        self._unreadable: list[tuple[str, Direction]] = []

    def close(self) -> None:
        """Close all descriptors. Programs and maps remain in the kernel."""
        self.hooks.close()
        for maps in self._maps.values():
            maps.close()
        self._maps.clear()

    async def read(
        self, planned: Sequence[BpfProgram | BpfPeer | BpfContainer]
    ) -> list[BpfProgram | BpfPeer | BpfContainer]:
        """Return all programs of pyflannel, and the entries of the planned tunnels."""
        names = dict(socket.if_nameindex())
        devices = {item.tunnel.device if isinstance(item, BpfProgram) else item.device for item in planned}
        look = await self._programs.look(names)
        standing = look.standing
        self._unreadable = [(names[link], direction) for link, direction in look.unreadable]
        self._hold_maps(devices, standing)
        build = self._object_file.build if standing else b""
        items: list[BpfProgram | BpfPeer | BpfContainer] = [*describe(standing, names, build, self._maps)]
        for device, maps in self._maps.items():
            items += maps.peers(
                item for item in planned if isinstance(item, BpfPeer) and item.device == device
            )
            items += maps.containers(
                names, (item for item in planned if isinstance(item, BpfContainer) and item.device == device)
            )
        return items

    async def attach(self, item: BpfProgram) -> None:
        """Attach a program to its hook. The program replaces other programs with the same role and tunnel at
        this hook.

        The hook has a program at any time.
        """
        link, direction = link_index(item.link), item.role.direction
        tunnel_maps, settings = await self._maps_of(item.tunnel.device), self._settings_of(item.tunnel)
        for device in devices_of(settings):
            tunnel_maps.put_device(device)
        maps = tunnel_maps.descriptors
        loaded = self._library.load_program(self._object_file, item.role.value, pack_settings(settings), maps)
        with opened(loaded.program) as program, opened(loaded.settings) as settings_map:
            self._objects.pin(program, [settings_map, *maps.values()])
            self._objects.prove(program)
            before = await self._of_same_key(link, item)
            if before:
                await self.hooks.replace(link, direction, before[0].program.id, program)
            else:
                await self.hooks.attach(link, direction, program)
            for spare in before[1:]:
                await self.hooks.detach(link, direction, spare.program.id)
        await self._unpin_leftovers()

    async def detach(self, item: BpfProgram) -> None:
        """Detach a program from its hook, if it is attached."""
        try:
            link = link_index(item.link)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # the program was removed together with the link
            raise
        for one in await self._of_same_key(link, item):
            await self.hooks.detach(link, item.role.direction, one.program.id)
        await self._unpin_leftovers()

    async def put_peers(self, device: str, peers: Sequence[BpfPeer]) -> Mapping[int, OSError]:
        """Create or replace entries of the table of peers; return the errors of refused entries by
        position.
        """
        return (await self._maps_of(device)).put_peers(peers)

    async def remove_peers(self, device: str, subnets: Sequence[IPv4Network]) -> Mapping[int, OSError]:
        """Remove existing entries of the table of peers; return the errors of refused entries by position."""
        return (await self._maps_of(device)).remove_peers(subnets)

    async def put_container(self, container: BpfContainer) -> None:
        """Create or replace an entry of the table of containers."""
        (await self._maps_of(container.device)).put_container(container)

    async def remove_container(self, container: BpfContainer) -> None:
        """Remove an entry of the table of containers, if it exists."""
        (await self._maps_of(container.device)).remove_container(container.address)

    def counts(self, device: str) -> Mapping[Outcome, tuple[int, int]]:
        """Return the packets and bytes of a tunnel by outcome; empty if the tunnel has no fast path."""
        return self._maps[device].counts() if device in self._maps else {}

    async def received(self, device: str) -> Mapping[Sender, int]:
        """Return the bytes of the datagrams that the attached programs of a tunnel decapsulated, by sender;
        empty without programs. This method needs no plan.
        """
        if device in self._maps:
            return self._maps[device].received()
        standing = await self._programs.find(dict(socket.if_nameindex()))
        maps = TunnelMaps(device, shared_maps(standing, device, self._objects))
        with closing(maps):
            return maps.received() if BYTES.name in maps.descriptors else {}

    def received_from(self, device: str, sender: Sender) -> int:
        """Return the bytes of the datagrams from a sender that the programs of a tunnel decapsulated."""
        return self._maps[device].received_from(sender) if device in self._maps else 0

    def strangers(self, device: str) -> Sequence[Stranger]:
        """Return the senders whose packets the guard of a tunnel dropped; an empty list without a fast
        path.
        """
        return self._maps[device].strangers() if device in self._maps else ()

    def put_permit(self, device: str, permit: Permit, direct_links: Collection[int] = ()) -> None:
        """Permit or forbid the programs of a tunnel to cache flows. Do nothing if the tunnel has no programs.

        Packets of cached flows skip the veths `direct_links`, by index, as long as the permit is valid.
        """
        if device in self._maps:
            self._maps[device].put_permit(permit)
            self._maps[device].put_direct_links(direct_links, permit.until_ns)

    async def foreign_hook(
        self, programs: Iterable[BpfProgram], filtered: Container[int] = frozenset()
    ) -> str | None:
        """Return a link at which cached packets would bypass a program or filter of other software, or None.

        Args:
            programs: the programs of a tunnel that caches flows.
            filtered: links, by index, with a qdisc for filters.
        """
        programs = tuple(programs)
        own = {(one.link, one.role.direction) for one in programs}
        bypassed = {one.link for one in programs if one.role in _BYPASSED}
        bypassed |= {one.tunnel.link for one in programs}
        for link in sorted(bypassed):
            try:
                index = link_index(link)
                for direction in Direction:
                    if len(await self.hooks.programs(index, direction)) > ((link, direction) in own):
                        return link
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise
                continue
            if index in filtered:
                return link
        return None

    def notices(self, device: str) -> tuple[Notice, ...]:
        """Return the problems of a tunnel in the latest scan that no repair can solve. Raises nothing."""
        found = self._maps[device].notices if device in self._maps else []
        if any(link == device for link, _ in self._unreadable):
            places = ", ".join(f"{link} {direction.value}" for link, direction in self._unreadable[:_NAMED])
            found = [Notice(_UNREADABLE.format(places), _HAND_OVER), *found]
        return tuple(found)

    def features(self) -> tuple[Feature, ...]:
        """Return the kernel features that the fast path uses. Raises nothing."""
        return examine(self._objects, lambda: self._library, lambda: self._object_file)

    @cached_property
    def _library(self) -> Libbpf:
        return Libbpf()

    @cached_property
    def _object_file(self) -> ObjectFile:
        return self._read_object()

    def _settings_of(self, tunnel: Tunnel) -> Settings:
        """Return the settings of a program, with the current indexes of the links."""
        return Settings(
            build=self._object_file.build,
            device=tunnel.device,
            device_index=link_index(tunnel.link),
            underlay_index=link_index(tunnel.underlay),
            address=tunnel.address,
            subnet=tunnel.subnet,
            port=tunnel.port,
            mtu=tunnel.mtu,
            gro_index=link_index(tunnel.gro_link) if tunnel.gro_link else 0,
            caches_flows=tunnel.caches_flows,
            vni=tunnel.vni if tunnel.vxlan_link else None,
        )

    def _hold_maps(self, devices: set[str], standing: Iterable[Standing]) -> None:
        """Open the maps of the programs of the planned tunnels, and close all others."""
        for device in self._maps.keys() - devices:
            self._maps.pop(device).close()
        for device in devices - self._maps.keys():
            if found := shared_maps(standing, device, self._objects):
                self._maps[device] = self._completed(device, found)

    async def _maps_of(self, device: str) -> TunnelMaps:
        """Return the maps that the programs of the tunnel use, or new maps if there are no such maps."""
        if device not in self._maps:
            standing = await self._programs.find(dict(socket.if_nameindex()))
            self._maps[device] = self._completed(device, shared_maps(standing, device, self._objects))
        return self._maps[device]

    def _completed(self, device: str, found: Mapping[str, int]) -> TunnelMaps:
        """Return descriptors of the existing maps, and of new maps in place of the missing maps."""
        missing = [layout.name for layout in SHARED if layout.name not in found]
        with ExitStack() as on_failure:
            for descriptor in found.values():
                on_failure.callback(os.close, descriptor)
            made = self._library.create_maps(self._object_file, missing) if missing else {}
            for descriptor in made.values():
                on_failure.callback(os.close, descriptor)
            maps = TunnelMaps(device, {**found, **made})
            on_failure.pop_all()
        return maps

    async def _of_same_key(self, link: int, item: BpfProgram) -> list[Standing]:
        return [
            one
            for one in await self._programs.find([link])
            if one.program.role is item.role and one.program.settings.device == item.tunnel.device
        ]

    async def _unpin_leftovers(self) -> None:
        """Remove the pins of programs that are no longer attached."""
        if self._objects.has_directory:
            standing = await self._programs.find(dict(socket.if_nameindex()))
            programs = [one.program for one in standing]
            maps = [{program.settings_map_id, *program.map_ids} for program in programs]
            self._objects.unpin_all_but([program.id for program in programs], set[int]().union(*maps))
