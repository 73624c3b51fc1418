"""What a device does by itself of a sender's or receiver's work: `ethtool --show-features`.

On a vxlan device tx-checksumming is tx-checksum-ip-generic and nothing else. Source: linux/ethtool.h.
"""

import fcntl
import socket
import struct
from array import array

_ETHTOOL = 0x8946  # SIOCETHTOOL (linux/sockios.h)
_GET_CHECKSUMS, _SET_CHECKSUMS = 0x16, 0x17  # ETHTOOL_GTXCSUM, ETHTOOL_STXCSUM
_GET_TSO, _SET_TSO = 0x1E, 0x1F  # ETHTOOL_GTSO, ETHTOOL_STSO
_GET_GRO, _SET_GRO = 0x2B, 0x2C  # ETHTOOL_GGRO, ETHTOOL_SGRO
_REQUEST = struct.Struct("=16sQ16x") if struct.calcsize("P") == 8 else struct.Struct("=16sI12x")
"""struct ifreq with a pointer in it."""


def offloads_checksums(link: str) -> bool:
    """Return whether checksums are left to the device.

    Raises:
        OSError: ENODEV, there is no such link; EOPNOTSUPP, it has no such setting.
    """
    return bool(_ask(link, _GET_CHECKSUMS, 0))


def set_checksum_offload(link: str, is_on: bool) -> None:
    """Leave checksums to the device, or compute them before.

    Raises:
        OSError: there is no such link, it has no such setting, or the right is missing.
    """
    _ask(link, _SET_CHECKSUMS, int(is_on))


def has_gro(link: str) -> bool:
    """Return whether an end of a veth joins the segments of TCP that come from the other.

    Raises:
        OSError: ENODEV, there is no such link; EOPNOTSUPP, it has no such setting.
    """
    return bool(_ask(link, _GET_GRO, 0)) and not _ask(link, _GET_TSO, 0)


def set_gro(link: str, is_on: bool) -> None:
    """Let an end of a veth join segments, and send none that are to be cut by whoever gets them; or neither.

    Raises:
        OSError: there is no such link, it has no such setting, or the right is missing.
    """
    _ask(link, _SET_TSO, int(not is_on))
    _ask(link, _SET_GRO, int(is_on))


def _ask(link: str, command: int, value: int) -> int:
    setting = array("I", [command, value])  # struct ethtool_value
    address, _ = setting.buffer_info()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as anything:
        fcntl.ioctl(anything, _ETHTOOL, _REQUEST.pack(link.encode(errors="surrogateescape"), address))
    return setting[1]
