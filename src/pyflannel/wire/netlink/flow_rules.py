"""Determines which rules of nf_tables decide about a packet by its flow alone, so that their decisions may be
cached.

A rule decides by the flow alone if it reads only addresses, ports, interfaces, the mark and the state of the
connection. A rule that counts, chooses at random, or reads another field may decide otherwise about the next
packet of the flow. A rule with an expression that is not listed here is treated like a rule that counts.

Only rules for forwarded packets matter: the rules of the hooks prerouting, forward and postrouting. Chains of
type nat decide once for each connection, and no changed flow is cached.

Source: linux/netfilter/nf_tables.h, linux/netfilter/xt_*.h.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct

from pyflannel.wire.netlink.message import attributes, text
from pyflannel.wire.netlink.nftables import (
    Expression,
    TableName,
    integer_of,
    nested_attributes,
    parse_chain,
    parse_rule,
)

_FAMILIES = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge"}
_NETDEV, _BRIDGE = 5, 7
_IPV4_FAMILIES = (1, 2)
_FORWARDED = (0, 2, 4)  # NF_INET_PRE_ROUTING, NF_INET_FORWARD, NF_INET_POST_ROUTING
_OWN_PACKETS = (1, 3)  # NF_INET_LOCAL_IN, NF_INET_LOCAL_OUT
_HEADER = struct.Struct(">BBH")

_HARMLESS = frozenset(
    {"bitwise", "byteorder", "cmp", "counter", "fib", "immediate", "log", "masq", "nat", "notrack", "range"}
    | {"redir", "reject"}
)
"""Expressions that read no packet, change no packet of a cached flow, and decide by values that other
expressions read.
"""

_META = frozenset({1, 3, 4, 5, 6, 7, 8, 9, 15, 16, 21, 22})
"""NFT_META_PROTOCOL, MARK, IIF, OIF, IIFNAME, OIFNAME, IIFTYPE, OIFTYPE, NFPROTO, L4PROTO, IIFGROUP,
OIFGROUP.
"""

_MARK = 3
_CT = frozenset({0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 17, 19, 20, 23})
"""NFT_CT_STATE, DIRECTION, STATUS, MARK, HELPER, L3PROTOCOL, SRC, DST, PROTOCOL, PROTO_SRC, PROTO_DST,
LABELS, ZONE, SRC_IP, DST_IP, ID.
"""

_CT_CHANGED = frozenset({3, 13})
"""NFT_CT_MARK, LABELS: a rule may set these keys."""

_NETWORK, _TRANSPORT = 1, 2
_ADDRESSES = range(12, 20)
_PROTOCOL = range(9, 10)
_PORTS = range(4)
_TCP_FLAGS = range(13, 14)
_OF_CONNECTIONS = 0x17
"""The flags FIN, SYN, RST and ACK: cached TCP packets have ACK and none of the other three flags."""

_MATCHES = frozenset({"addrtype", "comment", "connmark", "iprange", "mark", "multiport", "state", "udp"})
_TARGETS = frozenset(
    {
        "CONNMARK",
        "CT",
        "DNAT",
        "LOG",
        "MARK",
        "MASQUERADE",
        "NETMAP",
        "NFLOG",
        "NOTRACK",
        "REDIRECT",
        "REJECT",
    }
    | {"SNAT", "TCPMSS"}
)
"""Extensions of iptables. TCPMSS changes only packets that open a connection, and these are never cached."""

_CT_LIFETIME = slice(128, 136)  # struct xt_conntrack_mtinfo*: expires_min, expires_max
_XT_TCP = struct.Struct("=8xBBBB")  # option, mask of flags, flags, inversions

_JUMP, _GOTO = -3 & 0xFFFFFFFF, -4 & 0xFFFFFFFF


class FoundChain(Struct, frozen=True):
    """A chain. `hook` is None for a chain that is entered only by jumps."""

    table: TableName
    name: str
    hook: int | None
    type: str


class FoundRule(Struct, frozen=True):
    """A rule of any family."""

    table: TableName
    chain: str
    steps: tuple[Expression, ...]


SetName = tuple[TableName, str]
"""The table and the name of a set."""


def parse_found_chain(body: bytes) -> FoundChain:
    """Return the chain of a message's body.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    table, chain, _ = parse_chain(body)
    return FoundChain(table, chain.name, chain.hook, text(attributes(body, _HEADER.size).get(7, b"")))


def parse_found_rule(body: bytes) -> FoundRule:
    """Return the rule of a message's body.

    Raises:
        WireError: the body is too short, or an attribute has an invalid length.
    """
    return FoundRule(*parse_rule(body))


def parse_element_expressions(body: bytes) -> list[str]:
    """Return the names of the expressions in the set elements of a message."""
    names = []
    for listed in nested_attributes(attributes(body, _HEADER.size).get(3, b"")):
        found = attributes(listed)
        if 7 in found:
            names.append(text(attributes(found[7]).get(1, b"")))
        for one in nested_attributes(found.get(11, b"")):
            names.append(text(attributes(one).get(1, b"")))
        if 9 in found:
            names.append("objref")
    return names


def forwarded_rules(chains: Sequence[FoundChain], rules: Iterable[FoundRule]) -> list[FoundRule]:
    """Return the rules that may decide about a forwarded packet: the rules of the hooks, and of the chains
    that these rules enter.

    If a rule enters chains by a map, every chain without a hook in its table is included.
    """
    by_chain: dict[tuple[TableName, str], list[FoundRule]] = {}
    for rule in rules:
        by_chain.setdefault((rule.table, rule.chain), []).append(rule)
    left = [
        (chain.table, chain.name)
        for chain in chains
        if chain.table.family in _IPV4_FAMILIES and chain.hook in _FORWARDED and chain.type != "nat"
    ]
    reached = set(left)
    while left:
        table, name = left.pop()
        for rule in by_chain.get((table, name), ()):
            entered = {target for step in rule.steps for target in _targets(step)}
            if None in entered:
                entered = {one.name for one in chains if one.hook is None and one.table == table}
            further = {(table, one) for one in entered if one is not None} - reached
            reached |= further
            left += further
    return [rule for key in sorted(reached) for rule in by_chain.get(key, ())]


def _targets(step: Expression) -> Iterator[str | None]:
    """Yield the chain that a step enters; None if a map selects the chain."""
    name, data = step
    found = attributes(data)
    if name == "immediate":
        verdict = attributes(attributes(found.get(2, b"")).get(2, b""))
        if integer_of(verdict.get(1)) in (_JUMP, _GOTO):
            yield text(verdict.get(2, b""))
    elif name == "lookup" and 3 in found and integer_of(found[3]) == 0:
        yield None


def sets_of(rules: Iterable[FoundRule]) -> set[SetName]:
    """Return the sets and maps in which rules look up a key."""
    return {
        (rule.table, text(attributes(data).get(1, b"")))
        for rule in rules
        for name, data in rule.steps
        if name == "lookup"
    }


def objections(chains: Iterable[FoundChain], rules: Iterable[FoundRule]) -> Iterator[str]:
    """Yield the reasons why decisions about flows may not be cached, in the order of the rules.

    Args:
        chains: all chains of the host.
        rules: the rules that may decide about a forwarded packet.
    """
    for chain in chains:
        family = chain.table.family
        if family in (_NETDEV, _BRIDGE):
            yield f"nftables has tables of the {_FAMILIES[family]} family"
        elif family in _IPV4_FAMILIES and chain.hook not in (None, *_FORWARDED, *_OWN_PACKETS):
            yield f"chain {chain.table.name} {chain.name} is at the hook ingress"
    for rule in rules:
        for place, (name, data) in enumerate(rule.steps):
            following = rule.steps[place + 1] if place + 1 < len(rule.steps) else ("", b"")
            if (by := _objection(name, attributes(data), following)) is not None:
                where = f"{_FAMILIES[rule.table.family]} {rule.table.name} {rule.chain}"
                yield f"a rule of {where} decides by {by}"


def _objection(name: str, found: dict[int, bytes], following: Expression) -> str | None:
    """Return the property by which a step decides, if this property does not belong to the flow; else
    None.
    """
    if name in _HARMLESS or name == "lookup":
        return None
    match name:
        case "meta":
            is_read = 1 in found
            key = integer_of(found.get(2))
            is_known = key in _META if is_read else key == _MARK
            return None if is_known else f"meta {key}"
        case "ct":
            key = integer_of(found.get(2))
            return None if key in (_CT if 1 in found else _CT_CHANGED) else f"ct {key}"
        case "payload":
            return _payload_objection(found, following)
        case "objref":
            return None if integer_of(found.get(1)) == 1 else "a limit, a quota or another object"
        case "match":
            extension = text(found.get(1, b""))
            return None if _is_known_match(extension, found.get(3, b"")) else extension
        case "target":
            extension = text(found.get(1, b""))
            return None if extension in _TARGETS else extension
        case _:
            return name


def _payload_objection(found: dict[int, bytes], following: Expression) -> str | None:
    """Return the field of the packet that a step reads, if this field does not belong to the flow; else
    None.
    """
    if 1 not in found:
        return "a changed packet"
    base, offset, length = (integer_of(found.get(kind)) for kind in (2, 3, 4))
    read = range(offset, offset + length)
    allowed = {_NETWORK: (_ADDRESSES, _PROTOCOL), _TRANSPORT: (_PORTS,)}.get(base, ())
    if any(read and read[0] in one and read[-1] in one for one in allowed):
        return None
    if base == _TRANSPORT and read == _TCP_FLAGS:
        name, data = following
        mask = attributes(attributes(data).get(4, b"")).get(1, b"") if name == "bitwise" else b"\xff"
        return None if mask and not mask[0] & ~_OF_CONNECTIONS else "TCP flags"
    return "another field of the packet"


def _is_known_match(extension: str, info: bytes) -> bool:
    match extension:
        case "conntrack":
            return len(info) >= _CT_LIFETIME.stop and not any(info[_CT_LIFETIME])
        case "tcp":
            if len(info) < _XT_TCP.size:
                return False
            option, mask, _, _ = _XT_TCP.unpack_from(info)
            return not option and not mask & ~_OF_CONNECTIONS
        case _:
            return extension in _MATCHES
