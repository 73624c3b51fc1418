"""Next hops as objects that routes refer to: RTM_NEWNEXTHOP, RTM_DELNEXTHOP; kernel 5.3 and later.

Layout of the body, in octets: family 1, scope 1, protocol 1, padding 1, flags 4, then attributes. Source:
linux/nexthop.h, struct nhmsg.
"""

import struct
from ipaddress import IPv4Address, IPv6Address

from pyflannel.wire.netlink.message import (
    ACK,
    CREATE,
    DUMP,
    REPLACE,
    Request,
    attribute,
    attributes,
    family_of,
    integer,
    unpack,
)

NEW = 104
DELETE = 105
GET = 106
"""nlmsg_type (linux/rtnetlink.h, RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP)."""

_LAYOUT = struct.Struct("=BBBxI")
_U32 = struct.Struct("=I")

_ONLINK = 0x4  # RTNH_F_ONLINK
_ID = 1
_LINK = 5
_GATEWAY = 6


def put_next_hop(
    number: int, index: int, gateway: IPv4Address | IPv6Address, *, protocol: int, is_onlink: bool
) -> Request:
    """Return the request that makes a next hop, or changes it below the routes that refer to it."""
    body = _LAYOUT.pack(family_of(gateway), 0, protocol, _ONLINK if is_onlink else 0)
    body += attribute(_ID, _U32.pack(number))
    body += attribute(_LINK, _U32.pack(index)) + attribute(_GATEWAY, gateway.packed)
    return Request(NEW, ACK | CREATE | REPLACE, body)


def remove_next_hop(number: int) -> Request:
    """Return the request that removes a next hop, and with it the routes that refer to it."""
    return Request(DELETE, ACK, _LAYOUT.pack(0, 0, 0, 0) + attribute(_ID, _U32.pack(number)))


def dump_next_hops() -> Request:
    """Return the request for every next hop."""
    return Request(GET, DUMP, _LAYOUT.pack(0, 0, 0, 0))


def parse_next_hop_number(body: bytes) -> int:
    """Return the number of a next hop.

    Raises:
        WireError: too short, or an attribute does not fit.
    """
    return integer(attributes(body, _LAYOUT.size).get(_ID, b""))


def next_hop_protocol(body: bytes) -> int:
    """Return who made a next hop, as a rtm_protocol.

    Raises:
        WireError: too short.
    """
    return unpack(_LAYOUT, body)[2]
