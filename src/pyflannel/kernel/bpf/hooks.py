"""The hooks of links at which programs run, which are tcx (Linux 6.6 and later), or a clsact qdisc."""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from pyflannel.kernel.bpf.objects import KernelObjects
from pyflannel.kernel.bpf.syscall import Command, ask, call_bpf, opened, program_info
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.fast_path import Answer, Direction
from pyflannel.wire.netlink.message import Request
from pyflannel.wire.netlink.tc import (
    EGRESS,
    INGRESS,
    BpfFilter,
    create_clsact,
    create_filter,
    delete_clsact,
    delete_filter,
    dump_filters,
    parse_filter,
    replace_filter,
)


class Hooks(Protocol):
    """Hooks of links, by the indexes of the links. An attached program remains when this process exits."""

    def close(self) -> None:
        """Close the descriptors. The programs stay."""

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        """Return the identifiers of the programs, in the order in which they run.

        Raises:
            OSError: ENODEV if the link does not exist.
        """

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        """Attach a program, identified by its file descriptor, after the existing programs.

        Raises:
            OSError: the kernel refused.
        """

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        """Replace the program with the identifier `old` atomically with another program, identified by its
        file descriptor.

        Raises:
            OSError: the kernel refused the call, or the old program is no longer attached.
        """

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        """Detach the program with the identifier `old`.

        Raises:
            OSError: ENOENT if the program is no longer attached.
        """


# Programs at the tcx hooks of links. Source: linux/bpf.h; kernel 6.6 and later.
#
# A program is attached directly, without a link object. The hook references the program, and the program
# references its maps. Therefore the program remains when the daemon exits, with or without a mounted bpffs.

_TYPES = {Direction.INGRESS: 46, Direction.EGRESS: 47}
"""BPF_TCX_INGRESS, BPF_TCX_EGRESS."""

_REPLACE = 1 << 2
"""BPF_F_REPLACE."""

_MOST_PROGRAMS = 64
"""BPF_MPROG_MAX."""

# fields: link, program, hook, flags, program to replace, reference program, expected revision
_ATTACH = struct.Struct("=6IQ")
# fields: link, hook, flags of query and answer, identifiers, count; flags of each program, links, flags of
# links, revision
_QUERY = struct.Struct("=4IQI4x4Q")


class TcxHooks:
    """The tcx hooks of the links of this network namespace, by the indexes of the links."""

    def __init__(self, objects: KernelObjects) -> None:
        self._objects = objects

    def close(self) -> None:
        """Do nothing, because no descriptor is open."""

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        """Return the identifiers of the programs, in the order in which they run.

        Raises:
            OSError: ENODEV if the link does not exist. EINVAL if the kernel has no tcx.
        """
        return _query(link, direction)

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        """Attach a program, identified by its file descriptor, after the existing programs.

        Raises:
            OSError: the kernel refused.
        """
        call_bpf(Command.PROG_ATTACH, _ATTACH.pack(link, program, _TYPES[direction], 0, 0, 0, 0))

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        """Replace the program with the identifier `old` atomically with another program, identified by its
        file descriptor.

        Raises:
            OSError: ENOENT if the old program is no longer attached.
        """
        with opened(self._objects.open_program(old)) as replaced:
            call_bpf(
                Command.PROG_ATTACH, _ATTACH.pack(link, program, _TYPES[direction], _REPLACE, replaced, 0, 0)
            )

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        """Detach the program with the identifier `old`.

        Raises:
            OSError: ENOENT if the program is no longer attached.
        """
        with opened(self._objects.open_program(old)) as program:
            call_bpf(Command.PROG_DETACH, _ATTACH.pack(link, program, _TYPES[direction], 0, 0, 0, 0))


def ask_tcx() -> tuple[Answer, OSError | None]:
    """Return whether the kernel has tcx hooks, and the error of a query, which needs CAP_NET_ADMIN."""
    return ask(lambda: _query(socket.if_nameindex()[0][0], Direction.INGRESS), (errno.EINVAL,))


def _query(link: int, direction: Direction) -> tuple[int, ...]:
    ids = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    query = _QUERY.pack(link, _TYPES[direction], 0, 0, ctypes.addressof(ids), _MOST_PROGRAMS, 0, 0, 0, 0)
    answer = ctypes.create_string_buffer(query, len(query))
    call_bpf(Command.PROG_QUERY, answer)
    return tuple(ids[: _QUERY.unpack(answer.raw)[5]])


_PARENTS = {Direction.INGRESS: INGRESS, Direction.EGRESS: EGRESS}


class ClsactHooks:
    """eBPF classifiers in clsact qdiscs of links in this network namespace; links are identified by their
    indexes.

    Every method raises:
        OSError: the kernel refused.
        TargetError: the kernel did not answer.
    """

    def __init__(self) -> None:
        self._requests = RequestSocket()

    def close(self) -> None:
        """Close the socket."""
        self._requests.close()

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        """Return the identifiers of the programs, in the order in which they run."""
        return tuple(one.program for one in await self._filters(link, direction))

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        """Add an eBPF program, identified by its file descriptor, after the filters of other programs."""
        await self._perform(create_clsact(link), but=errno.EEXIST)
        await self._perform(create_filter(link, _PARENTS[direction], program_info(program).name, program))

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        """Replace the program with the identifier `old` atomically with another program, identified by its
        file descriptor.
        """
        before = await self._find(link, direction, old)
        await self._perform(
            replace_filter(link, _PARENTS[direction], before, program_info(program).name, program)
        )

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        """Detach the program with the identifier `old`, and delete the qdisc after its last program."""
        before = await self._find(link, direction, old)
        await self._perform(delete_filter(link, _PARENTS[direction], before))
        others = [await self._requests.dump(dump_filters(link, parent), len) for parent in _PARENTS.values()]
        if not any(others):
            await self._perform(delete_clsact(link), but=errno.ENOENT)

    async def _filters(self, link: int, direction: Direction) -> list[BpfFilter]:
        return await self._requests.dump(dump_filters(link, _PARENTS[direction]), parse_filter)

    async def _find(self, link: int, direction: Direction, program: int) -> BpfFilter:
        for one in await self._filters(link, direction):
            if one.program == program:
                return one
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    async def _perform(self, request: Request, but: int = 0) -> None:
        (answer,) = await self._requests.transact([request])
        if answer.errno not in (0, but):
            raise OSError(answer.errno, answer.text or os.strerror(answer.errno))


class KernelHooks:
    """Hooks of the type that the kernel has. The first use probes the type of the hooks.

    Every method raises:
        OSError: the kernel refused: ENOSYS if it has no bpf(2), EPERM without CAP_NET_ADMIN.
        TargetError: the kernel did not answer.
    """

    def __init__(
        self, objects: KernelObjects, ask: Callable[[], tuple[Answer, OSError | None]] = ask_tcx
    ) -> None:
        self._objects = objects
        self._ask = ask
        self._chosen: Hooks | None = None

    def close(self) -> None:
        """Close the descriptors. The programs stay."""
        if self._chosen is not None:
            self._chosen.close()

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        """Return the identifiers of the programs, in the order in which they run."""
        return await (await self._hooks()).programs(link, direction)

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        """Attach a program, identified by its file descriptor, after the existing programs."""
        await (await self._hooks()).attach(link, direction, program)

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        """Replace the program with the identifier `old` atomically with another program, identified by its
        file descriptor.
        """
        await (await self._hooks()).replace(link, direction, old, program)

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        """Detach the program with the identifier `old`."""
        await (await self._hooks()).detach(link, direction, old)

    async def _hooks(self) -> Hooks:
        if self._chosen is None:
            answer, error = self._ask()
            if answer == "unknown" and error is not None:
                raise error
            self._chosen = ClsactHooks() if answer == "absent" else TcxHooks(self._objects)
        return self._chosen
