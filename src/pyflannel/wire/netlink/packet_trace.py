"""Tracing of one ICMP echo through nf_tables: rules that mark its packets, and the messages of the kernel.

A marked packet causes a message for each rule that it meets and for each policy that decides about it. The
packet of the tunnel that contains it is another packet: vxlan and udp have separate rules.

Source: linux/netfilter/nf_tables.h, enum nft_trace_attributes; linux/netfilter/nfnetlink.h.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from msgspec import Struct

from pyflannel.model.netfilter import ICMPV6, UDP
from pyflannel.model.network_config import IpAddress
from pyflannel.model.probe import PacketEvent, TracedPacket
from pyflannel.wire.netlink.message import Message, Request, attribute, attributes, text
from pyflannel.wire.netlink.nftables import (
    BRIDGE,
    LOCAL_OUT,
    META_PROTOCOL,
    NETWORK_HEADER,
    PREROUTING,
    REGISTER,
    TRANSPORT_HEADER,
    Chain,
    Expression,
    Rule,
    TableName,
    create_chain,
    create_rules,
    equals,
    integer_of,
    meta,
    own_table,
    payload,
    transaction,
)
from pyflannel.wire.packet import PROTOCOL_ICMP

GROUP = 1 << 8
"""Mask of the multicast group NFNLGRP_NFTRACE, 9."""

INET = 1
"""NFPROTO_INET."""

TABLE = "flannel-trace"

_TRACE = 10 << 8 | 17  # NFNL_SUBSYS_NFTABLES, NFT_MSG_TRACE
_BODY = struct.Struct(">BBH")
_U32 = struct.Struct(">I")
_ID = struct.Struct(">H")
_FIRST = -450
"""Priority before every other chain: conntrack defragments at -400 (linux/netfilter_ipv4.h)."""


class _Header(NamedTuple):
    """The IP header of a family: length, offsets of its fields in bytes, and the protocol number of ICMP."""

    size: int
    protocol_at: int
    addresses_at: int
    address_bytes: int
    icmp: int


_HEADERS: Mapping[int, _Header] = {4: _Header(20, 9, 12, 4, PROTOCOL_ICMP), 6: _Header(40, 6, 8, 16, ICMPV6)}
"""The headers by the version of IP. Source: RFC 791, RFC 8200."""

_IPV4_BYTES = 4
_MOST_COMPARED = 16  # struct nft_data
_ID_AT = 4
"""Offset of the identifier in the header of ICMP, and of ICMPv6."""

_UDP_BYTES = 8
_TUNNELS = (_UDP_BYTES, _UDP_BYTES + 8 + 14)
"""Bytes of the headers of UDP, and of UDP, VXLAN and Ethernet, before the inner packet."""

_META_TRACE = 12  # NFT_META_NFTRACE
_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}


class TracedEcho(Struct, frozen=True, kw_only=True):
    """The echo to follow: its ends and its identifier."""

    source: IpAddress
    destination: IpAddress
    identifier: int


def tracing_table(echo: TracedEcho, family: int) -> list[Request]:
    """Return the transaction that creates a table for this echo: INET, or BRIDGE for the ports of bridges.

    The socket that sends the transaction owns the table. The kernel deletes the table when the socket is
    closed.
    """
    table = TableName(family, TABLE)
    hooks = {"prerouting": PREROUTING}
    if family != BRIDGE:
        hooks["output"] = LOCAL_OUT
    requests: list[Request] = [*own_table(table)[1:-1]]
    for hook, number in hooks.items():
        for name, rules in _rules(echo).items():
            chain = Chain(f"{name}-{hook}", rules, number, _FIRST)
            requests += [create_chain(table, chain), *create_rules(table, chain)]
    return transaction(requests)


def _rules(echo: TracedEcho) -> Mapping[str, tuple[Rule, ...]]:
    there, back = echo.source.packed + echo.destination.packed, echo.destination.packed + echo.source.packed
    header, identifier = _HEADERS[echo.source.version], _ID.pack(echo.identifier)
    return {
        f"{prefix}{name}": tuple(Rule(f"{prefix}{name}", (*one, *_MARK)) for one in steps)
        for name, ends in (("request", there), ("reply", back))
        for prefix, steps in (
            ("", [_plain(header, ends, identifier)]),
            ("tunnel-", list(_inside(header, ends, identifier))),
        )
    }


def _plain(header: _Header, ends: bytes, identifier: bytes) -> tuple[Expression, ...]:
    return (
        payload(NETWORK_HEADER, header.protocol_at, 1),
        equals(bytes([header.icmp])),
        *_has(NETWORK_HEADER, header.addresses_at, ends),
        payload(TRANSPORT_HEADER, _ID_AT, _ID.size),
        equals(identifier),
    )


def _has(base: int, offset: int, data: bytes) -> Iterator[Expression]:
    """Yield the conditions under which these bytes equal `data`. One condition compares at most 16 bytes."""
    for start in range(0, len(data), _MOST_COMPARED):
        part = data[start : start + _MOST_COMPARED]
        yield payload(base, offset + start, len(part))
        yield equals(part)


def _inside(header: _Header, ends: bytes, identifier: bytes) -> Iterator[tuple[Expression, ...]]:
    """Yield the conditions for the packet of a tunnel, of either family, that contains the echo."""
    for before in _TUNNELS:
        yield (
            meta(META_PROTOCOL),
            equals(bytes([UDP])),
            payload(TRANSPORT_HEADER, before + header.protocol_at, 1),
            equals(bytes([header.icmp])),
            *_has(TRANSPORT_HEADER, before + header.addresses_at, ends),
            payload(TRANSPORT_HEADER, before + header.size + _ID_AT, _ID.size),
            equals(identifier),
        )


_MARK: tuple[Expression, ...] = (
    (
        "immediate",
        attribute(1, _U32.pack(REGISTER)) + attribute(2 | 0x8000, attribute(1, b"\x01\x00\x00\x00")),
    ),
    ("meta", attribute(2, _U32.pack(_META_TRACE)) + attribute(3, _U32.pack(REGISTER))),
)


class TraceMessage(Struct, frozen=True, kw_only=True):
    """One message: a rule that a packet met, or a policy.

    Attributes:
        number: the same for the messages of one packet, while its route and its interface are the same.
        handle: handle of the rule; None for a policy, and for the end of a chain.
        iif, oif: indexes of the interfaces; 0 for no interface.
        source: source of the packet. Only the first message of a chain contains it and the interfaces.
        is_icmp: True if the packet is an ICMP packet.
    """

    number: int
    family: str
    table: str
    chain: str
    handle: int | None
    verdict: str
    iif: int = 0
    oif: int = 0
    source: IpAddress | None = None
    is_icmp: bool = False

    @property
    def packet(self) -> TracedPacket | None:
        """The packet, if this object is a message about a rule of the tracing table; None otherwise."""
        is_own = self.table == TABLE and self.handle is not None
        return _PACKETS.get(self.chain.rpartition("-")[0]) if is_own else None


_PACKETS: Mapping[str, TracedPacket] = {
    "request": "request",
    "reply": "reply",
    "tunnel-request": "tunnel request",
    "tunnel-reply": "tunnel reply",
}
_VERDICTS: Mapping[int, str] = {
    0: "drop",
    1: "accept",
    2: "stolen",
    3: "queue",
    -1: "continue",
    -3: "jump",
    -4: "goto",
    -5: "return",
}
_POLICY, _RULE = 1, 3  # NFT_TRACETYPE_*


def parse_trace(message: Message) -> TraceMessage | None:
    """Return the content of a message about a traced packet; None for any other message.

    Raises:
        WireError: an attribute is cut.
    """
    if message.kind != _TRACE or len(message.body) < _BODY.size:
        return None
    found = attributes(message.body, _BODY.size)
    kind = integer_of(found.get(4))
    if kind not in (_POLICY, _RULE):
        return None
    if kind == _POLICY:
        code, target = integer_of(found.get(16)), ""
    else:
        verdict = attributes(found.get(5, b""))
        code, target = _signed(integer_of(verdict.get(1))), text(verdict.get(2, b""))
    source, is_icmp = _sender(found.get(8, b""))
    return TraceMessage(
        number=integer_of(found.get(6)),
        family=_FAMILIES.get(message.body[0], str(message.body[0])),
        table=text(found.get(1, b"")),
        chain=text(found.get(2, b"")),
        handle=integer_of(found[3]) if 3 in found else None,
        verdict=f"{_VERDICTS.get(code, str(code))} {target}".rstrip(),
        iif=integer_of(found.get(10)),
        oif=integer_of(found.get(12)),
        source=source,
        is_icmp=is_icmp,
    )


def _sender(data: bytes) -> tuple[IpAddress | None, bool]:
    """Return the source of a packet with this header, and whether the packet is one of ICMP."""
    header = _HEADERS.get(data[0] >> 4) if data else None
    if header is None or len(data) < header.size:
        return None, False
    address = data[header.addresses_at :][: header.address_bytes]
    source = IPv4Address(address) if header.address_bytes == _IPV4_BYTES else IPv6Address(address)
    return source, data[header.protocol_at] == header.icmp


def _signed(code: int) -> int:
    return code - (1 << 32) if code >> 31 else code


def decisions(
    messages: Iterable[TraceMessage], echo: TracedEcho, names: Mapping[int, str]
) -> Iterator[PacketEvent]:
    """Yield the decisions, in order, without decisions of the tracing table, and without rules that decide
    nothing.

    `names`: names of the links, by index.
    """
    by_source: dict[tuple[IpAddress, bool], TracedPacket] = {
        (echo.source, True): "request",
        (echo.destination, True): "reply",
    }
    by_number: dict[int, TracedPacket] = {}
    links: dict[tuple[int, str, str], tuple[str | None, str | None]] = {}
    for one in messages:
        place = one.number, one.table, one.chain
        if one.source is not None:
            if one.packet is not None:
                by_source[one.source, one.is_icmp] = one.packet
            if (packet := by_source.get((one.source, one.is_icmp))) is not None:
                by_number[one.number] = packet
            links[place] = names.get(one.iif), names.get(one.oif)
        if one.table == TABLE or one.verdict == "continue" or one.number not in by_number:
            continue
        iif, oif = links.get(place, (None, None))
        yield PacketEvent(
            packet=by_number[one.number],
            family=one.family,
            table=one.table,
            chain=one.chain,
            handle=one.handle,
            verdict=one.verdict,
            iif=iif,
            oif=oif,
        )
