"""The kernel's help that a data path of batches needs; without a piece the packets go one by one."""

from collections.abc import Callable
from enum import IntFlag


class Offload(IntFlag):
    """What the kernel does for us; each is used where it is there."""

    RUN_WRITE = 1  # the device takes a run of TCP segments in one write (IFF_VNET_HDR)
    SEGMENTED_SEND = 2  # one call sends many datagrams (UDP_SEGMENT)
    JOINED_RECEIVE = 4  # one call receives many datagrams (UDP_GRO)


class Offloads:
    """Which of them are in use; each that is missing is said, once."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: set[Offload] = set()
        self.used = Offload(0)

    def use(self, offload: Offload) -> None:
        """Note that it works."""
        self.used |= offload

    def lack(self, offload: Offload, reason: OSError | str) -> None:
        """Note that it does not, and why."""
        self.used &= ~offload
        if offload not in self._said:
            self._said.add(offload)
            self._say(f"{offload.name} is not to be had, packets go one by one: {reason}")
