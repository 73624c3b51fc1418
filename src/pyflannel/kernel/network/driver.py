"""The driver of an interface. Source: linux/ethtool.h, ETHTOOL_GDRVINFO."""

import array
import fcntl
import socket
import struct

_ETHTOOL = 0x8946  # SIOCETHTOOL
_GET_DRIVER_INFORMATION = 3
_INFORMATION = struct.Struct("=I32s32s32s32s32s12s5I")
_REQUEST = struct.Struct("16sP16x")  # struct ifreq, whose data is a pointer


def driver_of(asking: socket.socket, name: str) -> str:
    """Return the driver of the interface `name`, `vmxnet3`, `veth`; "" when it does not say.

    `asking` is any socket of the network namespace that the interface is in.
    """
    answer = array.array("B", bytes(_INFORMATION.size))
    struct.pack_into("=I", answer, 0, _GET_DRIVER_INFORMATION)
    try:
        fcntl.ioctl(asking, _ETHTOOL, _REQUEST.pack(name.encode(), answer.buffer_info()[0]))
    except OSError:
        return ""  # it is gone, or its driver has no name
    driver: bytes = _INFORMATION.unpack(answer)[1]
    return driver.partition(b"\0")[0].decode(errors="replace")
