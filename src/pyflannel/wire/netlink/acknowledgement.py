"""The kernel's answer to one request: done, or an error number and, often, a text.

Layout of the body, in octets: error 4 (negative errno, or 0), header of the request 16, its body unless the
answer is capped, then attributes. Source: linux/netlink.h, struct nlmsgerr, enum nlmsgerr_attrs.
"""

import struct
from typing import NamedTuple

from pyflannel.wire.netlink.message import ERROR, HEADER, Message, attributes, text, unpack

_ERROR = struct.Struct("=i")
_CAPPED = 0x100
_HAS_ATTRIBUTES = 0x200
_TEXT = 1  # NLMSGERR_ATTR_MSG


class Acknowledgement(NamedTuple):
    """What became of the request with this sequence number.

    Attributes:
        errno: 0 when the request took effect.
        text: the kernel's own explanation (extended acknowledgement); "" when it gave none.
    """

    sequence: int
    errno: int
    text: str


def parse_acknowledgement(message: Message) -> Acknowledgement:
    """Return what an NLMSG_ERROR or NLMSG_DONE message says.

    Raises:
        WireError: fewer octets than its layout needs.
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
