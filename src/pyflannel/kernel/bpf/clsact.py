"""Programs as classifiers of a clsact qdisc: where the kernel has no tcx (before 6.6)."""

import errno
import os

from pyflannel.kernel.bpf.syscall import program_info
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.bpf_program import Direction
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

_PARENTS = {Direction.INGRESS: INGRESS, Direction.EGRESS: EGRESS}


class ClsactHooks:
    """Classifiers with direct action of this network namespace's links, by the links' indexes.

    Every method raises:
        OSError: the kernel refused.
        TargetError: it did not answer.
    """

    def __init__(self) -> None:
        self._requests = RequestSocket()

    def close(self) -> None:
        """Let go of the socket."""
        self._requests.close()

    async def programs(self, link: int, direction: Direction) -> tuple[int, ...]:
        """Return the identifiers of the programs, in the order in which they see packets."""
        return tuple(one.program for one in await self._filters(link, direction))

    async def attach(self, link: int, direction: Direction, program: int) -> None:
        """Add a program, given by descriptor; the kernel puts it before the others."""
        await self._perform(create_clsact(link), but=errno.EEXIST)
        await self._perform(create_filter(link, _PARENTS[direction], program_info(program).name, program))

    async def replace(self, link: int, direction: Direction, old: int, program: int) -> None:
        """Put a program, given by descriptor, into the place of that with the identifier `old`, at once."""
        before = await self._find(link, direction, old)
        await self._perform(
            replace_filter(link, _PARENTS[direction], before, program_info(program).name, program)
        )

    async def detach(self, link: int, direction: Direction, old: int) -> None:
        """Take the program with the identifier `old` away, and the qdisc with the last program of any."""
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
