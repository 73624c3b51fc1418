"""The links that programs set down while this process examines the host."""

import contextlib
from collections import Counter
from typing import Self

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import NotificationSocket
from pyflannel.wire.netlink.links import NEW, parse_name_set_down

_LINKS = 0x1
"""RTMGRP_LINK (linux/rtnetlink.h)."""

_PID_BITS = 0x3FFFFF
_IS_RANDOM = 0x80000000
"""The bits of the number of a netlink socket that contain the process ID, and the bit of a random number.

The kernel chooses the process ID for the first socket of a process, and otherwise a random negative number
(netlink_autobind in net/netlink/af_netlink.c). libnl adds a number in the upper bits.
"""


class LinkWatch:
    """Counts how often each link is set down, from entering on. Without the right to listen, it counts
    nothing.
    """

    def __enter__(self) -> Self:
        self._socket: NotificationSocket | None = None
        with contextlib.suppress(TargetError):
            self._socket = NotificationSocket(_LINKS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            self._socket.close()

    def set_down(self) -> dict[str, Counter[int]]:
        """Return how often each link was set down, by the process ID of the program.

        The program may have exited. The process ID is 0 if it is unknown.
        """
        found: dict[str, Counter[int]] = {}
        for message in self._socket.queued() if self._socket is not None else ():
            if message.kind == NEW and (name := parse_name_set_down(message.body)) is not None:
                pid = 0 if message.port & _IS_RANDOM else message.port & _PID_BITS
                found.setdefault(name, Counter())[pid] += 1
        return found
