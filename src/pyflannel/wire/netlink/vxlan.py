"""The parameters of a vxlan device, within IFLA_INFO_DATA of its link.

Numbers are in the host's byte order, but the port in the network's. A flag that has a value is an octet of 0
or 1; GBP has none: it is there or not. Source: linux/if_link.h, enum of IFLA_VXLAN_*.
"""

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pyflannel.wire.netlink.inet import parse_address
from pyflannel.wire.netlink.message import attribute, attributes, integer

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


@dataclass(frozen=True, slots=True, kw_only=True)
class VxlanRecord:
    """The parameters of a vxlan device as the kernel reports them.

    Attributes:
        parent: index of the underlay's link; 0 for none.
        local: source address; None when the kernel chooses.
        group: default destination; None for none.
        reports_misses: l2miss or l3miss.
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
    """Return what IFLA_INFO_DATA of a vxlan device says.

    Raises:
        WireError: an attribute does not fit.
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
    """Return the payload of IFLA_INFO_DATA that makes a device with these parameters."""
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
    """Return the payload that gives a standing device what can be changed of it: parent, source, learning."""
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
    octets = found.get(kind) or found.get(kind_6)
    return parse_address(octets) if octets is not None and any(octets) else None
