"""nf_tables by netlink, no more of it than whether a family has tables: NFT_MSG_GETTABLE.

Layout of the body, in octets: family 1, version 1, resource 2. Source: linux/netfilter/nfnetlink.h, struct
nfgenmsg; linux/netfilter/nf_tables.h.
"""

import struct

from pyflannel.wire.netlink.message import DUMP, Request

PROTOCOL = 12
"""NETLINK_NETFILTER (linux/netlink.h)."""

CHANGES = 1 << 6
"""Mask of the multicast group NFNLGRP_NFTABLES, 7."""

BRIDGE = 7
"""NFPROTO_BRIDGE (linux/netfilter.h)."""

_GET_TABLE = 10 << 8 | 1  # NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE


def dump_tables(family: int) -> Request:
    """Return the request for the tables of a family."""
    return Request(_GET_TABLE, DUMP, struct.pack("=BBH", family, 0, 0))
