"""Programs that are run for their answer, iptables and nft; and what was read, until it changes."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import NotificationSocket
from pyflannel.ports import Announce, ChangeChannel

_DEADLINE_S = 10.0


class MissingProgramError(TargetError):
    """The program is not installed."""

    def __init__(self, program: str, *, hint: str = "Install it, or put it on the PATH.") -> None:
        super().__init__(f"{program} is not installed", hint=hint)


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended, and what it printed."""

    status: int
    output: str
    complaint: str

    @property
    def cause(self) -> str:
        """What it said of its failure, in one line."""
        lines = [line.strip() for line in self.complaint.splitlines()]
        said = [line for line in lines if line and not line.startswith("#")]
        return said[0] if said else f"exit status {self.status}"


async def run_program(*words: str, given: str = "") -> Ran:
    """Run a program with `given` as its input, to its end; cancelled or too slow, it is killed.

    Raises:
        MissingProgramError: it is not installed.
        TargetError: it cannot be started, or did not end within its deadline.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},  # we look for words in what it says
        )
    except FileNotFoundError as error:
        raise MissingProgramError(words[0]) from error
    except OSError as error:
        raise TargetError(
            f"{words[0]} cannot be started: {error.strerror}", hint="Look at the file, and who may run it."
        ) from error
    try:
        async with asyncio.timeout(_DEADLINE_S):
            output, complaint = await process.communicate(given.encode(errors="surrogateescape"))
    except TimeoutError as error:
        raise TargetError(
            f"{words[0]} did not end within {_DEADLINE_S:.0f} s", hint="See what it waits for: ps, dmesg."
        ) from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ran(process.returncode or 0, _text(output), _text(complaint))


def _text(octets: bytes) -> str:
    return octets.decode(errors="surrogateescape")


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
    """The last reading, and the wish to know when the next differs.

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
        while True:
            await self._wait()
            if not self.is_wanted:
                continue
            before = self._last
            await self._refresh()
            if before is None or before != self._last:
                announce()

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
