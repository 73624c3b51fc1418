"""Routes: RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE; and the next-hop objects to which routes may refer.

Layout of the body of a route, in bytes: family, destination length, source length, TOS, table, protocol,
scope and type 1 each, flags 4, then attributes. Source: linux/rtnetlink.h, struct rtmsg.

Layout of the body of a next hop, in bytes: family 1, scope 1, protocol 1, padding 1, flags 4, then
attributes. Source: linux/nexthop.h, struct nhmsg.
"""

import struct
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.item import Key
from pyflannel.model.route import route_key
from pyflannel.wire.netlink.message import (
    ACK,
    ATTRIBUTE,
    CREATE,
    DUMP,
    HEADER,
    INET,
    INET6,
    KIND_AT,
    REPLACE,
    Request,
    attribute,
    attributes,
    family_of,
    integer,
    parse_address,
    parse_prefix,
    unpack,
)

NEW = 24
DELETE = 25
GET = 26
"""Values of nlmsg_type (linux/rtnetlink.h, RTM_NEWROUTE and following)."""

TABLE_MAIN = 254

UNICAST = 1
"""The rtm_type of a route to a link or gateway. Routes of other types refuse packets or deliver them
locally."""

_LAYOUT = struct.Struct("=BBBBBBBBI")
_PROTOCOL_AT = 5
_U32 = struct.Struct("=I")
_NEXT_HOP = struct.Struct("=HBBi")

_ONLINK = 0x4  # RTNH_F_ONLINK
_CLONED = 0x200  # RTM_F_CLONED marks a cache entry, which is not a route

_DESTINATION = 1
_SOURCE = 2
_LINK = 4
_GATEWAY = 5
_METRIC = 6
_PREFERRED_SOURCE = 7
_METRICS = 8
_MULTIPATH = 9
_VIA = 18
_NEXT_HOP_NUMBER = 30

_MTU = 2  # RTAX_MTU, in RTA_METRICS


class RouteGlance(NamedTuple):
    """The fields that show whether a route concerns pyflannel.

    Attributes:
        key: the key of the route, in the form of `model.route.Route`. The default metric of IPv6 is 1024.
        length: length of the prefix.
        link: index of the link; 0 for multipath or for no link.
    """

    key: Key
    length: int
    protocol: int
    link: int
    version: int = 4


class RouteRecord(Struct, frozen=True, kw_only=True):
    """A route as the kernel reports it.

    Attributes:
        index: index of the link, or of the first link for multipath; 0 for no link.
        kind: rtm_type.
        is_multipath: True if the route has several next hops. This record contains only the link of the first
            next hop.
        mtu: MTU of the route in bytes; 0 if the route has no MTU of its own.
    """

    destination: IPv4Network | IPv6Network
    index: int = 0
    gateway: IPv4Address | IPv6Address | None = None
    source: IPv4Address | IPv6Address | None = None
    metric: int = 0
    protocol: int = 0
    scope: int = 0
    kind: int = UNICAST
    is_onlink: bool = False
    is_multipath: bool = False
    mtu: int = 0


def dump_routes(family: int) -> Request:
    """Return the request for the routes of the main table. Before Linux 4.20, the kernel returns the
    routes of all tables.
    """
    return Request(GET, DUMP, _LAYOUT.pack(family, 0, 0, 0, TABLE_MAIN, 0, 0, 0, 0))


def look_up_route(
    address: IPv4Address | IPv6Address, source: IPv4Address | IPv6Address | None = None
) -> Request:
    """Return the request for the route of the host's own packets to an address. The kernel sends no
    packet.

    `source`: the source address of the packets; None if the kernel chooses it.
    """
    length = address.max_prefixlen
    header = _LAYOUT.pack(family_of(address), length, length if source else 0, 0, 0, 0, 0, 0, 0)
    ends = attribute(_DESTINATION, address.packed) + (attribute(_SOURCE, source.packed) if source else b"")
    return Request(GET, 0, header + ends)


def glance_at_route(body: bytes) -> RouteGlance | None:
    """Return the fields that distinguish owned from foreign routes; None if the message does not describe a
    route of the main table.

    The full record is not built, because a host may have tens of thousands of foreign routes.

    Raises:
        WireError: the body is too short.
    """
    family, length, _, tos, table, protocol, _, _, flags = unpack(_LAYOUT, body)
    if tos or flags & _CLONED or table != TABLE_MAIN:
        return None
    destination, metric, link = b"", 0, 0
    offset, end = _LAYOUT.size, len(body)
    while offset + ATTRIBUTE.size <= end:
        size, kind = ATTRIBUTE.unpack_from(body, offset)
        if size < ATTRIBUTE.size:
            break
        if kind == _DESTINATION:
            destination = body[offset + 4 : offset + size]
        elif kind == _LINK:
            link = integer(body[offset + 4 : offset + 8])
        elif kind == _METRIC:
            metric = integer(body[offset + 4 : offset + 8])
        offset += (size + 3) & ~3
    base = int.from_bytes(destination, "big")
    version = 6 if family == INET6 else 4
    return RouteGlance(route_key(version, base, length, metric), length, protocol, link, version)


def protocol_of(body: bytes) -> int:
    """Return the rtm_protocol of a message's body: the program that added the route.

    Raises:
        WireError: the body is too short.
    """
    return unpack(_LAYOUT, body)[_PROTOCOL_AT]


def fields_of(protocol: int) -> tuple[tuple[int, tuple[bytes, ...]], ...]:
    """Return the offset and the values of the fields that identify all messages about the routes of a
    protocol.
    """
    kinds = tuple(kind.to_bytes(2, sys.byteorder) for kind in (NEW, DELETE))
    return (KIND_AT, kinds), (HEADER.size + _PROTOCOL_AT, (bytes((protocol,)),))


def is_on_link(body: bytes) -> bool:
    """Return whether a message's body is a route of the main table with one link and no gateway.

    Raises:
        WireError: the body is too short.
    """
    _, _, _, tos, table, _, _, _, flags = unpack(_LAYOUT, body)
    if tos or flags & _CLONED or table != TABLE_MAIN:
        return False
    offset, end, has_link = _LAYOUT.size, len(body), False
    while offset + ATTRIBUTE.size <= end:
        size, attribute_kind = ATTRIBUTE.unpack_from(body, offset)
        if size < ATTRIBUTE.size or attribute_kind in (_GATEWAY, _VIA):
            return False
        has_link = has_link or attribute_kind == _LINK
        offset += (size + 3) & ~3
    return has_link


def covers(body: bytes, address: IPv4Address | IPv6Address) -> bool:
    """Return whether the route of a message's body, in any table, leads to this address.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    family, length, *_ = unpack(_LAYOUT, body)
    if family != family_of(address):
        return False
    return address in parse_prefix(attributes(body, _LAYOUT.size).get(_DESTINATION, _zeros(family)), length)


def parse_route(body: bytes) -> RouteRecord | None:
    """Return the route of a message's body; None if it is neither IPv4 nor IPv6.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    family, length, _, _, _, protocol, scope, kind, flags = unpack(_LAYOUT, body)
    if family not in (INET, INET6):
        return None
    found = attributes(body, _LAYOUT.size)
    index, is_multipath = integer(found.get(_LINK, b"")), _MULTIPATH in found
    if is_multipath and len(found[_MULTIPATH]) >= _NEXT_HOP.size:
        index = _NEXT_HOP.unpack_from(found[_MULTIPATH])[3]
    return RouteRecord(
        destination=parse_prefix(found.get(_DESTINATION, _zeros(family)), length),
        index=index,
        gateway=_gateway(found),
        source=parse_address(found[_PREFERRED_SOURCE]) if _PREFERRED_SOURCE in found else None,
        metric=integer(found.get(_METRIC, b"")),
        protocol=protocol,
        scope=scope,
        kind=kind,
        is_onlink=bool(flags & _ONLINK),
        is_multipath=is_multipath,
        mtu=integer(attributes(found[_METRICS], 0).get(_MTU, b"")) if _METRICS in found else 0,
    )


def put_route(route: RouteRecord) -> Request:
    """Return the request that adds a route, or replaces the first route with its key."""
    return Request(NEW, ACK | CREATE | REPLACE, _body(route))


def remove_route(route: RouteRecord) -> Request:
    """Return the request that removes exactly this route, and no other route with its key."""
    return Request(DELETE, ACK, _body(route))


def put_route_by(route: RouteRecord, next_hop: int) -> Request:
    """Return the request that adds a route through a next-hop object, or replaces the first route with its
    key.
    """
    return Request(NEW, ACK | CREATE | REPLACE, _body_by(route, next_hop))


def remove_route_by(route: RouteRecord, next_hop: int) -> Request:
    """Return the request that removes the route that has this key and refers to this next hop."""
    return Request(DELETE, ACK, _body_by(route, next_hop))


def _body_by(route: RouteRecord, next_hop: int) -> bytes:
    named = replace(route, index=0, gateway=None, is_onlink=False)
    return _body(named) + attribute(_NEXT_HOP_NUMBER, _U32.pack(next_hop))


def _body(route: RouteRecord) -> bytes:
    parts = [
        _LAYOUT.pack(
            family_of(route.destination),
            route.destination.prefixlen,
            0,
            0,
            TABLE_MAIN,
            route.protocol,
            route.scope,
            route.kind,
            _ONLINK if route.is_onlink else 0,
        ),
        attribute(_DESTINATION, route.destination.network_address.packed),
    ]
    # A multipath route is removed by its key, type and protocol, without its next hops.
    if route.index and not route.is_multipath:
        parts.append(attribute(_LINK, _U32.pack(route.index)))
    if route.gateway is not None and not route.is_multipath:
        parts.append(_gateway_attribute(route.gateway, family_of(route.destination)))
    if route.source is not None:
        parts.append(attribute(_PREFERRED_SOURCE, route.source.packed))
    if route.metric:
        parts.append(attribute(_METRIC, _U32.pack(route.metric)))
    if route.mtu:
        parts.append(attribute(_METRICS, attribute(_MTU, _U32.pack(route.mtu))))
    return b"".join(parts)


def _zeros(family: int) -> bytes:
    """Return the destination of a default route, which a message omits."""
    return bytes(4 if family == INET else 16)


def _gateway(found: dict[int, bytes]) -> IPv4Address | IPv6Address | None:
    if _GATEWAY in found:
        return parse_address(found[_GATEWAY])
    if _VIA in found:  # for an IPv4 route with an IPv6 gateway: family 2, address
        return parse_address(found[_VIA][2:])
    return None


def _gateway_attribute(gateway: IPv4Address | IPv6Address, family: int) -> bytes:
    if family_of(gateway) == family:
        return attribute(_GATEWAY, gateway.packed)
    return attribute(_VIA, struct.pack("=H", family_of(gateway)) + gateway.packed)


# Next-hop objects, to which routes refer. These objects need Linux 5.3 or later.

NEW_NEXT_HOP = 104
DELETE_NEXT_HOP = 105
GET_NEXT_HOP = 106
"""Values of nlmsg_type for next hops (linux/rtnetlink.h, RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP)."""

_NEXT_HOP_LAYOUT = struct.Struct("=BBBxI")

_NEXT_HOP_ID = 1
_NEXT_HOP_LINK = 5
_NEXT_HOP_GATEWAY = 6


def put_next_hop(
    number: int, index: int, gateway: IPv4Address | IPv6Address, *, protocol: int, is_onlink: bool
) -> Request:
    """Return the request that creates a next hop, or changes a next hop for all routes that refer to it."""
    body = _NEXT_HOP_LAYOUT.pack(family_of(gateway), 0, protocol, _ONLINK if is_onlink else 0)
    body += attribute(_NEXT_HOP_ID, _U32.pack(number))
    body += attribute(_NEXT_HOP_LINK, _U32.pack(index)) + attribute(_NEXT_HOP_GATEWAY, gateway.packed)
    return Request(NEW_NEXT_HOP, ACK | CREATE | REPLACE, body)


def remove_next_hop(number: int) -> Request:
    """Return the request that removes a next hop and the routes that refer to it."""
    return Request(
        DELETE_NEXT_HOP, ACK, _NEXT_HOP_LAYOUT.pack(0, 0, 0, 0) + attribute(_NEXT_HOP_ID, _U32.pack(number))
    )


def dump_next_hops() -> Request:
    """Return the request for every next hop."""
    return Request(GET_NEXT_HOP, DUMP, _NEXT_HOP_LAYOUT.pack(0, 0, 0, 0))


def parse_next_hop_number(body: bytes) -> int:
    """Return the number of a next hop.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    return integer(attributes(body, _NEXT_HOP_LAYOUT.size).get(_NEXT_HOP_ID, b""))


def next_hop_protocol(body: bytes) -> int:
    """Return the rtm_protocol of a next hop: the program that created it.

    Raises:
        WireError: the body is too short.
    """
    return unpack(_NEXT_HOP_LAYOUT, body)[2]
