"""Bridges, their ports, and learned MAC addresses: the attributes of bridges in RTM_*LINK and RTM_*NEIGH.

Sources: linux/if_link.h (IFLA_BR_*, IFLA_BRPORT_*), linux/if_bridge.h, linux/neighbour.h, struct ndmsg.
"""

import struct

from msgspec import Struct

from pyflannel.wire.netlink.message import (
    DUMP,
    Request,
    attribute,
    attributes,
    integer,
    parse_mac,
    text,
    unpack,
)

_LINK = struct.Struct("=BxHiII")
_ETHERNET = 1  # ARPHRD_ETHER (linux/if_arp.h)
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_U32 = struct.Struct("=I")
_GET_NEIGHBOUR = 30  # RTM_GETNEIGH
_BRIDGE = 7  # AF_BRIDGE

_UP, _NO_ARP, _LOWER_UP = 0x1, 0x80, 0x10000  # IFF_UP, IFF_NOARP, IFF_LOWER_UP (linux/if.h)
_NAME = 3
_QUEUEING = 6
_MASTER = 10
_INFO = 18
_INFO_KIND = 1
_INFO_DATA = 2
_INFO_PORT_DATA = 5
_VLAN_FILTERING = 7
_PORT_STATE = 1
_FORWARDING = 3

_ENTRY_MAC = 2
_ENTRY_MASTER = 9
_PERMANENT = 0x80


class BridgeLink(Struct, frozen=True, kw_only=True):
    """The attributes of a link that concern bridges.

    Attributes:
        kind: kind of the link in the kernel; `bridge` for a bridge.
        bridge: index of the bridge of which the link is a port; 0 if the link is not a port.
        queueing: name of the queueing discipline of the link.
        is_up: True if the link is administratively up.
        has_carrier: True if the lower layer of the link is up; for a bridge, True if one of its ports is up.
        resolves: True if the link resolves addresses to MAC addresses by ARP.
        is_ethernet: True if frames on the link have MAC addresses.
        filters_vlans: for a bridge: True if it filters VLANs.
        is_forwarding: for a port: True if it forwards frames.
    """

    index: int
    name: str
    kind: str
    bridge: int
    queueing: str
    is_up: bool
    has_carrier: bool
    resolves: bool
    is_ethernet: bool
    filters_vlans: bool
    is_forwarding: bool


def parse_bridge_link(body: bytes) -> BridgeLink:
    """Return the link of a message's body.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    _, hardware, index, flags, _ = unpack(_LINK, body)
    found = attributes(body, _LINK.size)
    info = attributes(found.get(_INFO, b""))
    kind = text(info.get(_INFO_KIND, b""))
    data = attributes(info.get(_INFO_DATA, b"")) if kind == "bridge" else {}
    port = attributes(info.get(_INFO_PORT_DATA, b""))
    return BridgeLink(
        index=index,
        name=text(found.get(_NAME, b"")),
        kind=kind,
        bridge=integer(found.get(_MASTER, b"")),
        queueing=text(found.get(_QUEUEING, b"")),
        is_up=bool(flags & _UP),
        has_carrier=bool(flags & _LOWER_UP),
        resolves=not flags & _NO_ARP,
        is_ethernet=hardware == _ETHERNET,
        filters_vlans=bool(integer(data.get(_VLAN_FILTERING, b""))),
        is_forwarding=integer(port.get(_PORT_STATE, b"")) == _FORWARDING,
    )


def dump_learned(bridge: int) -> Request:
    """Return the request for the MAC addresses that the bridge with this index knows."""
    body = _NEIGHBOUR.pack(_BRIDGE, 0, 0, 0, 0) + attribute(_ENTRY_MASTER, _U32.pack(bridge))
    return Request(_GET_NEIGHBOUR, DUMP, body)


def parse_learned(body: bytes) -> tuple[int, int, str] | None:
    """Return bridge, port and MAC address from a message; None for the MAC address of a port itself.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    family, port, state, _, _ = unpack(_NEIGHBOUR, body)
    if family != _BRIDGE or state & _PERMANENT:
        return None
    found = attributes(body, _NEIGHBOUR.size)
    bridge = integer(found.get(_ENTRY_MASTER, b""))
    return (bridge, port, parse_mac(found.get(_ENTRY_MAC, b""))) if bridge else None
