"""Programs that are run for their answer, iptables and nft; and what was read, until it changes."""

import asyncio
import errno
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from pyflannel.errors import TargetError, is_permanent, target_errors
from pyflannel.kernel.network.netlink_socket import NotificationSocket
from pyflannel.ports import Announce, ChangeChannel, child_environment, in_thread

_DEADLINE_S = 10.0


class MissingProgramError(TargetError):
    """The program is not installed."""

    def __init__(self, program: str, *, hint: str = "Install it, or put it on the PATH.") -> None:
        super().__init__(f"{program} is not installed", hint=hint, is_permanent=True)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended, and what it printed."""

    status: int
    output: str
    complaint: str

    @property
    def is_permanent(self) -> bool:
        """Whether it complained of what stays until something else changes: it names the error in words."""
        return any(is_permanent(code) and os.strerror(code) in self.complaint for code in errno.errorcode)

    @property
    def cause(self) -> str:
        """What it said of its failure, in one line."""
        lines = [line.strip() for line in self.complaint.splitlines()]
        said = [line for line in lines if line and not line.startswith("#")]
        return said[0] if said else f"exit status {self.status}"


async def run_program(*words: str, given: str = "") -> Ran:
    """Run a program with `given` as its input, to its end; cancelled or too slow, it is killed.

    A thread waits for it. asyncio's own processes wait for ever when the system refuses them a pipe or a
    watch; those of subprocess lose descriptors, and the process itself, when it refuses them a pipe.

    Raises:
        MissingProgramError: it is not installed.
        TargetError: it cannot be started, or did not end within its deadline.
    """
    running_pids: list[int] = []
    running = asyncio.ensure_future(
        in_thread(_run, words, given.encode(errors="surrogateescape"), running_pids)
    )
    try:
        with target_errors(f"{words[0]} cannot be run", hint="Look at the file, who may run it, and dmesg."):
            async with asyncio.timeout(_DEADLINE_S):
                return await asyncio.shield(running)
    except TimeoutError as error:
        raise TargetError(
            f"{words[0]} did not end within {_DEADLINE_S:.0f} s", hint="See what it waits for: ps, dmesg."
        ) from error
    finally:
        if not running.done():
            running.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            for pid in running_pids:
                os.killpg(pid, signal.SIGKILL)


def _run(words: Sequence[str], given: bytes, running_pids: list[int]) -> Ran:
    with _memory("input") as entered, _memory("output") as output, _memory("complaint") as complaint:
        os.pwrite(entered, given, 0)
        try:
            pid = os.posix_spawnp(
                words[0],
                list(words),
                child_environment("XTABLES_*") | {"LC_ALL": "C"},  # its words are parsed
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, file, number)
                    for number, file in enumerate((entered, output, complaint))
                ],
                setpgroup=0,  # so that what it started is killed with it
                setsigdef=[signal.SIGPIPE],
            )
        except FileNotFoundError as error:
            raise MissingProgramError(words[0]) from error
        running_pids.append(pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        running_pids.clear()  # as long as nobody else can have its number
        _, status = os.waitpid(pid, 0)
        return Ran(os.waitstatus_to_exitcode(status), _text(output), _text(complaint))


@contextmanager
def _memory(name: str) -> Iterator[int]:
    """Open a file in memory, which nobody has to read while the program runs."""
    descriptor = os.memfd_create(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _text(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="surrogateescape")


# What was read of the packet filter, for as long as nobody changed it.
#
# Reading means running a program, so the passes that routes and links ask for share what was read last. It
# is read anew when the kernel announces a change of nf_tables, which iptables works on as well, after our own
# changes, and by the clock: legacy iptables announces nothing.

log = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
_NFTABLES = 1 << 6
"""NFNLGRP_NFTABLES is group 7 (linux/nfnetlink.h)."""

_COALESCE_S = 0.1
"""A program that sets up a firewall changes hundreds of rules in a row."""

_Dump = TypeVar("_Dump")


class RuleDump(Generic[_Dump]):
    """The last reading, and the wish to know when the next differs. What `read` raises is not kept.

    Entered, it hears every change from then on. `read` reads; `resync_s` is the longest that a reading counts
    while `is_wanted`.
    """

    def __init__(self, read: Callable[[], Awaitable[_Dump]], resync_s: float) -> None:
        self._read = read
        self._resync_s = resync_s
        self._reading = asyncio.Lock()
        self._last: _Dump | None = None
        self._forgotten = 0  # times; a reading that began before the last of them does not count
        self.is_wanted = True
        self._notifications: NotificationSocket | None = None

    def __enter__(self) -> Self:
        try:
            self._notifications = NotificationSocket(_NFTABLES, _NETLINK_NETFILTER)
        except TargetError as error:
            log.debug("The kernel announces no rules, they are read every %.0f s: %s", self._resync_s, error)
        return self

    def __exit__(self, *_: object) -> None:
        if self._notifications is not None:
            self._notifications.close()
            self._notifications = None

    async def get(self) -> _Dump:
        """Return what is there, as far as is known; while it is read anew, that is the reading before."""
        return await self._refresh() if self._last is None else self._last

    def forget(self) -> None:
        """Read again before the next use: we changed something."""
        self._last = None
        self._forgotten += 1

    def changes(self) -> ChangeChannel:
        """Open a channel that tells when a reading differs from the last, or there has to be a new one."""
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        try:
            while True:
                await self._wait()
                if self.is_wanted and await self._has_changed():
                    announce()
        finally:
            self.forget()  # nobody hears whether it still counts

    async def _has_changed(self) -> bool:
        """Read, and return whether that differs from the last reading, or there was none that counts."""
        before = self._last
        try:
            await self._refresh()
        except TargetError:
            self.forget()  # the look that follows says it
        return before is None or before != self._last

    async def _refresh(self) -> _Dump:
        async with self._reading:
            began = self._forgotten
            read = await self._read()
            self._last = read if began == self._forgotten else None
            return read

    async def _wait(self) -> None:
        """Return soon after something changed, and after the resync period at the latest."""
        try:
            async with asyncio.timeout(self._resync_s):
                if self._notifications is None:
                    await asyncio.Event().wait()
                else:
                    await self._notifications.wait(lambda message: True)
        except TimeoutError:
            return
        await asyncio.sleep(_COALESCE_S)
        if self._notifications is not None:
            self._notifications.drain()
