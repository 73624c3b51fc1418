"""Traffic control: the clsact qdisc, and eBPF classifiers in it.

Layout of the body, in bytes: family 1, padding 3, index of the link 4, handle 4, parent 4, information 4,
then attributes. The upper half of a filter's information contains its priority, and the lower half contains
its protocol. Source: linux/rtnetlink.h, struct tcmsg; linux/pkt_sched.h; linux/pkt_cls.h.
"""

import struct

from msgspec import Struct

from pyflannel.wire.netlink.message import (
    ACK,
    CREATE,
    DUMP,
    EXCLUSIVE,
    REPLACE,
    Request,
    attribute,
    attributes,
    integer,
    nest,
    text,
    unpack,
)

NEW_QDISC = 36
DELETE_QDISC = 37
_GET_QDISC = 38
NEW_FILTER = 44
DELETE_FILTER = 45
GET_FILTER = 46
"""Values of nlmsg_type (linux/rtnetlink.h, RTM_NEWQDISC and following)."""

INGRESS = 0xFFFFFFF2
EGRESS = 0xFFFFFFF3
"""Parents of filters in a clsact qdisc."""

_LAYOUT = struct.Struct("=B3xiIII")
_U32 = struct.Struct("=I")

_CLSACT_HANDLE = 0xFFFF0000
_CLSACT_PARENT = 0xFFFFFFF1

_EVERY_PROTOCOL = integer((0x0003).to_bytes(2, "big"))  # ETH_P_ALL, in network order

LAST = 0xFFFF << 16 | _EVERY_PROTOCOL
"""The information field of a filter with the last priority."""

_KIND = 1
_OPTIONS = 2
# Attributes within _OPTIONS of a bpf classifier.
_DESCRIPTOR = 6
_NAME = 7
_FLAGS = 8
_ID = 11
_DIRECT_ACTION = 1


class BpfFilter(Struct, frozen=True, kw_only=True):
    """An eBPF classifier of a link.

    Attributes:
        information: priority and protocol.
        program: identifier of the program of the classifier.
    """

    handle: int
    information: int
    program: int


def create_clsact(link: int) -> Request:
    """Return the request that adds the qdisc, to which filters can be attached. The kernel refuses the
    request if the link has this qdisc already.
    """
    return Request(NEW_QDISC, ACK | CREATE | EXCLUSIVE, _clsact(link))


def delete_clsact(link: int) -> Request:
    """Return the request that removes the qdisc and all its filters."""
    return Request(DELETE_QDISC, ACK, _clsact(link))


def dump_qdiscs() -> Request:
    """Return the request for the queueing disciplines of all links."""
    return Request(_GET_QDISC, DUMP, _LAYOUT.pack(0, 0, 0, 0, 0))


def parse_qdisc(body: bytes) -> tuple[int, str]:
    """Return the link and the kind of the queueing discipline of a message's body."""
    _, link, _, _, _ = unpack(_LAYOUT, body)
    return link, text(attributes(body, _LAYOUT.size).get(_KIND, b""))


def dump_filters(link: int, parent: int) -> Request:
    """Return the request for the filters of one direction of a link."""
    return Request(GET_FILTER, DUMP, _LAYOUT.pack(0, link, 0, parent, 0))


def parse_filter(body: bytes) -> BpfFilter | None:
    """Return the eBPF classifier of a message's body; None if the message describes another filter.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    _, _, handle, _, information = unpack(_LAYOUT, body)
    found = attributes(body, _LAYOUT.size)
    if text(found.get(_KIND, b"")) != "bpf":
        return None
    program = attributes(found.get(_OPTIONS, b"")).get(_ID)
    if program is None:
        return None  # the first message of a list of filters
    return BpfFilter(handle=handle, information=information, program=integer(program))


def create_filter(link: int, parent: int, name: str, program: int) -> Request:
    """Return the request that adds a program, given by its descriptor, in direct-action mode.

    This program runs after the filters of other programs. If a filter is added without a priority, the kernel
    chooses a priority before the priorities of the existing filters, and at most 49152.
    """
    body = _LAYOUT.pack(0, link, 0, parent, LAST) + _options(name, program)
    return Request(NEW_FILTER, ACK | CREATE | EXCLUSIVE, body)


def replace_filter(link: int, parent: int, old: BpfFilter, name: str, program: int) -> Request:
    """Return the request that replaces a program by another program atomically."""
    body = _LAYOUT.pack(0, link, old.handle, parent, old.information) + _options(name, program)
    return Request(NEW_FILTER, ACK | CREATE | REPLACE, body)


def delete_filter(link: int, parent: int, old: BpfFilter) -> Request:
    """Return the request that removes a program."""
    body = _LAYOUT.pack(0, link, old.handle, parent, old.information) + attribute(_KIND, b"bpf\0")
    return Request(DELETE_FILTER, ACK, body)


def _clsact(link: int) -> bytes:
    return _LAYOUT.pack(0, link, _CLSACT_HANDLE, _CLSACT_PARENT, 0) + attribute(_KIND, b"clsact\0")


def _options(name: str, program: int) -> bytes:
    return attribute(_KIND, b"bpf\0") + nest(
        _OPTIONS,
        attribute(_DESCRIPTOR, _U32.pack(program)),
        attribute(_NAME, name.encode() + b"\0"),
        attribute(_FLAGS, _U32.pack(_DIRECT_ACTION)),
    )
