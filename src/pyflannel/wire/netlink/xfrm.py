"""IPsec policies through netlink: the policies of the host, and its default action without a policy.

Layout of a policy, in bytes: selector 56 (destination 16, source 16, destination port 2 and its mask 2,
source port 2 and its mask 2, family 2, prefix lengths of destination and source 1 each, protocol 1, padding
3, interface 4, user 4), lifetimes 64 and 32, priority 4, index 4, direction 1, action 1, flags 1, share 1,
padding 4. Ports are in network order. Attributes follow: XFRMA_MARK contains a mark and its mask, 4 each.
XFRMA_TMPL contains templates: destination 16, SPI 4, protocol 1, padding 3, family 2, padding 2, source 16,
request 4, mode 1, share 1, optional 1, padding 1, algorithms 12. Layout of a security association: selector
56, destination 16, SPI 4, protocol 1, padding 3, source 16, lifetimes 64 and 32, statistics 12, sequence 4,
request 4, family 2.
Layout of the default: actions for received, forwarded and sent packets, 1 each. Source: linux/xfrm.h, structs
xfrm_userpolicy_info, xfrm_userpolicy_default, xfrm_user_tmpl, xfrm_usersa_info.
"""

import struct
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from pyflannel.model.host import IpsecEnds, IpsecPolicy
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.wire.netlink.message import DUMP, INET, INET6, Request, attributes, unpack

PROTOCOL = 6
"""NETLINK_XFRM (linux/netlink.h)."""

POLICIES = 8
"""Mask of the multicast group of policies, XFRMGRP_POLICY."""

_GET_POLICY, _GET_DEFAULT = 0x15, 0x28
"""XFRM_MSG_GETPOLICY, and XFRM_MSG_GETDEFAULT of Linux 5.15 and later."""

_POLICY = struct.Struct("=16s16s2s2s2s2sHBBB3xi4x64x32xI4xBB6x")
_MARK = struct.Struct("=II")
_MARK_ATTRIBUTE, _TEMPLATES = 21, 5
_TEMPLATE = struct.Struct("=16s8xH2x16s4xBxB13x")
_TRANSPORT = 0
_ASSOCIATION = struct.Struct("=56x16sI4x16s64x32x12x8xH")
_GET_ASSOCIATION = 0x12
_DEFAULT = struct.Struct("=BBB")
_DIRECTIONS: Mapping[int, Literal["in", "out", "forward"]] = {0: "in", 1: "out", 2: "forward"}
_OF_DEFAULT: tuple[Literal["in", "forward", "out"], ...] = ("in", "forward", "out")
_BLOCK = 1
_LAST = 1 << 32
"""Priority of the default action, which is lower than the priority of every policy."""

_EVERYBODY: tuple[IpNetwork, ...] = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))


def dump_policies() -> Request:
    """Return the request for all policies."""
    return Request(_GET_POLICY, DUMP, b"")


def parse_policy(body: bytes) -> IpsecPolicy | None:
    """Return a policy of the host; None for a policy of a socket, or of another family than IPv4 and IPv6.

    Raises:
        WireError: fewer bytes than its layout needs, or an attribute is cut.
    """
    if len(body) < _POLICY.size:
        unpack(_POLICY, body)
    fields = _POLICY.unpack_from(body)
    destination, source, port, port_mask, source_port, source_port_mask, family, length, source_length = (
        fields[:9]
    )
    protocol, link, priority, direction, action = fields[9:]
    if family not in (0, INET, INET6) or direction not in _DIRECTIONS:
        return None
    found = attributes(body, _POLICY.size)
    mark, templates = found.get(_MARK_ATTRIBUTE), found.get(_TEMPLATES, b"")
    if len(templates) % _TEMPLATE.size:
        unpack(_TEMPLATE, b"")
    value, mask = (0, 0) if mark is None else unpack(_MARK, mark)
    return IpsecPolicy(
        direction=_DIRECTIONS[direction],
        source=_prefix(source, source_length, family),
        destination=_prefix(destination, length, family),
        protocol=protocol,
        port=int.from_bytes(port, "big"),
        port_mask=int.from_bytes(port_mask, "big"),
        source_port=int.from_bytes(source_port, "big"),
        source_port_mask=int.from_bytes(source_port_mask, "big"),
        link=link,
        mark=value,
        mark_mask=mask,
        priority=priority,
        is_block=action == _BLOCK,
        ends=tuple(
            _ends_of_template(source, destination, end_family, mode)
            for destination, end_family, source, mode, is_optional in _TEMPLATE.iter_unpack(templates)
            if not is_optional
        ),
    )


def _ends_of_template(source: bytes, destination: bytes, family: int, mode: int) -> IpsecEnds | None:
    """Return the ends that a template requires; None in transport mode, in which the kernel ignores the
    addresses of the template and uses the addresses of the packet.

    Source: net/xfrm/xfrm_policy.c, xfrm_tmpl_resolve_one, xfrm_state_ok.
    """
    if mode == _TRANSPORT:
        return None
    return IpsecEnds(source=_address(source, family), destination=_address(destination, family))


def dump_associations() -> Request:
    """Return the request for all security associations."""
    return Request(_GET_ASSOCIATION, DUMP, b"")


def parse_association(body: bytes) -> IpsecEnds | None:
    """Return the ends of a security association; None if a daemon has not negotiated it yet.

    Raises:
        WireError: fewer bytes than its layout needs.
    """
    if len(body) < _ASSOCIATION.size:
        unpack(_ASSOCIATION, body)
    destination, spi, source, family = _ASSOCIATION.unpack_from(body)
    if not spi:
        return None
    return IpsecEnds(source=_address(source, family), destination=_address(destination, family))


def _address(address: bytes, family: int) -> IpAddress:
    return IPv6Address(address) if family == INET6 else IPv4Address(address[:4])


def _prefix(address: bytes, length: int, family: int) -> IpNetwork:
    if family == INET6:
        return IPv6Network((address, min(length, 128)), strict=False)
    return IPv4Network((address[:4], min(length, 32)), strict=False)


def get_default() -> Request:
    """Return the request for the default actions of the host."""
    return Request(_GET_DEFAULT, 0, _DEFAULT.pack(0, 0, 0))


def parse_default(body: bytes) -> Iterator[IpsecPolicy]:
    """Yield a policy for all addresses of each family if the host blocks packets without a policy.

    Raises:
        WireError: the body is shorter than its layout.
    """
    for action, direction in zip(unpack(_DEFAULT, body), _OF_DEFAULT, strict=True):
        if action == _BLOCK:
            for everybody in _EVERYBODY:
                yield IpsecPolicy(
                    direction=direction,
                    source=everybody,
                    destination=everybody,
                    priority=_LAST,
                    is_block=True,
                )
