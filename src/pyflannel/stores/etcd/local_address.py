"""Whether an address is still one of this host's: a connection from one that is not hears nothing."""

import socket

Address = tuple[str, int] | tuple[str, int, int, int]
"""Where a socket is bound, in one family or the other."""


def is_still_ours(address: Address) -> bool:
    """Return whether a socket can be bound to the address, on any port."""
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True
