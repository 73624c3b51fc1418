"""Unix sockets through netlink: the path to which a socket is bound.

/proc/net/unix contains the same paths, but any user can forge its lines, by a newline in the name of a
socket.

Layout of a request, in bytes: family 1, protocol 1, padding 2, states 4, inode 4, requested attributes 4,
cookie 8. Layout of an answer: family 1, type 1, state 1, padding 1, inode 4, cookie 8, then attributes.
Source: linux/unix_diag.h, struct unix_diag_req, struct unix_diag_msg; linux/sock_diag.h.
"""

import struct

from pyflannel.wire.netlink.message import Request, attributes, unpack

PROTOCOL = 4
"""NETLINK_SOCK_DIAG (linux/netlink.h)."""

_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_UNIX = 1  # AF_UNIX
_REQUEST = struct.Struct("=BBHIIIQ")
_ANSWER = struct.Struct("=BBBxI8x")
_EVERY_STATE = 0xFFFFFFFF
_SHOW_NAME = 1  # UDIAG_SHOW_NAME
_NO_COOKIE = 0xFFFFFFFFFFFFFFFF  # INET_DIAG_NOCOOKIE, twice
_NAME = 0  # UNIX_DIAG_NAME


def get_unix_socket(inode: int) -> Request:
    """Return the request for one socket of this network namespace. The kernel refuses the request if it does
    not know the socket.
    """
    fields = _REQUEST.pack(_UNIX, 0, 0, _EVERY_STATE, inode, _SHOW_NAME, _NO_COOKIE)
    return Request(_BY_FAMILY, 0, fields)


def parse_path(body: bytes) -> bytes | None:
    """Return the path to which a socket is bound, as its owner wrote it; None for an abstract name and for a
    socket without a name.

    Raises:
        WireError: fewer bytes than the layout needs, or an attribute is cut.
    """
    unpack(_ANSWER, body)
    return attributes(body, _ANSWER.size).get(_NAME, b"").partition(b"\0")[0] or None
