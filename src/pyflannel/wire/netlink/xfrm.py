"""IPsec policies through netlink: the policies of the host, and its default action without a policy.

Layout of a policy, in bytes: selector 56 (destination 16, source 16, destination port 2 and its mask 2,
source port 2 and its mask 2, family 2, prefix lengths of destination and source 1 each, protocol 1, padding
3, interface 4, user 4), lifetimes 64 and 32, priority 4, index 4, direction 1, action 1, flags 1, share 1,
padding 4. Ports are in network order. Attributes follow: XFRMA_MARK contains a mark and its mask, 4 each.
Layout of the default: actions for received, forwarded and sent packets, 1 each. Source: linux/xfrm.h, struct
xfrm_userpolicy_info, struct xfrm_userpolicy_default.
"""

import struct
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Literal

from pyflannel.model.host import IpsecPolicy
from pyflannel.model.network_config import IpNetwork
from pyflannel.wire.netlink.message import DUMP, INET, INET6, Request, attributes, unpack

PROTOCOL = 6
"""NETLINK_XFRM (linux/netlink.h)."""

POLICIES = 8
"""Mask of the multicast group of policies, XFRMGRP_POLICY."""

_GET_POLICY, _GET_DEFAULT = 0x15, 0x28
"""XFRM_MSG_GETPOLICY, and XFRM_MSG_GETDEFAULT of Linux 5.15 and later."""

_POLICY = struct.Struct("=16s16s2s2s2s2sHBBB3xi4x64x32xI4xBB6x")
_MARK = struct.Struct("=II")
_MARK_ATTRIBUTE = 21
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
    mark = attributes(body, _POLICY.size).get(_MARK_ATTRIBUTE)
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
    )


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
