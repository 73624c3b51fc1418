"""The frame of every netlink message: a header, a body, attributes.

Layout of the header, in octets: length 4 (header included), type 2, flags 2, sequence 4, port 4. An
attribute: length 2 (these four octets included), kind 2, payload. Both are padded to four octets, in the
host's byte order. Source: RFC 3549 section 2.2; linux/netlink.h.
"""

import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

from pyflannel.errors import WireError

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")

ERROR = 2
DONE = 3
"""nlmsg_type of answers (linux/netlink.h, NLMSG_ERROR, NLMSG_DONE)."""

REQUEST = 0x1
ACK = 0x4
DUMP_INTERRUPTED = 0x10
REPLACE = 0x100
EXCLUSIVE = 0x200
DUMP = 0x300
CREATE = 0x400
"""nlmsg_flags (linux/netlink.h)."""

_KIND_MASK = 0x3FFF  # less NLA_F_NESTED and NLA_F_NET_BYTEORDER
_NESTED = 0x8000


class Request(NamedTuple):
    """What a client asks of the kernel; the socket gives it a sequence number and asks for the answer."""

    kind: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """One message of the kernel.

    Attributes:
        kind: nlmsg_type.
        port: of the socket whose request it answers or announces; 0 when the kernel acted by itself.
        body: what follows the header, without padding.
    """

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


def pack(request: Request, sequence: int) -> bytes:
    """Return the octets of a request."""
    size = HEADER.size + len(request.body)
    header = HEADER.pack(size, request.kind, request.flags | REQUEST, sequence, 0)
    return header + request.body + bytes(-size & 3)


def split(octets: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram, in order.

    Raises:
        WireError: a length does not fit the datagram.
    """
    offset, end = 0, len(octets)
    while offset < end:
        if end - offset < HEADER.size:
            raise _truncated("header", end - offset, HEADER.size)
        size, kind, flags, sequence, port = HEADER.unpack_from(octets, offset)
        if size < HEADER.size or offset + size > end:
            raise _truncated("message", end - offset, size)
        yield Message(kind, flags, sequence, port, octets[offset + HEADER.size : offset + size])
        offset += (size + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    size = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(size, kind) + payload + bytes(-size & 3)


def nest(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(octets: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes from `offset` on, by kind; where a kind comes twice, the last stays.

    Raises:
        WireError: a length does not fit.
    """
    found: dict[int, bytes] = {}
    end = len(octets)
    while offset + ATTRIBUTE.size <= end:
        size, kind = ATTRIBUTE.unpack_from(octets, offset)
        if size < ATTRIBUTE.size or offset + size > end:
            raise _truncated("attribute", end - offset, size)
        found[kind & _KIND_MASK] = octets[offset + ATTRIBUTE.size : offset + size]
        offset += (size + 3) & ~3
    return found


def unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    """Return the fixed fields at the start of a body.

    Raises:
        WireError: the body is shorter than they are.
    """
    if len(body) < layout.size:
        raise _truncated("body", len(body), layout.size)
    return layout.unpack_from(body)


def integer(octets: bytes) -> int:
    """Return a number of the host's byte order."""
    return int.from_bytes(octets, sys.byteorder)


def text(octets: bytes) -> str:
    """Return a NUL-terminated text; octets that are no UTF-8 are kept as surrogates."""
    return octets.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _truncated(what: str, present: int, needed: int) -> WireError:
    return WireError(
        f"netlink {what} has {present} octets, needs {needed}",
        hint="The kernel speaks another form of netlink: report its version.",
    )
