"""From a link's name to its index, in the network namespace that the process is in."""

import errno
import os
import socket


def link_index(name: str) -> int:
    """Return the index of a link.

    Raises:
        OSError: ENODEV, there is no such link.
    """
    try:
        return socket.if_nametoindex(name)
    except OSError as error:
        # The library keeps the number to itself.
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV), name) from error
