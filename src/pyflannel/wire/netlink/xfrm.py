"""IPsec policies by netlink: the policies of the host, and its default action without a policy.

Layout of a policy, in bytes: selector 56 (destination 16, source 16, destination port 2 and its mask 2,
source port 2 and its mask 2, family 2, prefix lengths of destination and source 1 each, protocol 1, padding
3, interface 4, user 4), lifetimes 64 and 32, priority 4, index 4, direction 1, action 1. Ports are in network
order. Layout of the default: actions for received, forwarded and sent packets, 1 each. Source: linux/xfrm.h,
struct xfrm_userpolicy_info, struct xfrm_userpolicy_default.
"""

import struct
from collections.abc import Iterator
from ipaddress import IPv4Network

from pyflannel.model.host import IpsecPolicy
from pyflannel.wire.netlink.message import DUMP, INET, Request, unpack

PROTOCOL = 6
"""NETLINK_XFRM (linux/netlink.h)."""

POLICIES = 8
"""Mask of the multicast group of policies, XFRMGRP_POLICY."""

_GET_POLICY, _GET_DEFAULT = 0x15, 0x28
"""XFRM_MSG_GETPOLICY, and XFRM_MSG_GETDEFAULT of Linux 5.15 and later."""

_POLICY = struct.Struct("=4s12x4s12x2s2s2s2sHBBB3x8x64x32x8xBB")
_DEFAULT = struct.Struct("=BBB")
_IN, _OUT = 0, 1
_BLOCK = 1
_EVERYBODY = IPv4Network("0.0.0.0/0")


def dump_policies() -> Request:
    """Return the request for all policies."""
    return Request(_GET_POLICY, DUMP, b"")


def parse_policy(body: bytes) -> IpsecPolicy | None:
    """Return an IPv4 policy for received or sent packets; None for any other policy.

    Raises:
        WireError: fewer bytes than its layout needs.
    """
    if len(body) < _POLICY.size:
        unpack(_POLICY, body)
    fields = _POLICY.unpack_from(body)
    destination, source, port, port_mask, _, _, family, length, source_length, protocol, direction, _ = fields
    if family not in (0, INET) or direction not in (_IN, _OUT):
        return None
    return IpsecPolicy(
        is_outgoing=direction == _OUT,
        source=_prefix(source, source_length),
        destination=_prefix(destination, length),
        protocol=protocol,
        port=int.from_bytes(port, "big"),
        port_mask=int.from_bytes(port_mask, "big"),
    )


def _prefix(address: bytes, length: int) -> IPv4Network:
    return IPv4Network((int.from_bytes(address, "big"), min(length, 32)), strict=False)


def get_default() -> Request:
    """Return the request for the default action of the host."""
    return Request(_GET_DEFAULT, 0, _DEFAULT.pack(0, 0, 0))


def parse_default(body: bytes) -> Iterator[IpsecPolicy]:
    """Yield one policy for all addresses if the host blocks packets without a policy.

    Raises:
        WireError: fewer bytes than its layout needs.
    """
    arriving, _, leaving = unpack(_DEFAULT, body)
    for action, is_outgoing in ((arriving, False), (leaving, True)):
        if action == _BLOCK:
            yield IpsecPolicy(is_outgoing=is_outgoing, source=_EVERYBODY, destination=_EVERYBODY)
