"""TUN devices, made through their device file. Source: linux/if_tun.h; the kernel's tuntap.rst."""

import fcntl
import os
import struct

DEVICE_FILE = "/dev/net/tun"

_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_SET_PERSISTENT = 0x400454CB  # TUNSETPERSIST
_TUN = 0x0001
_NO_PACKET_INFORMATION = 0x1000
_EXCLUSIVE = 0x8000  # IFF_TUN_EXCL: an existing device is an error rather than attached to
_REQUEST = struct.Struct("=16sH22x")  # struct ifreq


def create_tun(name: str) -> None:
    """Create a TUN device that stays when nobody is attached; it carries bare IP packets.

    Raises:
        OSError: with the device file's name when that could not be opened, without one when the kernel
            refused the device.
    """
    descriptor = os.open(DEVICE_FILE, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = _REQUEST.pack(name.encode(), _TUN | _NO_PACKET_INFORMATION | _EXCLUSIVE)
        fcntl.ioctl(descriptor, _SET_INTERFACE, request)
        fcntl.ioctl(descriptor, _SET_PERSISTENT, 1)
    finally:
        os.close(descriptor)
