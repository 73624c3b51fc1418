"""Neighbours and FDB entries: RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH.

Layout of the body, in bytes: family 1, padding 3, index of the link 4, state 2, flags 1, type 1, then
attributes. The family is AF_INET or AF_INET6 for a neighbour, AF_BRIDGE for an FDB entry. Source:
linux/neighbour.h, struct ndmsg.
"""

import struct
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from pyflannel.wire.netlink.message import (
    ACK,
    ATTRIBUTE,
    CREATE,
    DUMP,
    INET,
    INET6,
    REPLACE,
    Request,
    attribute,
    attributes,
    family_of,
    packed_mac,
    parse_address,
    parse_mac,
    unpack,
)

NEW = 28
DELETE = 29
GET = 30
"""Values of nlmsg_type (linux/rtnetlink.h, RTM_NEWNEIGH and following)."""

BRIDGE = 7
"""AF_BRIDGE (linux/socket.h)."""

PERMANENT = 0x80
NO_ARP = 0x40
_INCOMPLETE, _FAILED = 0x01, 0x20
"""States (linux/neighbour.h, NUD_PERMANENT, NUD_NOARP, NUD_INCOMPLETE, NUD_FAILED)."""

_SELF = 0x02  # NTF_SELF means an entry of the device, not of its bridge
_UNICAST = 1  # RTN_UNICAST
_UNSPECIFIED = 0  # AF_UNSPEC

_LAYOUT = struct.Struct("=BxxxiHBB")
_U32 = struct.Struct("=I")

_DESTINATION = 1
_MAC = 2
_CACHE_INFO = 3
_PROBES = 4
_PORT = 6
_VNI = 7
_INDEX = 8
_SOURCE_VNI = 11
_NEXT_HOP = 13
_UNPLANNED = frozenset({_PORT, _VNI, _INDEX, _SOURCE_VNI, _NEXT_HOP})

_AGES_HEADERS = (ATTRIBUTE.pack(20, _CACHE_INFO), ATTRIBUTE.pack(8, _PROBES))
"""Kinds of the first attribute that changes with use: ages of an FDB entry, counter of a neighbour."""

_AGES_AT = _LAYOUT.size + 8 + 12
"""Offset of the ages in a message with one IPv4 address and one MAC address."""


class NeighbourRecord(Struct, frozen=True, kw_only=True):
    """A neighbour as the kernel reports it.

    Attributes:
        index: index of the link.
        mac: MAC address in lower case with colons; "" if it is unknown.
        is_unresolved: True if the kernel has asked for the MAC address without an answer.
        is_unasked: True if the kernel does not ask for the MAC address at this link, and uses the MAC address
            of the link.
    """

    index: int
    address: IPv4Address | IPv6Address
    mac: str
    is_permanent: bool = True
    is_unresolved: bool = False
    is_unasked: bool = False


class FdbRecord(Struct, frozen=True, kw_only=True):
    """An FDB entry of a device as the kernel reports it: one record for each destination of a MAC address.

    Attributes:
        index: index of the link.
        destination: None if the entry has a group of next hops instead.
        is_plain: True if the entry has no port, VNI, link or group of next hops.
    """

    index: int
    mac: str
    destination: IPv4Address | IPv6Address | None
    is_permanent: bool = True
    is_plain: bool = True


def dump_neighbours(index: int) -> Request:
    """Return the request for a link's neighbours of all families. Before Linux 4.4, the kernel returns the
    neighbours of all links.
    """
    return Request(GET, DUMP, _dump_body(_UNSPECIFIED, index))


def dump_fdb(index: int) -> Request:
    """Return the request for a device's FDB entries. On an old kernel, the kernel returns the entries of
    all devices.
    """
    return Request(GET, DUMP, _dump_body(BRIDGE, index))


def entry_index(body: bytes) -> int:
    """Return only the link's index. The function must be fast, because every packet may change a neighbour's
    state.

    Raises:
        WireError: the body is too short.
    """
    return unpack(_LAYOUT, body)[1]


def lasting_part(body: bytes) -> bytes:
    """Return the part of a body that changes only if the entry changes, and not when the entry is used.

    If the body has another form than the body of a permanent IPv4 entry, the whole body is returned.
    """
    if body[_AGES_AT : _AGES_AT + 4] in _AGES_HEADERS:
        return body[:_AGES_AT]
    return body


def parse_neighbour(body: bytes) -> NeighbourRecord | None:
    """Return the neighbour of a message's body; None for an FDB entry.

    Raises:
        WireError: the body is too short or contains no address, or an attribute has an invalid length.
    """
    family, index, state, _, _ = unpack(_LAYOUT, body)
    if family not in (INET, INET6):
        return None
    found = attributes(body, _LAYOUT.size)
    return NeighbourRecord(
        index=index,
        address=parse_address(found.get(_DESTINATION, b"")),
        mac=parse_mac(found.get(_MAC, b"")),
        is_permanent=bool(state & PERMANENT),
        is_unresolved=bool(state & (_INCOMPLETE | _FAILED)),
        is_unasked=bool(state & NO_ARP),
    )


def parse_fdb_entry(body: bytes) -> FdbRecord | None:
    """Return the FDB entry of a message's body; None for a neighbour, and for an entry of the bridge.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    family, index, state, flags, _ = unpack(_LAYOUT, body)
    if family != BRIDGE or not flags & _SELF:
        return None
    found = attributes(body, _LAYOUT.size)
    return FdbRecord(
        index=index,
        mac=parse_mac(found.get(_MAC, b"")),
        destination=parse_address(found[_DESTINATION]) if _DESTINATION in found else None,
        is_permanent=bool(state & (PERMANENT | NO_ARP)),
        is_plain=_UNPLANNED.isdisjoint(found),
    )


def put_neighbour(index: int, address: IPv4Address | IPv6Address, mac: str) -> Request:
    """Return the request that adds a permanent neighbour, or replaces the entry of this address."""
    body = _LAYOUT.pack(family_of(address), index, PERMANENT, 0, _UNICAST)
    body += attribute(_DESTINATION, address.packed) + attribute(_MAC, packed_mac(mac))
    return Request(NEW, ACK | CREATE | REPLACE, body)


def remove_neighbour(index: int, address: IPv4Address | IPv6Address) -> Request:
    """Return the request that removes the neighbour of an address."""
    body = _LAYOUT.pack(family_of(address), index, 0, 0, _UNICAST)
    return Request(DELETE, ACK, body + attribute(_DESTINATION, address.packed))


def put_fdb_entry(index: int, mac: str, destination: IPv4Address | IPv6Address) -> Request:
    """Return the request that adds a permanent FDB entry, or replaces the first entry of this MAC address."""
    body = _LAYOUT.pack(BRIDGE, index, PERMANENT, _SELF, _UNICAST)
    body += attribute(_MAC, packed_mac(mac)) + attribute(_DESTINATION, destination.packed)
    return Request(NEW, ACK | CREATE | REPLACE, body)


def remove_fdb_entry(index: int, mac: str, destination: IPv4Address | IPv6Address | None = None) -> Request:
    """Return the request that removes one destination of a MAC address, or all destinations if no destination
    is given.
    """
    body = _LAYOUT.pack(BRIDGE, index, 0, _SELF, _UNICAST) + attribute(_MAC, packed_mac(mac))
    if destination is not None:
        body += attribute(_DESTINATION, destination.packed)
    return Request(DELETE, ACK, body)


def _dump_body(family: int, index: int) -> bytes:
    return _LAYOUT.pack(family, 0, 0, 0, 0) + attribute(_INDEX, _U32.pack(index))
