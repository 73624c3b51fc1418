"""nf_tables by netlink, no more of it than the tables of a family, and a table that ends with its owner.

Layout of the body, in octets: family 1, version 1, resource 2 in network order. Source:
linux/netfilter/nfnetlink.h, struct nfgenmsg; linux/netfilter/nf_tables.h.
"""

import struct

from pyflannel.wire.netlink.message import ACK, CREATE, DUMP, EXCLUSIVE, Request, attribute

PROTOCOL = 12
"""NETLINK_NETFILTER (linux/netlink.h)."""

CHANGES = 1 << 6
"""Mask of the multicast group NFNLGRP_NFTABLES, 7."""

IPV4 = 2
BRIDGE = 7
"""NFPROTO_IPV4, NFPROTO_BRIDGE (linux/netfilter.h)."""

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW_TABLE = _SUBSYSTEM << 8  # NFT_MSG_NEWTABLE
_GET_TABLE = _SUBSYSTEM << 8 | 1  # NFT_MSG_GETTABLE
_BEGIN = 16  # NFNL_MSG_BATCH_BEGIN
_END = 17  # NFNL_MSG_BATCH_END
_NAME = 1  # NFTA_TABLE_NAME
_FLAGS = 2  # NFTA_TABLE_FLAGS
_OWNER = 2  # NFT_TABLE_F_OWNER, Linux 5.12
_BODY = struct.Struct("!BBH")


def dump_tables(family: int) -> Request:
    """Return the request for the tables of a family."""
    return Request(_GET_TABLE, DUMP, _BODY.pack(family, 0, 0))


def get_table(family: int, name: str) -> Request:
    """Return the request for one table."""
    return Request(_GET_TABLE, ACK, _BODY.pack(family, 0, 0) + _text(_NAME, name))


def own_table(family: int, name: str) -> tuple[Request, ...]:
    """Return the requests, for one datagram, that create a table of the socket's own.

    Nobody else can change it or delete it, and the kernel deletes it when the socket is closed. Where a table
    has this name, the kernel refuses: EPERM if another socket owns it, else EEXIST.
    """
    table = _BODY.pack(family, 0, 0) + _text(_NAME, name) + attribute(_FLAGS, struct.pack("!I", _OWNER))
    batch = _BODY.pack(0, 0, _SUBSYSTEM)
    return (
        Request(_BEGIN, 0, batch),
        Request(_NEW_TABLE, CREATE | EXCLUSIVE | ACK, table),
        Request(_END, 0, batch),
    )


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")
