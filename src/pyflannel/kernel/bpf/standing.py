"""The programs of pyflannel that are attached to the hooks of links, read from the kernel."""

import errno
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import product

from msgspec import Struct, field

from pyflannel.kernel.bpf.hooks import Hooks
from pyflannel.kernel.bpf.layout import SETTINGS_MAP, SHARED, Settings, devices_of, unpack_settings
from pyflannel.kernel.bpf.maps import TunnelMaps, read_entries
from pyflannel.kernel.bpf.objects import KernelObjects
from pyflannel.kernel.bpf.syscall import map_info, opened, program_info
from pyflannel.model.fast_path import BpfProgram, Direction, Role, Tunnel

_ROLES = {role.value: role for role in Role}


class LoadedProgram(Struct, frozen=True, kw_only=True):
    """A program of pyflannel in the kernel, regardless of its hook.

    Attributes:
        map_ids: identifiers of the maps that the program shares with other programs.
    """

    id: int
    role: Role
    settings: Settings
    settings_map_id: int
    map_ids: frozenset[int]


class Standing(Struct, frozen=True):
    """A program of pyflannel at a hook of a link. The link is identified by its index."""

    link: int
    program: LoadedProgram


class Look(Struct, frozen=True):
    """The programs that were found at hooks.

    Attributes:
        identifiers: identifiers of all programs, of this daemon and of other programs.
        unreadable: hooks with a program that this process may not read, by the index of the link.
    """

    standing: list[Standing] = field(default_factory=list)
    identifiers: set[int] = field(default_factory=set)
    unreadable: list[tuple[int, Direction]] = field(default_factory=list)


class StandingPrograms:
    """Finds the programs of pyflannel. Each program is read only once, because the kernel uses no identifier
    again.
    """

    def __init__(self, hooks: Hooks, objects: KernelObjects) -> None:
        self._hooks = hooks
        self._objects = objects
        self._known: dict[int, LoadedProgram | None] = {}

    async def find(self, links: Iterable[int]) -> list[Standing]:
        """Return the programs of pyflannel on these links; a deleted link has no programs.

        Raises:
            OSError: the kernel refused the call: EPERM without CAP_NET_ADMIN.
        """
        return (await self._look(links)).standing

    async def look(self, links: Iterable[int]) -> Look:
        """Return the programs of pyflannel on all links, and the hooks with unreadable programs.

        Raises:
            OSError: the kernel refused the call: EPERM without CAP_NET_ADMIN.
        """
        look = await self._look(links)
        for gone in self._known.keys() - look.identifiers:
            del self._known[gone]
        return look

    async def _look(self, links: Iterable[int]) -> Look:
        look = Look()
        for link, direction in product(links, Direction):
            for identifier in await self._identifiers(link, direction):
                look.identifiers.add(identifier)
                try:
                    program = self._program(identifier)
                except PermissionError:
                    look.unreadable.append((link, direction))
                else:
                    if program is not None and program.role.direction is direction:
                        look.standing.append(Standing(link, program))
        return look

    async def _identifiers(self, link: int, direction: Direction) -> tuple[int, ...]:
        try:
            return await self._hooks.programs(link, direction)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return ()
            raise

    def _program(self, identifier: int) -> LoadedProgram | None:
        if identifier not in self._known:
            try:
                self._known[identifier] = _read_program(self._objects, identifier)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return None  # the program was removed in the meantime
                raise
        return self._known[identifier]


def _read_program(objects: KernelObjects, identifier: int) -> LoadedProgram | None:
    """Return the role and the settings of an eBPF program; None if it is not a program of pyflannel.

    Raises:
        OSError: ENOENT if the program no longer exists. EPERM if this process has no right to open the
            program, and there is no pin.
    """
    with opened(objects.open_program(identifier)) as descriptor:
        info = program_info(descriptor)
    role = _ROLES.get(info.name)
    if role is None:
        return None
    for map_id in info.map_ids:
        with opened(objects.open_map(map_id)) as descriptor:
            settings = _read_settings(descriptor) if map_info(descriptor).name == SETTINGS_MAP else None
        if settings is not None:
            shared = frozenset(info.map_ids) - {map_id}
            return LoadedProgram(
                id=identifier, role=role, settings=settings, settings_map_id=map_id, map_ids=shared
            )
    return None


def _read_settings(descriptor: int) -> Settings | None:
    """Return the settings of a program. In another version of pyflannel, the settings may have another
    size.
    """
    info = map_info(descriptor)
    entries = read_entries(descriptor, info.key_bytes, info.value_bytes)
    return unpack_settings(next(iter(entries.values()), b""))


def describe(
    standing: Sequence[Standing], names: Mapping[int, str], build: bytes, maps: Mapping[str, TunnelMaps]
) -> list[BpfProgram]:
    """Return the programs as items of a plan, including programs of other versions.

    Args:
        standing: programs that were found.
        names: names of the links by index.
        build: digest of the object file that this version loads.
        maps: the maps that the programs of a tunnel must share, by the device of the tunnel.

    Raises:
        OSError: a map cannot be read.
    """
    times = Counter(_key(one) for one in standing)
    reachable = {device: shared.devices() for device, shared in maps.items()}
    items = []
    for one in standing:
        program, settings = one.program, one.program.settings
        link = names.get(settings.device_index, "")
        is_vxlan = settings.vni is not None
        is_current = (
            settings.build == build
            and (bool(link) if is_vxlan else link == settings.device)
            and settings.device in maps
            and program.map_ids <= maps[settings.device].ids
            and devices_of(settings) <= reachable[settings.device]
            and times[_key(one)] == 1
        )
        tunnel = Tunnel(
            device=settings.device,
            underlay=names.get(settings.underlay_index, ""),
            address=settings.address,
            subnet=settings.subnet,
            port=settings.port,
            mtu=settings.mtu,
            gro_link=names.get(settings.gro_index, ""),
            caches_flows=settings.caches_flows,
            vxlan_link=link if is_vxlan else "",
            vni=settings.vni or 0,
        )
        items.append(
            BpfProgram(link=names[one.link], role=program.role, tunnel=tunnel, is_current=is_current)
        )
    return items


def _key(one: Standing) -> tuple[int, Role, str]:
    return one.link, one.program.role, one.program.settings.device


def shared_maps(standing: Iterable[Standing], device: str, objects: KernelObjects) -> dict[str, int]:
    """Return descriptors of the maps that a tunnel's programs use, by name; if there are several of one name,
    the first map.

    Maps with the layout of another version are omitted, because this version cannot use them. Maps that no
    longer exist are omitted, too.

    Raises:
        OSError: a map cannot be opened.
    """
    programs = [one.program for one in standing if one.program.settings.device == device]
    programs.sort(key=lambda program: list(Role).index(program.role))
    found: dict[str, int] = {}
    with ExitStack() as on_failure:
        for identifier in (map_id for program in programs for map_id in sorted(program.map_ids)):
            try:
                descriptor = objects.open_map(identifier)
            except FileNotFoundError:
                continue  # the map was removed together with its programs in the meantime
            info = map_info(descriptor)
            if info.name not in found and any(layout.describes(info) for layout in SHARED):
                found[info.name] = descriptor
                on_failure.callback(os.close, descriptor)
            else:
                os.close(descriptor)
        on_failure.pop_all()
    return found
