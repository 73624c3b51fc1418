"""Netlink messages: header, attributes, acknowledgements, and the addresses in attributes."""

import struct
import sys
from collections.abc import Iterator
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from typing import NamedTuple

from pyflannel.errors import WireError

# Every netlink message consists of a header, a body and attributes.
#
# Layout of the header, in bytes: length 4 (header included), type 2, flags 2, sequence 4, port 4. Layout of
# an attribute, in bytes: length 2 (including these four bytes), kind 2, payload. Messages and attributes are
# padded to four bytes. Numbers are in the host's byte order. Source: RFC 3549 section 2.2; linux/netlink.h.

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
KIND_AT, PORT_AT = 4, 12

ERROR = 2
DONE = 3
"""Values of nlmsg_type for answers (linux/netlink.h, NLMSG_ERROR, NLMSG_DONE)."""

REQUEST = 0x1
ACK = 0x4
DUMP_INTERRUPTED = 0x10
REPLACE = 0x100
EXCLUSIVE = 0x200
DUMP = 0x300
CREATE = 0x400
"""nlmsg_flags (linux/netlink.h)."""

_KIND_MASK = 0x3FFF  # without the bits NLA_F_NESTED and NLA_F_NET_BYTEORDER
_NESTED = 0x8000


class Request(NamedTuple):
    """A request to the kernel. The socket adds the sequence number and asks for an answer."""

    kind: int
    flags: int
    body: bytes


class Message(NamedTuple):
    """One message of the kernel.

    Attributes:
        kind: nlmsg_type.
        port: number of the socket whose request caused the message; 0 if no request caused it.
        body: the bytes after the header, without padding.
    """

    kind: int
    flags: int
    sequence: int
    port: int
    body: bytes


def pack(request: Request, sequence: int) -> bytes:
    """Return a request as bytes."""
    size = HEADER.size + len(request.body)
    header = HEADER.pack(size, request.kind, request.flags | REQUEST, sequence, 0)
    return header + request.body + bytes(-size & 3)


def split(data: bytes) -> Iterator[Message]:
    """Yield the messages of one datagram, in order.

    Raises:
        WireError: a length is beyond the end of the datagram.
    """
    offset, end = 0, len(data)
    while offset < end:
        if end - offset < HEADER.size:
            raise _truncated("header", end - offset, HEADER.size)
        size, kind, flags, sequence, port = HEADER.unpack_from(data, offset)
        if size < HEADER.size or offset + size > end:
            raise _truncated("message", end - offset, size)
        yield Message(kind, flags, sequence, port, data[offset + HEADER.size : offset + size])
        offset += (size + 3) & ~3


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded."""
    size = ATTRIBUTE.size + len(payload)
    return ATTRIBUTE.pack(size, kind) + payload + bytes(-size & 3)


def nest(kind: int, *attributes: bytes) -> bytes:
    """Return an attribute that contains attributes."""
    return attribute(kind | _NESTED, b"".join(attributes))


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return the attributes from `offset` on, by kind. If a kind occurs twice, its last payload applies.

    Raises:
        WireError: a length is beyond the end of the bytes.
    """
    found: dict[int, bytes] = {}
    end = len(data)
    while offset + ATTRIBUTE.size <= end:
        size, kind = ATTRIBUTE.unpack_from(data, offset)
        if size < ATTRIBUTE.size or offset + size > end:
            raise _truncated("attribute", end - offset, size)
        found[kind & _KIND_MASK] = data[offset + ATTRIBUTE.size : offset + size]
        offset += (size + 3) & ~3
    return found


def unpack(layout: struct.Struct, body: bytes) -> tuple[int, ...]:
    """Return the fixed fields at the start of a body.

    Raises:
        WireError: the body is too short.
    """
    if len(body) < layout.size:
        raise _truncated("body", len(body), layout.size)
    return layout.unpack_from(body)


def integer(data: bytes) -> int:
    """Return a number in the host's byte order."""
    return int.from_bytes(data, sys.byteorder)


def text(data: bytes) -> str:
    """Return a NUL-terminated text. Bytes that are not UTF-8 become surrogates."""
    return data.split(b"\0", 1)[0].decode(errors="surrogateescape")


def _truncated(what: str, present: int, needed: int) -> WireError:
    return WireError(
        f"netlink {what} has {present} bytes, but needs {needed}",
        hint="The kernel uses an unknown form of netlink: report the version of the kernel.",
    )


# The kernel's answer to one request: success, or an error number and often a text.
#
# Layout of the body, in bytes: error 4 (negative errno, or 0), header of the request 16, body of the request
# unless the answer is capped, then attributes. Source: linux/netlink.h, struct nlmsgerr, enum nlmsgerr_attrs.

_ERROR = struct.Struct("=i")
_CAPPED = 0x100
_HAS_ATTRIBUTES = 0x200
_TEXT = 1  # NLMSGERR_ATTR_MSG


class Acknowledgement(NamedTuple):
    """The result of a request.

    Attributes:
        errno: 0 if the request took effect.
        text: the kernel's explanation (extended acknowledgement); "" if there is none.
    """

    sequence: int
    errno: int
    text: str


def parse_acknowledgement(message: Message) -> Acknowledgement:
    """Return the content of an NLMSG_ERROR or NLMSG_DONE message.

    Raises:
        WireError: the body is shorter than its layout.
    """
    body = message.body
    (error,) = unpack(_ERROR, body)
    errno = -error
    explanation = ""
    if message.flags & _HAS_ATTRIBUTES:
        explanation = text(attributes(body, _attributes_offset(message)).get(_TEXT, b""))
    return Acknowledgement(message.sequence, errno, explanation)


def _attributes_offset(message: Message) -> int:
    if message.kind != ERROR:
        return _ERROR.size
    if message.flags & _CAPPED:
        return _ERROR.size + HEADER.size
    size, *_ = unpack(HEADER, message.body[_ERROR.size :])
    return _ERROR.size + ((size + 3) & ~3)


def parse_mac(data: bytes) -> str:
    """Return bytes in lower-case hexadecimal, with colons; "" for no bytes."""
    return data.hex(":") if data else ""


def packed_mac(mac: str) -> bytes:
    """Return the six bytes of a MAC address.

    Raises:
        WireError: the text is not a MAC address.
    """
    try:
        data = bytes.fromhex(mac.replace(":", ""))
    except ValueError:
        data = b""
    if len(data) != 6:
        raise WireError(
            f"a MAC address has six bytes in hexadecimal, not {mac!r}",
            hint="Check the lease of the peer: its VtepMAC is invalid.",
        )
    return data


INET = 2
INET6 = 10
"""Address families of Linux (linux/socket.h)."""

IpValue = IPv4Address | IPv6Address | IPv4Interface | IPv6Interface | IPv4Network | IPv6Network


def family_of(value: IpValue) -> int:
    """Return the family number of an address or a prefix."""
    return INET if value.version == 4 else INET6


def parse_address(data: bytes) -> IPv4Address | IPv6Address:
    """Return the address of 4 or 16 bytes.

    Raises:
        WireError: the number of bytes is neither 4 nor 16.
    """
    if len(data) == 4:
        return IPv4Address(int.from_bytes(data, "big"))
    if len(data) == 16:
        return IPv6Address(int.from_bytes(data, "big"))
    raise WireError(
        f"an IP address has 4 or 16 bytes, not {len(data)}",
        hint="The kernel uses an unknown form of netlink: report the version of the kernel.",
    )


def parse_interface(data: bytes, length: int) -> IPv4Interface | IPv6Interface:
    """Return the address of 4 or 16 bytes with its prefix length.

    Raises:
        WireError: the number of bytes is neither 4 nor 16, or the prefix length is too large.
    """
    address = parse_address(data)
    _check_length(address, length)
    if isinstance(address, IPv4Address):
        return IPv4Interface((int(address), length))
    return IPv6Interface((int(address), length))


def parse_prefix(data: bytes, length: int) -> IPv4Network | IPv6Network:
    """Return the prefix with this address of 4 or 16 bytes and this length. Bits beyond the length are
    ignored.

    Raises:
        WireError: the number of bytes is neither 4 nor 16, or the prefix length is too large.
    """
    address = parse_address(data)
    _check_length(address, length)
    beyond = address.max_prefixlen - length
    base = int(address) >> beyond << beyond
    if isinstance(address, IPv4Address):
        return IPv4Network((base, length))
    return IPv6Network((base, length))


def _check_length(address: IPv4Address | IPv6Address, length: int) -> None:
    if length > address.max_prefixlen:
        raise WireError(
            f"a prefix of {address} has at most {address.max_prefixlen} bits, not {length}",
            hint="The kernel uses an unknown form of netlink: report the version of the kernel.",
        )
