"""What was read of the packet filter, for as long as nobody changed it.

Reading means running a program, so the passes that routes and links ask for share what was read last. It
is read anew when the kernel announces a change of nf_tables, which iptables works on as well, after our own
changes, and by the clock: legacy iptables announces nothing.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import NotificationSocket

log = logging.getLogger(__name__)

_NETLINK_NETFILTER = 12
_NFTABLES = 1 << 6
"""NFNLGRP_NFTABLES is group 7 (linux/nfnetlink.h)."""

_COALESCE_S = 0.1
"""A program that sets up a firewall changes hundreds of rules in a row."""

_Dump = TypeVar("_Dump")


class RuleDump(Generic[_Dump]):
    """The last reading, and the wish to know when the next differs.

    Made, it hears every change from then on. `read` reads; `resync_s` is the longest that a reading counts
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
        try:
            self._notifications = NotificationSocket(_NFTABLES, _NETLINK_NETFILTER)
        except TargetError as error:
            log.debug("The kernel announces no rules, they are read every %.0f s: %s", resync_s, error)

    def close(self) -> None:
        """Let go of the socket."""
        if self._notifications is not None:
            self._notifications.close()

    async def get(self) -> _Dump:
        """Return what is there, as far as is known; while it is read anew, that is the reading before."""
        return await self._refresh() if self._last is None else self._last

    def forget(self) -> None:
        """Read again before the next use: we changed something."""
        self._last = None
        self._forgotten += 1

    async def changes(self) -> AsyncIterator[None]:
        """Yield when a reading differs from the last, or there has to be a new one."""
        while True:
            await self._wait()
            if not self.is_wanted:
                continue
            before = self._last
            await self._refresh()
            if before is None or before != self._last:
                yield

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
