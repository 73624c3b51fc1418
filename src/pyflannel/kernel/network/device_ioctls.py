"""ioctl(2) on network devices: creates TUN devices, reads and sets offloads, and reads the names of
drivers.
"""

import array
import fcntl
import os
import socket
import struct

DEVICE_FILE = "/dev/net/tun"

_SET_INTERFACE = 0x400454CA  # TUNSETIFF
_SET_PERSISTENT = 0x400454CB  # TUNSETPERSIST
_TUN = 0x0001
_NO_PACKET_INFORMATION = 0x1000
_EXCLUSIVE = 0x8000  # IFF_TUN_EXCL: fail if the device exists
_REQUEST = struct.Struct("=16sH22x")  # struct ifreq


def create_tun(name: str) -> None:
    """Create a persistent TUN device for IP packets without a header.

    Raises:
        OSError: the error has a file name if the device file cannot be opened, and no file name if the kernel
            refused the device.
    """
    descriptor = os.open(DEVICE_FILE, os.O_RDWR | os.O_CLOEXEC)
    try:
        request = _REQUEST.pack(name.encode(), _TUN | _NO_PACKET_INFORMATION | _EXCLUSIVE)
        fcntl.ioctl(descriptor, _SET_INTERFACE, request)
        fcntl.ioctl(descriptor, _SET_PERSISTENT, 1)
    finally:
        os.close(descriptor)


_GET_INDEX = 0x8933  # SIOCGIFINDEX (linux/sockios.h)
_INDEX_REQUEST = struct.Struct("=16si20x")  # struct ifreq


def link_index(name: str) -> int:
    """Return the index of a link in the network namespace of the process.

    Raises:
        OSError: ENODEV if the link does not exist.
    """
    request = _INDEX_REQUEST.pack(name.encode(errors="surrogateescape"), 0)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as anything:
            index: int = _INDEX_REQUEST.unpack(fcntl.ioctl(anything, _GET_INDEX, request))[1]
    except OSError as error:
        error.filename = name
        raise
    return index


# Offloads of a device, which are tasks of the sender or receiver that the device does. `ethtool
# --show-features`.
#
# On a vxlan device, tx-checksumming is only tx-checksum-ip-generic. Source: linux/ethtool.h.

_ETHTOOL = 0x8946  # SIOCETHTOOL (linux/sockios.h)
_GET_CHECKSUMS, _SET_CHECKSUMS = 0x16, 0x17  # ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM
_GET_TSO, _SET_TSO = 0x1E, 0x1F  # ETHTOOL_GTSO, ETHTOOL_STSO
_GET_GRO, _SET_GRO = 0x2B, 0x2C  # ETHTOOL_GGRO, ETHTOOL_SGRO
_OFFLOAD_REQUEST = struct.Struct("=16sQ16x") if struct.calcsize("P") == 8 else struct.Struct("=16sI12x")
"""struct ifreq that contains a pointer."""


def offloads_checksums(link: str) -> bool:
    """Return whether the device computes checksums.

    Raises:
        OSError: ENODEV if the link does not exist. EOPNOTSUPP if the link does not have this setting.
    """
    return bool(_ask(link, _GET_CHECKSUMS, 0))


def set_checksum_offload(link: str, is_on: bool) -> None:
    """Let the device compute checksums, or let the kernel compute them before the device.

    Raises:
        OSError: the link or the setting does not exist, or a right is missing.
    """
    _ask(link, _SET_CHECKSUMS, int(is_on))


def has_gro(link: str) -> bool:
    """Return whether an end of a veth coalesces TCP segments from the other end.

    Raises:
        OSError: ENODEV if the link does not exist. EOPNOTSUPP if the link does not have this setting.
    """
    return bool(_ask(link, _GET_GRO, 0)) and not _ask(link, _GET_TSO, 0)


def set_gro(link: str, is_on: bool) -> None:
    """Enable GRO and disable TSO on an end of a veth, so that this end coalesces received TCP segments; or
    set both to the reverse.

    Raises:
        OSError: the link or the setting does not exist, or a right is missing.
    """
    _ask(link, _SET_TSO, int(not is_on))
    _ask(link, _SET_GRO, int(is_on))


def _ask(link: str, command: int, value: int) -> int:
    setting = array.array("I", [command, value])  # struct ethtool_value
    address, _ = setting.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as anything:
        fcntl.ioctl(anything, _ETHTOOL, _OFFLOAD_REQUEST.pack(link.encode(errors="surrogateescape"), address))
    return setting[1]


_GET_DRIVER_INFORMATION = 3
_INFORMATION = struct.Struct("=I32s32s32s32s32s12s5I")
_DRIVER_REQUEST = struct.Struct("16sP16x")  # struct ifreq, whose data field is a pointer


def driver_of(asking: socket.socket, name: str) -> str:
    """Return the driver of the interface `name`, such as `vmxnet3` or `veth`; "" if it is unknown.

    The argument `asking` is any socket of the network namespace of the interface.
    """
    answer = array.array("B", bytes(_INFORMATION.size))
    struct.pack_into("=I", answer, 0, _GET_DRIVER_INFORMATION)
    try:
        fcntl.ioctl(asking, _ETHTOOL, _DRIVER_REQUEST.pack(name.encode(), answer.buffer_info()[0]))
    except OSError:
        return ""  # the interface was removed, or its driver has no name
    driver: bytes = _INFORMATION.unpack(answer)[1]
    return driver.partition(b"\0")[0].decode(errors="replace")
