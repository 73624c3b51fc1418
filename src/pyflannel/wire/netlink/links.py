"""Links: RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, with the parameters of vxlan devices."""

import struct
import sys
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from pyflannel.wire.netlink.message import (
    ACK,
    CREATE,
    DUMP,
    EXCLUSIVE,
    Request,
    attribute,
    attributes,
    integer,
    nest,
    packed_mac,
    parse_address,
    parse_mac,
    text,
    unpack,
)

# The parameters of a vxlan device, within IFLA_INFO_DATA of its link.
#
# Numbers are in the host's byte order, except the port, which is in network order. A flag with a value is a
# byte of 0 or 1. GBP has no value: it is present or absent. Source: linux/if_link.h, enum of IFLA_VXLAN_*.

_U32 = struct.Struct("=I")
_PORT = struct.Struct("!H")

_VNI = 1
_GROUP = 2
_PARENT = 3
_LOCAL = 4
_LEARNING = 7
_L2_MISS = 13
_L3_MISS = 14
_PORT_KIND = 15
_GROUP_6 = 16
_LOCAL_6 = 17
_GBP = 23


class VxlanRecord(Struct, frozen=True, kw_only=True):
    """The parameters of a vxlan device as the kernel reports them.

    Attributes:
        parent: index of the underlay's link; 0 if there is none.
        local: source address of the tunnel; None if the kernel chooses the address.
        group: default destination of frames; None if there is no default destination.
        reports_misses: True if l2miss or l3miss is set.
    """

    vni: int
    port: int
    parent: int = 0
    local: IPv4Address | IPv6Address | None = None
    group: IPv4Address | IPv6Address | None = None
    has_gbp: bool = False
    learns: bool = False
    reports_misses: bool = False


def parse_vxlan(data: bytes) -> VxlanRecord:
    """Return the parameters in IFLA_INFO_DATA of a vxlan device.

    Raises:
        WireError: an attribute has an invalid length.
    """
    found = attributes(data)
    return VxlanRecord(
        vni=integer(found.get(_VNI, b"")),
        port=int.from_bytes(found.get(_PORT_KIND, b""), "big"),
        parent=integer(found.get(_PARENT, b"")),
        local=_address(found, _LOCAL, _LOCAL_6),
        group=_address(found, _GROUP, _GROUP_6),
        has_gbp=_GBP in found,
        learns=any(found.get(_LEARNING, b"")),
        reports_misses=any(found.get(_L2_MISS, b"")) or any(found.get(_L3_MISS, b"")),
    )


def vxlan_data(wanted: VxlanRecord) -> bytes:
    """Return the payload of IFLA_INFO_DATA that creates a device with these parameters."""
    parts = [
        _changeable(wanted),
        attribute(_PORT_KIND, _PORT.pack(wanted.port)),
        attribute(_L2_MISS, bytes([wanted.reports_misses])),
    ]
    if wanted.group is not None:
        parts.append(attribute(_GROUP if wanted.group.version == 4 else _GROUP_6, wanted.group.packed))
    if wanted.has_gbp:
        parts.append(attribute(_GBP, b""))
    return b"".join(parts)


def vxlan_changes(wanted: VxlanRecord) -> bytes:
    """Return the payload with the parameters that an existing device can change: parent, source, learning."""
    return _changeable(wanted)


def _changeable(wanted: VxlanRecord) -> bytes:
    local = wanted.local if wanted.local is not None else IPv4Address(0)
    return b"".join(
        [
            attribute(_VNI, _U32.pack(wanted.vni)),
            attribute(_PARENT, _U32.pack(wanted.parent)),
            attribute(_LOCAL if local.version == 4 else _LOCAL_6, local.packed),
            attribute(_LEARNING, bytes([wanted.learns])),
        ]
    )


def _address(found: dict[int, bytes], kind: int, kind_6: int) -> IPv4Address | IPv6Address | None:
    data = found.get(kind) or found.get(kind_6)
    return parse_address(data) if data is not None and any(data) else None


# Links: RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK.
#
# Layout of the body, in bytes: family 1, padding 1, device type 2, index 4, flags 4, change mask 4, then
# attributes. Source: linux/rtnetlink.h, struct ifinfomsg; linux/if_link.h.

NEW = 16
DELETE = 17
GET = 18
SET = 19
"""Values of nlmsg_type (linux/rtnetlink.h, RTM_NEWLINK and following)."""

_LAYOUT = struct.Struct("=BxHiII")
_UP = 0x1  # IFF_UP
_EVERY_FLAG = 0xFFFFFFFF  # the change mask of a new link
_LOOPBACK = 0x8  # IFF_LOOPBACK
_INET6 = 10  # AF_INET6
_BRIDGE = 7  # AF_BRIDGE

_MAC = 1
_NAME = 3
_MTU = 4
_OTHER = 5
_MASTER = 10
_PORT_INFO = 12  # IFLA_PROTINFO
_QUEUE_LENGTH = 13
_INFO = 18
_ALIAS = 20
_PER_FAMILY = 26
_SENDING_QUEUES = 31  # IFLA_NUM_TX_QUEUES
_RECEIVING_QUEUES = 32  # IFLA_NUM_RX_QUEUES
_DUMP_MASK = 29
_XDP = 43
_OTHER_NAMESPACE = 37
# RTM_GETNSID and its attributes (linux/net_namespace.h).
_GET_NAMESPACE = 90
_NAMESPACE_NUMBER = 1
_NAMESPACE_PID = 2
# Attributes within _INFO, and within the data of a TUN device (enum of IFLA_TUN_*).
_INFO_KIND = 1
_INFO_DATA = 2
_TUN_TYPE = 3
_TUN_TYPE_TAP = 2
_PORT_MODE = 4  # IFLA_BRPORT_MODE, within _PORT_INFO
_VETH_PEER = 1  # VETH_INFO_PEER (linux/veth.h)
# Attributes within the part of AF_INET6 in _PER_FAMILY. The sysctls are an array of 32-bit numbers.
_INET6_SYSCTLS = 2
_INET6_GENERATION = 8
_XDP_ATTACHED = 2  # IFLA_XDP_ATTACHED, within _XDP
_XDP_GENERIC = 2  # XDP_ATTACHED_SKB
_HOP_LIMIT = 1  # DEVCONF_HOPLIMIT
_ACCEPT_RA = 3  # DEVCONF_ACCEPT_RA
_DISABLE_IPV6 = 26  # DEVCONF_DISABLE_IPV6 (linux/ipv6.h)
_GENERATION_NONE = 1  # IN6_ADDR_GEN_MODE_NONE

_SKIP_STATISTICS = 1 << 3


class LinkRecord(Struct, frozen=True, kw_only=True):
    """A link as the kernel reports it.

    Attributes:
        kind: the kind that `ip -details link` prints, but `tap` and `tun` are different kinds; "" for a
            physical device.
        queue_length: maximum number of packets in the send queue.
        alias: alias of the link; "" if it has no alias.
        has_ipv6: True if IPv6 is enabled on the link, and is in use if the link is up.
        accepts_routers: True if IPv6 is enabled on the link, and router advertisements on it change the
            host's routes (accept_ra).
        generates_ipv6: True if the kernel, when IPv6 is enabled on the link, adds an IPv6 link-local address.
        mac: MAC address in lower case with colons; "" if the link has none.
        vxlan: the parameters of a vxlan device.
        other: index of the other end of the link, or of its lower link; 0 if this namespace contains no such
            link.
        peer: index of the other end in its own namespace; 0 if there is no other end.
        hop_limit: hop limit of IPv6 packets that leave by the link; None if the kernel has no IPv6.
        xdp: the option by which `ip link set` removes the XDP program of the link; "" without a program.
    """

    index: int
    name: str
    kind: str = ""
    mtu: int = 0
    is_up: bool = False
    is_loopback: bool = False
    queue_length: int = 0
    alias: str = ""
    has_ipv6: bool = False
    accepts_routers: bool = False
    generates_ipv6: bool = True
    mac: str = ""
    vxlan: VxlanRecord | None = None
    other: int = 0
    peer: int = 0
    hop_limit: int | None = None
    xdp: str = ""


def dump_links() -> Request:
    """Return the request for every link, without its statistics."""
    body = _LAYOUT.pack(0, 0, 0, 0, 0) + attribute(_DUMP_MASK, _U32.pack(_SKIP_STATISTICS))
    return Request(GET, DUMP, body)


def parse_link(body: bytes) -> LinkRecord:
    """Return the link that a message's body describes.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    _, _, index, flags, _ = unpack(_LAYOUT, body)
    found = attributes(body, _LAYOUT.size)
    kind, data = _kind(found.get(_INFO, b""))
    ipv6 = attributes(attributes(found.get(_PER_FAMILY, b"")).get(_INET6, b""))
    return LinkRecord(
        index=index,
        name=text(found.get(_NAME, b"")),
        kind=kind,
        mtu=integer(found.get(_MTU, b"")),
        is_up=bool(flags & _UP),
        is_loopback=bool(flags & _LOOPBACK),
        queue_length=integer(found.get(_QUEUE_LENGTH, b"")),
        alias=text(found.get(_ALIAS, b"")),
        has_ipv6=_sysctl(ipv6, _DISABLE_IPV6) == 0,
        accepts_routers=_sysctl(ipv6, _DISABLE_IPV6) == 0 and _sysctl(ipv6, _ACCEPT_RA) != 0,
        generates_ipv6=ipv6.get(_INET6_GENERATION) != bytes([_GENERATION_NONE]),
        mac=parse_mac(found.get(_MAC, b"")),
        vxlan=parse_vxlan(data) if kind == "vxlan" else None,
        other=0 if _OTHER_NAMESPACE in found else integer(found.get(_OTHER, b"")),
        peer=integer(found.get(_OTHER, b"")),
        hop_limit=_sysctl(ipv6, _HOP_LIMIT),
        xdp=_xdp(found.get(_XDP, b"")),
    )


def _xdp(data: bytes) -> str:
    attached = integer(attributes(data).get(_XDP_ATTACHED, b""))
    return "" if not attached else "xdpgeneric" if attached == _XDP_GENERIC else "xdp"


def parse_name_set_down(body: bytes) -> str | None:
    """Return the name of a link that was just set down; None if the notification reports another change.

    The change mask contains the flags that changed.
    """
    _, _, _, flags, changed = unpack(_LAYOUT, body)
    is_set_down = bool(changed & _UP) and not flags & _UP and changed != _EVERY_FLAG
    return text(attributes(body, _LAYOUT.size).get(_NAME, b"")) if is_set_down else None


class FarVeth(Struct, frozen=True, kw_only=True):
    """A veth whose other end is in another namespace.

    Attributes:
        namespace: number of this namespace in the namespace of the veth; it may be negative.
        peer: index of the other end in its own namespace.
    """

    index: int
    namespace: int
    peer: int


def parse_far_veth(body: bytes) -> FarVeth | None:
    """Return a veth whose other end is in another namespace; None for any other link."""
    _, _, index, _, _ = unpack(_LAYOUT, body)
    found = attributes(body, _LAYOUT.size)
    kind, _ = _kind(found.get(_INFO, b""))
    if kind != "veth" or _OTHER_NAMESPACE not in found:
        return None
    namespace = _signed(found[_OTHER_NAMESPACE])
    return FarVeth(index=index, namespace=namespace, peer=integer(found.get(_OTHER, b"")))


def get_namespace(pid: int) -> Request:
    """Return the request for the number of the namespace of a process."""
    return Request(_GET_NAMESPACE, 0, b"\0\0\0\0" + attribute(_NAMESPACE_PID, _U32.pack(pid)))


def parse_namespace(body: bytes) -> int | None:
    """Return the number of a namespace; None if it has no number here."""
    number = _signed(attributes(body, 4).get(_NAMESPACE_NUMBER, b""))
    return number if number >= 0 else None


def _signed(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder, signed=True) if value else -1


def create_vxlan(name: str, mac: str, vxlan: VxlanRecord) -> Request:
    """Return the request that creates a vxlan device. The kernel refuses the request if a link with this name
    exists.

    Without `mac`, the kernel chooses a random MAC address.
    """
    parts = [attribute(_NAME, name.encode(errors="surrogateescape") + b"\0")]
    if mac:
        parts.append(attribute(_MAC, packed_mac(mac)))
    parts.append(_info("vxlan", vxlan_data(vxlan)))
    return Request(NEW, ACK | CREATE | EXCLUSIVE, _LAYOUT.pack(0, 0, 0, 0, 0) + b"".join(parts))


def create_veth(name: str, peer: str, queues: int) -> Request:
    """Return the request that creates both ends of a veth. The kernel refuses the request if a link with
    either name exists.

    Each end has this number of queues in each direction.
    """
    number = _U32.pack(queues)
    each = attribute(_SENDING_QUEUES, number) + attribute(_RECEIVING_QUEUES, number)
    end, body = (
        _LAYOUT.pack(0, 0, 0, 0, 0) + attribute(_NAME, one.encode(errors="surrogateescape") + b"\0") + each
        for one in (peer, name)
    )
    return Request(NEW, ACK | CREATE | EXCLUSIVE, body + _info("veth", attribute(_VETH_PEER, end)))


def create_wireguard(name: str) -> Request:
    """Return the request that creates a WireGuard device."""
    body = _LAYOUT.pack(0, 0, 0, 0, 0) + attribute(_NAME, name.encode(errors="surrogateescape") + b"\0")
    return Request(NEW, ACK | CREATE | EXCLUSIVE, body + _info("wireguard", b""))


def create_bridge(name: str, mac: str) -> Request:
    """Return the request that creates a bridge with a fixed MAC address, which stays the same when ports are
    added or removed.
    """
    parts = attribute(_NAME, name.encode(errors="surrogateescape") + b"\0") + attribute(_MAC, packed_mac(mac))
    return Request(NEW, ACK | CREATE | EXCLUSIVE, _LAYOUT.pack(0, 0, 0, 0, 0) + parts + _info("bridge", b""))


def enslave(index: int, bridge: int) -> Request:
    """Return the request that makes a link a port of a bridge."""
    return Request(NEW, ACK, _LAYOUT.pack(0, 0, index, 0, 0) + attribute(_MASTER, _U32.pack(bridge)))


def reflect(index: int) -> Request:
    """Return the request after which a bridge also sends frames back to the port from which they came."""
    mode = nest(_PORT_INFO, attribute(_PORT_MODE, b"\1"))
    return Request(SET, ACK, _LAYOUT.pack(_BRIDGE, 0, index, 0, 0) + mode)


def probe_wireguard() -> Request:
    """Return a request that detects WireGuard and creates no device.

    A kernel without WireGuard refuses the kind in this request. A kernel with WireGuard refuses the MTU in
    this request.
    """
    body = _LAYOUT.pack(0, 0, 0, 0, 0) + attribute(_MTU, _U32.pack(2**32 - 1))
    return Request(NEW, ACK | CREATE | EXCLUSIVE, body + _info("wireguard", b""))


def change_vxlan(index: int, vxlan: VxlanRecord) -> Request:
    """Return the request that changes a vxlan device's parent, source address and learning in place."""
    return Request(NEW, ACK, _LAYOUT.pack(0, 0, index, 0, 0) + _info("vxlan", vxlan_changes(vxlan)))


def change_link(
    index: int,
    *,
    mtu: int | None = None,
    queue_length: int | None = None,
    alias: str | None = None,
    mac: str | None = None,
    is_up: bool | None = None,
) -> Request:
    """Return the request that changes a link in place. Attributes that are None do not change."""
    parts = []
    if mtu is not None:
        parts.append(attribute(_MTU, _U32.pack(mtu)))
    if queue_length is not None:
        parts.append(attribute(_QUEUE_LENGTH, _U32.pack(queue_length)))
    if alias is not None:
        parts.append(attribute(_ALIAS, alias.encode(errors="surrogateescape")))
    if mac is not None:
        parts.append(attribute(_MAC, packed_mac(mac)))
    flags, mask = (_UP if is_up else 0), (0 if is_up is None else _UP)
    return Request(NEW, ACK, _LAYOUT.pack(0, 0, index, flags, mask) + b"".join(parts))


def stop_ipv6_addresses(index: int) -> Request:
    """Return the request that stops the kernel from adding an IPv6 link-local address to the link."""
    generation = attribute(_INET6_GENERATION, bytes([_GENERATION_NONE]))
    body = _LAYOUT.pack(0, 0, index, 0, 0) + nest(_PER_FAMILY, nest(_INET6, generation))
    return Request(NEW, ACK, body)


def delete_link(index: int) -> Request:
    """Return the request that deletes a link with its addresses and routes."""
    return Request(DELETE, ACK, _LAYOUT.pack(0, 0, index, 0, 0))


def _info(kind: str, data: bytes) -> bytes:
    return nest(_INFO, attribute(_INFO_KIND, kind.encode()), nest(_INFO_DATA, data))


def _kind(info: bytes) -> tuple[str, bytes]:
    """Return the kind of a link and the data that belong to this kind."""
    parts = attributes(info)
    kind, data = text(parts.get(_INFO_KIND, b"")), parts.get(_INFO_DATA, b"")
    if kind == "tun" and integer(attributes(data).get(_TUN_TYPE, b"")) == _TUN_TYPE_TAP:
        kind = "tap"  # one driver creates TUN and TAP devices, and a device cannot change between them
    return kind, data


def _sysctl(ipv6: Mapping[int, bytes], number: int) -> int | None:
    """Return an IPv6 sysctl of a link; None if the kernel has no IPv6."""
    value = ipv6.get(_INET6_SYSCTLS, b"")[number * 4 : number * 4 + 4]
    return integer(value) if len(value) == 4 else None
