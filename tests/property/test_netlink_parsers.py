"""Parsers of netlink messages under hostile input: each parser returns or raises its own error.

Each parser gets a thousand inputs, and many more from `scripts/test fuzz`.
"""

import struct
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any

import pytest
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.hostile_inputs import Parser, check, damaged
from pyflannel.errors import WireError
from pyflannel.wire.netlink import (
    addresses,
    bridges,
    flow_rules,
    links,
    message,
    neighbours,
    nftables,
    packet_trace,
    routes,
    tc,
    unix_sockets,
    xfrm,
)

# Netlink: bodies of messages, with the attributes that each parser reads.

U32 = struct.Struct("=I")
families = st.sampled_from([0, 2, 2, 7, 7, 10, 10, 28])
numbers = st.integers(0, 2**32 - 1).map(U32.pack) | st.sampled_from([b"", b"\1", bytes(4), U32.pack(254)])
ips = st.sampled_from([bytes([10, 3, 1, 0]), bytes(4), bytes(16), bytes([0xFD]) + bytes(15), b"\1\2\3"])
names = st.sampled_from([b"eth0\0", b"bridge\0", b"vxlan\0", b"tun\0", b"bpf\0", b"\xff\xfe", b""])
macs = st.sampled_from([bytes.fromhex("0e0000000001"), b"", b"\1"])
payloads = numbers | ips | names | macs | st.binary(max_size=12)


def attributes_of(
    kinds: Sequence[int], inner: st.SearchStrategy[bytes] = payloads
) -> st.SearchStrategy[bytes]:
    """Attributes one after the other, some of them nested."""
    one = st.builds(message.attribute, st.sampled_from(kinds), inner)
    return st.lists(one, max_size=8).map(b"".join)


def body(layout: str, fields: Sequence[Any], parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """The fixed fields of a message and its attributes, sometimes damaged."""
    packed = st.tuples(*fields).map(lambda values: struct.pack(layout, *values))
    whole = st.builds(bytes.__add__, packed, parts)
    return whole | damaged(whole)


byte = st.integers(0, 255)
index = st.integers(-(2**31), 2**31 - 1)
word = st.integers(0, 2**32 - 1)
info = attributes_of([1, 2, 5], payloads | attributes_of(range(1, 24)))
per_family = attributes_of([10], attributes_of([2], st.just(bytes(400)) | payloads))
vxlan_info = st.just(message.attribute(1, b"vxlan\0")).flatmap(
    lambda kind: attributes_of(range(1, 24)).map(lambda data: kind + message.attribute(2, data))
)
tap_info = st.just(message.attribute(1, b"tun\0") + message.attribute(2, message.attribute(3, b"\2\0\0\0")))
bridge_info = attributes_of(range(1, 9), numbers).map(
    lambda data: message.attribute(1, b"bridge\0") + message.attribute(2, data) + message.attribute(5, data)
)
link_parts = attributes_of(
    [1, 3, 4, 5, 6, 10, 13, 18, 20, 26, 37],
    payloads | info | per_family | vxlan_info | tap_info | bridge_info,
) | st.tuples(vxlan_info | tap_info | bridge_info, per_family).map(
    lambda two: message.attribute(18, two[0]) + message.attribute(26, two[1])
)
link_bodies = body("=BxHiII", [families, st.integers(0, 9), index, word, word], link_parts)
route_parts = attributes_of([1, 4, 5, 6, 7, 9, 18], payloads | st.just(bytes(8)))
route_bodies = body(
    "=BBBBBBBBI",
    [
        families,
        st.integers(0, 130),
        byte,
        st.sampled_from([0, 0, 4]),
        st.just(254) | byte,
        byte,
        byte,
        byte,
        st.sampled_from([0, 4, 0x200]),
    ],
    route_parts,
)
neighbour_bodies = body(
    "=BxxxiHBB",
    [families, index, st.integers(0, 255), st.sampled_from([0, 2]), byte],
    attributes_of([1, 2, 3, 7, 9], ips | macs | payloads),
)
address_bodies = body(
    "=BBBBi", [families, st.integers(0, 130), byte, byte, index], attributes_of([1, 2, 8], ips | payloads)
)
tc_bodies = body(
    "=B3xiIII",
    [byte, index, word, word, word],
    attributes_of([1, 2], names | attributes_of([6, 7, 8, 11]))
    | attributes_of([11, 8], numbers).map(lambda o: message.attribute(1, b"bpf\0") + message.attribute(2, o)),
)
ANSWER = struct.Struct("=HH")  # kind and flags of an acknowledgement, in front of its body
acknowledgements = st.builds(
    lambda kind, flags, data: ANSWER.pack(kind, flags) + data,
    st.sampled_from([message.ERROR, message.DONE]),
    st.sampled_from([0, 0x100, 0x200, 0x300]),
    body("=iIHHII", [index, st.integers(0, 40), byte, byte, word, word], attributes_of([1, 2], names)),
)
policies = body(
    "=4s12x4s12x2s2s2s2sHBBB3xi4x64x32xI4xBB6x",
    [
        st.binary(min_size=4, max_size=4),
        st.binary(min_size=4, max_size=4),
        *[st.binary(min_size=2, max_size=2)] * 4,
        families,
        byte,
        byte,
        byte,
        index,
        word,
        st.integers(0, 4),
        st.integers(0, 2),
    ],
    attributes_of([5, 21], st.binary(max_size=9)),
)
associations = body(
    "=56x16sI4x16x64x32x12x8xH", [st.binary(min_size=16, max_size=16), word, families], attributes_of([5])
)
defaults = st.lists(st.integers(0, 2), max_size=4).map(bytes)
datagrams = damaged(
    st.lists(
        st.builds(
            lambda kind, data: message.pack(message.Request(kind, 0, data), 1),
            byte,
            st.binary(max_size=9),
        ),
        max_size=3,
    ).map(b"".join)
)


def read_acknowledgement(data: bytes) -> None:
    if len(data) >= ANSWER.size:
        kind, flags = ANSWER.unpack_from(data)
        message.parse_acknowledgement(message.Message(kind, flags, 1, 0, data[ANSWER.size :]))


def read_route(data: bytes) -> None:
    for read in (
        routes.glance_at_route,
        routes.protocol_of,
        routes.is_on_link,
        routes.parse_route,
        lambda one: routes.covers(one, IPv4Address("10.3.1.9")),
    ):
        with suppress(WireError):
            read(data)


def read_neighbour(data: bytes) -> None:
    for read in (
        neighbours.lasting_part,
        neighbours.entry_index,
        neighbours.parse_neighbour,
        neighbours.parse_fdb_entry,
        bridges.parse_learned,
    ):
        with suppress(WireError):
            read(data)


def read_link(data: bytes) -> None:
    for read in (links.parse_link, links.parse_far_veth, bridges.parse_bridge_link):
        with suppress(WireError):
            read(data)


def read_tc(data: bytes) -> None:
    for read in (tc.parse_filter, tc.parse_qdisc):
        with suppress(WireError):
            read(data)


def read_next_hop(data: bytes) -> None:
    routes.next_hop_protocol(data)
    routes.parse_next_hop_number(data)


def read_address(data: bytes) -> None:
    addresses.address_index(data)
    addresses.parse_address_message(data)


# nf_tables: tables, sets, elements, chains and rules.

TABLE = nftables.TableName(nftables.IPV6, "flannel-guard")
A_SET = nftables.SetSpec("peers", (nftables.IPV4_ADDRESS, nftables.SERVICE), nftables.INTERVALS, 9, 1000)
A_RULE = nftables.Rule("a comment", (nftables.meta(7), nftables.equals(b"abcd"), nftables.verdict(1)))
A_CHAIN = nftables.Chain("input", (A_RULE,), hook=nftables.PREROUTING, priority=-300)


def big(kind: int, number: int) -> bytes:
    return message.attribute(kind, struct.pack(">I", number))


def named(name: str, info: bytes = b"") -> bytes:
    return message.attribute(1, name.encode() + b"\0") + message.attribute(3, info)


FLAGS = nftables.payload(nftables.TRANSPORT_HEADER, 13, 1)
FLOW_RULE = nftables.Rule(
    "each expression that a decision about flows may depend on",
    (
        nftables.goto("jumped"),
        nftables.is_in("peers"),
        ("lookup", message.attribute(1, b"verdicts\0") + big(3, 0)),
        nftables.set_mark(),
        nftables.meta(nftables.META_USER),
        *(("ct", big(kind, 1) + big(2, key)) for kind in (1, 4) for key in (0, 3, 14)),
        nftables.payload(nftables.NETWORK_HEADER, 12, 8),
        nftables.payload(nftables.NETWORK_HEADER, 8, 1),
        ("payload", big(2, 1)),
        FLAGS,
        nftables.masked(b"\x17"),
        FLAGS,
        nftables.masked(b"\xff"),
        FLAGS,
        ("objref", big(1, 1)),
        ("objref", big(1, 2)),
        *(("match", named(name, bytes(140))) for name in ("conntrack", "tcp", "mark", "owner")),
        *(("match", named(name)) for name in ("conntrack", "tcp")),
        *(("target", named(name)) for name in ("MASQUERADE", "NFQUEUE")),
        ("limit", b""),
    ),
)
FLOW_CHAIN = nftables.Chain("jumped", (FLOW_RULE,))
LIMITED = message.nest(
    3,
    message.nest(
        1,
        message.nest(7, named("limit")),
        message.nest(9, named("object")),
        message.nest(11, message.nest(1, named("quota"))),
    ),
)
COUNTED = message.nest(
    3,
    message.nest(
        1,
        message.nest(1, message.attribute(1, b"key1")),
        message.attribute(4, bytes(6) + b"\x10\0"),
        message.attribute(5, bytes(6) + b"\1\0"),
        message.nest(
            7, message.attribute(1, b"counter\0"), message.nest(2, message.attribute(2, bytes(7) + b"\5"))
        ),
    ),
)
NF_TABLES = [
    nftables.create_table(TABLE).body,
    nftables.create_set(TABLE, A_SET, 1).body,
    *(one.body for one in nftables.add_elements(TABLE, A_SET, [b"abcdefgh", b"abcdefghijklmnop"])),
    nftables.create_chain(TABLE, A_CHAIN).body,
    nftables.create_chain(TABLE, nftables.Chain("jumped", ())).body,
    *(one.body for chain in (A_CHAIN, FLOW_CHAIN) for one in nftables.create_rules(TABLE, chain)),
    *(struct.pack(">BBH", 2, 0, 0) + elements for elements in (COUNTED, LIMITED)),
]
nf_tables = damaged(st.sampled_from(NF_TABLES)) | body(
    ">BBH",
    [st.just(2), st.just(0), st.just(0)],
    attributes_of(
        range(1, 12), payloads | attributes_of([1, 2, 4, 5, 7, 10], payloads | attributes_of([1, 2]))
    ),
)


traces = body(
    ">BBH",
    [families, byte, st.just(0)],
    attributes_of(
        [1, 2, 3, 4, 5, 6, 8, 10, 12, 16],
        st.binary(max_size=24) | st.sampled_from([b"\0\0\0\1", b"\0\0\0\3", b"fw\0"]),
    ),
)


TRACES = [
    struct.pack(">BBH", 1, 0, 0)
    + message.attribute(1, b"fw\0")
    + message.attribute(2, b"f\0")
    + big(4, kind)
    + big(6, 7)
    + message.attribute(3, bytes(7) + b"\5")
    + message.nest(5, big(1, code), message.attribute(2, b"sub\0"))
    + message.attribute(8, bytes(20))
    + big(10, 2)
    + big(16, code)
    for kind in (1, 2, 3)
    for code in (0, 1, -3 & 0xFFFFFFFF)
]


def read_trace(data: bytes) -> None:
    packet_trace.parse_trace(message.Message(kind=10 << 8 | 17, flags=0, sequence=0, port=0, body=data))


def judge(data: bytes) -> None:
    """Examine a rule as a rule of a chain at the hook forward, and as a rule of a chain that this chain jumps
    to.
    """
    rule = flow_rules.parse_found_rule(data)
    chain = flow_rules.FoundChain(rule.table._replace(family=nftables.IPV4), rule.chain, 2, "filter")
    rule = replace(rule, table=chain.table)
    assert flow_rules.forwarded_rules([chain], [rule]) == [rule]
    flow_rules.sets_of([rule])
    list(flow_rules.objections([chain], [rule]))
    jumped = replace(chain, name="jumped", hook=None)
    flow_rules.forwarded_rules([chain, jumped], [rule, replace(rule, chain="jumped")])
    for family, hook in ((nftables.BRIDGE, 2), (nftables.IPV4, 5)):
        table = rule.table._replace(family=family)
        list(flow_rules.objections([replace(chain, table=table, hook=hook)], []))


def read_nf_tables(data: bytes) -> None:
    for kind in (0x0A00, 0x0200):
        nftables.table_of(message.Message(kind, 0, 1, 0, data))
    for parse in (
        nftables.parse_set,
        nftables.parse_elements,
        nftables.parse_counted_elements,
        nftables.parse_element_bytes,
        nftables.parse_chain,
        nftables.parse_generation,
        flow_rules.parse_found_chain,
        flow_rules.parse_element_expressions,
        judge,
        lambda one: nftables.is_rule(A_RULE, nftables.parse_rule(one)[2]),
    ):
        with suppress(WireError):
            parse(data)


HEADER = struct.pack("=IHHII", 20, 24, 0, 1, 0)
REFUSED = struct.pack("=i", -22) + HEADER + message.attribute(1, b"no\0")
ACKNOWLEDGEMENTS = [
    *(ANSWER.pack(message.ERROR, flags) + REFUSED for flags in (0, 0x100, 0x200, 0x300)),
    ANSWER.pack(message.DONE, 0x200) + bytes(4) + message.attribute(1, b"no\0"),
]
A_ROUTE = routes.RouteRecord(
    destination=IPv4Network("10.3.1.0/24"), index=4, gateway=IPv4Address("10.3.1.1"), metric=7, is_onlink=True
)
PLAIN = routes.put_route(A_ROUTE).body
ROUTES = [
    b"",
    PLAIN,
    routes.put_route(replace(A_ROUTE, gateway=IPv6Address("fe80::1"), source=IPv4Address("10.3.1.1"))).body,
    routes.put_route(replace(A_ROUTE, destination=IPv6Network("fd00::/64"), gateway=None)).body,
    routes.put_route(replace(A_ROUTE, mtu=1350)).body,
    PLAIN[:12] + bytes(4),
    PLAIN[:12] + message.attribute(9, struct.pack("=HBBi", 8, 0, 0, 4)),
    struct.pack("=BBBBBBBBI", 2, 33, 0, 0, 254, 0, 0, 1, 0),
    struct.pack("=BBBBBBBBI", 10, 129, 0, 0, 254, 0, 0, 1, 0),
    struct.pack("=BBBBBBBBI", 28, 0, 0, 0, 254, 0, 0, 1, 0),
    struct.pack("=BBBBBBBBI", 2, 24, 0, 4, 254, 0, 0, 1, 0),
]
A_NEIGHBOUR = neighbours.put_neighbour(4, IPv4Address("10.3.1.0"), "0e:00:00:00:00:01").body
NEIGHBOURS = [
    A_NEIGHBOUR,
    A_NEIGHBOUR + message.attribute(3, bytes(16)),
    neighbours.put_fdb_entry(4, "0e:00:00:00:00:01", IPv4Address("192.0.2.1")).body,
]
ADDRESSES = [
    addresses.add_address(4, IPv4Interface("10.3.1.1/24")).body,
    addresses.add_address(4, IPv6Interface("fd00::1/64")).body + message.attribute(8, U32.pack(0x80)),
    addresses.remove_address(4, IPv4Interface("10.3.1.1/24"), IPv4Address("10.3.1.2")).body,
    struct.pack("=BBBBi", 2, 33, 0, 0, 4) + message.attribute(1, bytes(4)),
    struct.pack("=BBBBi", 28, 0, 0, 0, 4),
]
TAP = message.attribute(1, b"tun\0") + message.attribute(2, message.attribute(3, b"\2\0\0\0"))
LINKS = [
    links.create_vxlan("flannel.1", "0e:00:00:00:00:01", links.VxlanRecord(vni=1, port=8472, parent=4)).body,
    links.create_veth("a", "b", 1).body,
    bytes(16) + message.attribute(18, message.attribute(1, b"veth\0")) + message.attribute(37, bytes(4)),
    bytes(16) + message.attribute(18, TAP),
]
UNIX_SOCKETS = [
    struct.pack("=BBBxIQ", 1, 1, 10, 77, 9) + message.attribute(0, name)
    for name in (b"/run/flannel/forwarder.sock\0", b"\0abstract", b"/tmp/\n0: 2 0 0 1 1 77 /run/a\0", b"")
]
unix_socket_bodies = damaged(st.sampled_from(UNIX_SOCKETS)) | body(
    "=BBBxIQ", [byte, byte, byte, word, st.integers(0, 2**64 - 1)], attributes_of([0, 1, 4])
)
PARSERS = [
    Parser("netlink datagram", lambda data: list(message.split(data)), datagrams | st.binary(max_size=40)),
    Parser("acknowledgement", read_acknowledgement, acknowledgements, corpus=ACKNOWLEDGEMENTS),
    Parser("link", read_link, link_bodies, (), LINKS),
    Parser("route", read_route, route_bodies, (), ROUTES),
    Parser("neighbour", read_neighbour, neighbour_bodies, (), NEIGHBOURS),
    Parser("address", read_address, address_bodies, corpus=ADDRESSES),
    Parser("next hop", read_next_hop, body("=BBBxI", [families, byte, byte, word], attributes_of([1, 5, 6]))),
    Parser("object of tc", read_tc, tc_bodies, ()),
    Parser("object of nf_tables", read_nf_tables, nf_tables, corpus=NF_TABLES),
    Parser("Unix socket", unix_sockets.parse_path, unix_socket_bodies, corpus=UNIX_SOCKETS),
    Parser("IPsec policy", xfrm.parse_policy, policies),
    Parser("security association", xfrm.parse_association, associations),
    Parser(
        "message of a traced packet", read_trace, traces | damaged(st.sampled_from(TRACES)), corpus=TRACES
    ),
    Parser("default of IPsec", lambda data: list(xfrm.parse_default(data)), defaults),
]


@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_a_parser_raises_no_error_but_its_own(parser: Parser) -> None:
    check(parser)
