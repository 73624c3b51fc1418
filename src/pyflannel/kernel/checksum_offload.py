"""Whether a device computes checksums itself: `ethtool --show-features`, tx-checksumming.

On a vxlan device this is tx-checksum-ip-generic and nothing else. Source: linux/ethtool.h.
"""

import fcntl
import socket
import struct
from array import array

_ETHTOOL = 0x8946  # SIOCETHTOOL (linux/sockios.h)
_GET = 0x16  # ETHTOOL_GTXCSUM
_SET = 0x17  # ETHTOOL_STXCSUM
_REQUEST = struct.Struct("=16sQ16x") if struct.calcsize("P") == 8 else struct.Struct("=16sI12x")
"""struct ifreq with a pointer in it."""


def offloads_checksums(link: str) -> bool:
    """Return whether checksums are left to the device.

    Raises:
        OSError: ENODEV, there is no such link; EOPNOTSUPP, it has no such setting.
    """
    return bool(_ask(link, _GET, 0))


def set_checksum_offload(link: str, is_on: bool) -> None:
    """Leave checksums to the device, or compute them before.

    Raises:
        OSError: there is no such link, it has no such setting, or the right is missing.
    """
    _ask(link, _SET, int(is_on))


def _ask(link: str, command: int, value: int) -> int:
    setting = array("I", [command, value])  # struct ethtool_value
    address, _ = setting.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as anything:
        fcntl.ioctl(anything, _ETHTOOL, _REQUEST.pack(link.encode(errors="surrogateescape"), address))
    return setting[1]
