"""Programs at the tcx hooks of links. Source: linux/bpf.h; kernel 6.6 and later.

A program is attached itself, without a link object: the hook holds it, and it holds its maps. So it stays
when the daemon goes, whatever file systems that one saw.
"""

import ctypes
import errno
import socket
import struct

from pyflannel.kernel.bpf.asking import ask
from pyflannel.kernel.bpf.objects import KernelObjects
from pyflannel.kernel.bpf.syscall import Command, call_bpf, opened
from pyflannel.model.bpf_program import Direction
from pyflannel.model.feature import Answer

_TYPES = {Direction.INGRESS: 46, Direction.EGRESS: 47}
"""BPF_TCX_INGRESS, BPF_TCX_EGRESS."""

_REPLACE = 1 << 2
"""BPF_F_REPLACE."""

_MOST_PROGRAMS = 64
"""BPF_MPROG_MAX."""

# link, program, hook, flags, program to replace, relative to which, expected revision
_ATTACH = struct.Struct("=6IQ")
# link, hook, flags of query and answer, identifiers, their number; flags of each, links, theirs, revision
_QUERY = struct.Struct("=4IQI4x4Q")


class TcxHooks:
    """The tcx hooks of this network namespace's links, by the links' indexes."""

    def __init__(self, objects: KernelObjects) -> None:
        self._objects = objects

    def close(self) -> None:
        """Do nothing: nothing was opened."""

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        """Return the identifiers of the programs, in the order in which they see packets.

        Raises:
            OSError: ENODEV, there is no such link; EINVAL, the kernel has no tcx.
        """
        return _query(link, direction)

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        """Put a program, given by descriptor, behind the others.

        Raises:
            OSError: the kernel refused.
        """
        call_bpf(Command.PROG_ATTACH, _ATTACH.pack(link, program, _TYPES[direction], 0, 0, 0, 0))

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        """Put a program, given by descriptor, into the place of that with the identifier `old`, at once.

        Raises:
            OSError: ENOENT, the old one is not there any more.
        """
        with opened(self._objects.open_program(old)) as replaced:
            call_bpf(
                Command.PROG_ATTACH, _ATTACH.pack(link, program, _TYPES[direction], _REPLACE, replaced, 0, 0)
            )

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        """Take the program with the identifier `old` away.

        Raises:
            OSError: ENOENT, it is not there any more.
        """
        with opened(self._objects.open_program(old)) as program:
            call_bpf(Command.PROG_DETACH, _ATTACH.pack(link, program, _TYPES[direction], 0, 0, 0, 0))


def ask_tcx() -> tuple[Answer, OSError | None]:
    """Return whether the kernel has tcx: whoever may ask gets a list of programs, though it may be empty."""
    return ask(lambda: _query(socket.if_nameindex()[0][0], Direction.INGRESS), (errno.EINVAL,))


def _query(link: int, direction: Direction) -> tuple[int, ...]:
    ids = (ctypes.c_uint32 * _MOST_PROGRAMS)()
    query = _QUERY.pack(link, _TYPES[direction], 0, 0, ctypes.addressof(ids), _MOST_PROGRAMS, 0, 0, 0, 0)
    answer = ctypes.create_string_buffer(query, len(query))
    call_bpf(Command.PROG_QUERY, answer)
    return tuple(ids[: _QUERY.unpack(answer.raw)[5]])
