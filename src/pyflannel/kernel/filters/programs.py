"""Runs iptables and nft, and keeps their latest output until the rules change."""

import asyncio
import errno
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, Self, TypeVar

from msgspec import Struct

from pyflannel.errors import TargetError, is_permanent, target_errors
from pyflannel.kernel.network.netlink_socket import NotificationSocket
from pyflannel.ports import Announce, ChangeChannel, child_environment, in_thread

_DEADLINE_S = 10.0


class MissingProgramError(TargetError):
    """The program is not installed."""

    def __init__(
        self, program: str, *, hint: str = "Install the program, or add its directory to PATH."
    ) -> None:
        super().__init__(f"{program} is not installed", hint=hint, is_permanent=True)


class Ran(Struct, frozen=True):
    """The exit status and the output of a program that was run."""

    status: int
    output: str
    complaint: str

    @property
    def is_permanent(self) -> bool:
        """True if the error is permanent, according to the text that the program printed."""
        return any(is_permanent(code) and os.strerror(code) in self.complaint for code in errno.errorcode)

    @property
    def cause(self) -> str:
        """The error message of the program, in one line."""
        lines = [line.strip() for line in self.complaint.splitlines()]
        said = [line for line in lines if line and not line.startswith("#")]
        return said[0] if said else f"exit status {self.status}"


_namespace: ContextVar[int | None] = ContextVar("namespace", default=None)


@contextmanager
def programs_in_namespace_of(pid: int) -> Iterator[None]:
    """Run the programs of this context in the network namespace of a process. If the namespace cannot be
    entered, they fail.
    """
    token = _namespace.set(pid)
    try:
        yield
    finally:
        _namespace.reset(token)


async def run_program(*words: str, given: str = "") -> Ran:
    """Run a program with `given` as its input. The program is killed at the deadline, or if this call is
    cancelled.

    A thread waits for its exit. The modules asyncio and subprocess are not used to run it. If the system
    refuses a pipe or a watch, asyncio waits forever, and subprocess loses descriptors and the process itself.

    Raises:
        MissingProgramError: the program is not installed.
        TargetError: the program cannot be started, or did not exit within the deadline.
    """
    running_pids: list[int] = []
    if (pid := _namespace.get()) is not None:
        words = ("nsenter", "--net", "--target", str(pid), "--", *words)
    running = asyncio.ensure_future(
        in_thread(_run, words, given.encode(errors="surrogateescape"), running_pids)
    )
    try:
        with target_errors(f"{words[0]} cannot be run", hint="Check the program file, its mode, and dmesg."):
            async with asyncio.timeout(_DEADLINE_S):
                return await asyncio.shield(running)
    except TimeoutError as error:
        raise TargetError(
            f"{words[0]} did not exit within {_DEADLINE_S:.0f} s", hint="Find the cause with ps and dmesg."
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
                child_environment("XTABLES_*") | {"LC_ALL": "C"},  # the messages of the program are parsed
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, file, number)
                    for number, file in enumerate((entered, output, complaint))
                ],
                setpgroup=0,  # so that the program and its children are killed together
                setsigdef=[signal.SIGPIPE],
            )
        except FileNotFoundError as error:
            raise MissingProgramError(words[0]) from error
        running_pids.append(pid)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        running_pids.clear()  # before another process can get the process ID
        _, status = os.waitpid(pid, 0)
        return Ran(os.waitstatus_to_exitcode(status), _text(output), _text(complaint))


@contextmanager
def _memory(name: str) -> Iterator[int]:
    """Open a file in memory, so that the output need not be read while the program runs."""
    descriptor = os.memfd_create(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _text(file: int) -> str:
    return os.pread(file, os.fstat(file).st_size, 0).decode(errors="surrogateescape")


# The latest state of the packet filter that was read, until the filter changes.
#
# Reading runs a program, so passes caused by routes and links share the latest result. The filter is read
# again when the kernel announces a change of nf_tables (which iptables uses as well), and after changes by
# pyflannel. The filter is also read periodically, because legacy iptables announces nothing.

log = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
_NFTABLES = 1 << 6
"""NFNLGRP_NFTABLES is group 7 (linux/nfnetlink.h)."""

_COALESCE_S = 0.1
"""Seconds to wait for further changes: a program that sets up a firewall changes hundreds of rules."""

_Dump = TypeVar("_Dump")


class RuleDump(Generic[_Dump]):
    """Keeps the latest output of a program, and sends a notification when the output changes. An exception of
    `read` is not kept.

    Within its `with` block, this object receives every change. `read` reads the rules. `resync_s` is the
    longest time for which a result is valid while `is_wanted`.
    """

    def __init__(self, read: Callable[[], Awaitable[_Dump]], resync_s: float) -> None:
        self._read = read
        self._resync_s = resync_s
        self._reading = asyncio.Lock()
        self._last: _Dump | None = None
        self._forgotten = (
            0  # number of calls of `forget`; a read that began before the latest call is not used
        )
        self.is_wanted = True
        self._notifications: NotificationSocket | None = None

    def __enter__(self) -> Self:
        try:
            self._notifications = NotificationSocket(_NFTABLES, _NETLINK_NETFILTER)
        except TargetError as error:
            log.debug(
                "The kernel does not announce changes of filter rules, so they are read every %.0f s: %s",
                self._resync_s,
                error,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._notifications is not None:
            self._notifications.close()
            self._notifications = None

    async def get(self) -> _Dump:
        """Return the latest result, even while the next read is in progress."""
        return await self._refresh() if self._last is None else self._last

    def forget(self) -> None:
        """Discard the latest result after a change by this process, so that the next use reads again."""
        self._last = None
        self._forgotten += 1

    def changes(self) -> ChangeChannel:
        """Open a channel that announces that a result differs from the last result, or that a read is
        needed.
        """
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        try:
            while True:
                await self._wait()
                if self.is_wanted and await self._has_changed():
                    announce()
        finally:
            self.forget()  # without notifications, the validity of a result is unknown

    async def _has_changed(self) -> bool:
        """Read again; return whether the result differs from the last valid result, if there was one."""
        before = self._last
        try:
            await self._refresh()
        except TargetError:
            self.forget()  # the next scan reports the error
        return before is None or before != self._last

    async def _refresh(self) -> _Dump:
        async with self._reading:
            began = self._forgotten
            read = await self._read()
            self._last = read if began == self._forgotten else None
            return read

    async def _wait(self) -> None:
        """Return soon after a change, and after the resync period at the latest."""
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
