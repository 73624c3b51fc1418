"""Addresses: RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR.

Layout of the body, in bytes: family 1, prefix length 1, flags 1, scope 1, index 4, then attributes.
Source: linux/if_addr.h, struct ifaddrmsg.
"""

import struct
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from msgspec import Struct

from pyflannel.wire.netlink.message import (
    ACK,
    CREATE,
    DUMP,
    INET,
    INET6,
    REPLACE,
    Request,
    attribute,
    attributes,
    family_of,
    integer,
    parse_address,
    parse_interface,
    unpack,
)

NEW = 20
DELETE = 21
GET = 22
"""nlmsg_type (linux/rtnetlink.h, RTM_NEWADDR and following)."""

SECONDARY = 0x01
DUPLICATE = 0x08
TENTATIVE = 0x40
DEPRECATED = 0x20
PERMANENT = 0x80
NO_DUPLICATE_DETECTION = 0x02
NO_PREFIX_ROUTE = 0x200
"""Flags (linux/if_addr.h). SECONDARY of IPv4 is the same bit as TEMPORARY of IPv6."""

_LAYOUT = struct.Struct("=BBBBi")
_U32 = struct.Struct("=I")

_ADDRESS = 1
_LOCAL = 2
_FLAGS = 8


class AddressRecord(Struct, frozen=True, kw_only=True):
    """An address as the kernel reports it.

    Attributes:
        index: index of the link of the address.
        peer: the other end of a point-to-point address; None if the other end has the same address.
        scope: the rt_scope of the address: 0 for global.
        flags: as above.
    """

    index: int
    address: IPv4Interface | IPv6Interface
    peer: IPv4Address | IPv6Address | None = None
    scope: int = 0
    flags: int = 0


def dump_addresses(family: int = 0) -> Request:
    """Return the request for every address of a family; 0 for all families."""
    return Request(GET, DUMP, _LAYOUT.pack(family, 0, 0, 0, 0))


def address_index(body: bytes) -> int:
    """Return only the link's index. The function is fast, and foreign addresses need no full record."""
    return unpack(_LAYOUT, body)[4]


def parse_address_message(body: bytes) -> AddressRecord | None:
    """Return the address of a message's body; None for families other than IP.

    Raises:
        WireError: the body is too short or contains no address, or an attribute has an invalid length.
    """
    family, length, flags, scope, index = unpack(_LAYOUT, body)
    if family not in (INET, INET6):
        return None
    found = attributes(body, _LAYOUT.size)
    # If a message contains _LOCAL, _LOCAL is the address, and _ADDRESS is the other end.
    remote = parse_address(found.get(_ADDRESS, b""))
    local = parse_address(found[_LOCAL]) if _LOCAL in found else remote
    if _FLAGS in found:
        flags = integer(found[_FLAGS])
    return AddressRecord(
        index=index,
        address=parse_interface(local.packed, length),
        peer=remote if remote != local else None,
        scope=scope,
        flags=flags,
    )


def add_address(index: int, address: IPv4Interface | IPv6Interface) -> Request:
    """Return the request that adds an address of global scope, or makes a temporary address permanent."""
    return Request(NEW, ACK | CREATE | REPLACE, _body(index, address, None))


def remove_address(
    index: int, address: IPv4Interface | IPv6Interface, peer: IPv4Address | IPv6Address | None = None
) -> Request:
    """Return the request that removes exactly this address, prefix length and peer."""
    return Request(DELETE, ACK, _body(index, address, peer))


def _body(
    index: int, address: IPv4Interface | IPv6Interface, peer: IPv4Address | IPv6Address | None
) -> bytes:
    header = _LAYOUT.pack(family_of(address), address.network.prefixlen, 0, 0, index)
    remote = address.ip if peer is None else peer
    body = header + attribute(_LOCAL, address.packed) + attribute(_ADDRESS, remote.packed)
    if address.version == 6:
        # With these flags, the address is usable immediately instead of after one second, and the kernel adds
        # no route to its prefix.
        body += attribute(_FLAGS, _U32.pack(NO_DUPLICATE_DETECTION | NO_PREFIX_ROUTE))
    return body
