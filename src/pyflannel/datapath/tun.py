"""A TUN device that is there already, attached to by name."""

import errno
import os
from contextlib import suppress
from fcntl import ioctl
from socket import if_nametoindex
from struct import Struct

_DEVICE = "/dev/net/tun"

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
"""linux/if_tun.h: a device of layer 3, whose reads and writes are bare packets."""

_IFREQ = Struct("16sH22x")


class Tun:
    """An attachment to a TUN device. It never creates one.

    Raises:
        OSError: ENODEV when there is no such device, EBUSY when another program holds it, and what opening
            /dev/net/tun or attaching gives; the text names what it is about.
    """

    def __init__(self, link: str) -> None:
        self._link = link
        self._index = _index(link)
        try:
            self.descriptor = os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise OSError(error.errno, f"{_DEVICE}: {error.strerror}") from None
        try:
            _attach(self.descriptor, link)
            # A device that went away in between was created again, and goes with our descriptor.
            if _index(link) != self._index:
                raise OSError(errno.ENODEV, f"{link} was replaced while it was attached to")
        except OSError:
            os.close(self.descriptor)
            raise
        _accept_own_source(link)

    @property
    def is_current(self) -> bool:
        """Whether the device that we are attached to is still the one that has the name."""
        try:
            return _index(self._link) == self._index
        except OSError:
            return False

    def close(self) -> None:
        """Let go of the device, which stays if it is persistent."""
        os.close(self.descriptor)


def _attach(descriptor: int, link: str) -> None:
    """Attach, or create what is not there: the kernel makes no difference."""
    try:
        ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(link.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        raise OSError(error.errno, f"device {link}: {error.strerror}") from None


def _accept_own_source(link: str) -> None:
    """Let the host take packets from the device that carry its own address: the ICMP errors that we write.

    Nobody else can send such packets: what comes from the underlay is proven first. Where the setting is
    read-only the errors are lost, as the original's are.
    """
    with suppress(OSError), open(f"/proc/sys/net/ipv4/conf/{link}/accept_local", "w") as file:
        file.write("1")


def _index(link: str) -> int:
    try:
        return if_nametoindex(link)
    except OSError:
        raise OSError(errno.ENODEV, f"there is no device {link}") from None
