"""nf_tables through netlink: transactions, tables, chains, rules, sets, and the expressions of rules.

Layout of a body, in bytes: family 1, version 1, resource 2 (big-endian), then attributes. All numbers in
attributes are big-endian. Source: linux/netfilter/nfnetlink.h, struct nfgenmsg; linux/netfilter/nf_tables.h.
"""

import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from pyflannel.wire.netlink.message import (
    ACK,
    ATTRIBUTE,
    CREATE,
    DUMP,
    EXCLUSIVE,
    Message,
    Request,
    attribute,
    attributes,
    nest,
    text,
)

PROTOCOL = 12
"""NETLINK_NETFILTER (linux/netlink.h)."""

CHANGES = 1 << 6
"""Mask of the multicast group NFNLGRP_NFTABLES, 7."""

ANY_FAMILY, IPV4, BRIDGE, IPV6 = 0, 2, 7, 10
"""NFPROTO_* (linux/netfilter.h)."""

_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE = 0, 1, 2
_NEW_CHAIN, _GET_CHAIN, _DELETE_CHAIN = 3, 4, 5
_NEW_RULE, _GET_RULE, _DELETE_RULE = 6, 7, 8
_NEW_SET, _GET_SET = 9, 10
_NEW_ELEMENTS, _GET_ELEMENTS, _DELETE_ELEMENTS = 12, 13, 14
_GET_GENERATION = 16
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11

_BODY = struct.Struct(">BBH")
_U32 = struct.Struct(">I")
_U64 = struct.Struct(">Q")

_TABLE, _NAME = 1, 2
"""NFTA_*_TABLE of all messages; in the message of a table, the same number is its name; NFTA_SET_NAME."""

_FLAGS = 2  # NFTA_TABLE_FLAGS
_OWNER = 2  # NFT_TABLE_F_OWNER, Linux 5.12

_LIST_ELEMENT = 1
_APPEND = 0x800


class TableName(NamedTuple):
    """The identity of a table: its family (`NFPROTO_*`) and its name."""

    family: int
    name: str


def dump_tables(family: int = ANY_FAMILY) -> Request:
    """Return the request for the tables of a family."""
    return Request(_kind(_GET_TABLE), DUMP, _BODY.pack(family, 0, 0))


def parse_table_name(body: bytes) -> TableName:
    """Return the table in a message, of any kind of object."""
    return _table_in(body, attributes(body, _BODY.size))


def transaction(requests: Iterable[Request]) -> list[Request]:
    """Return the requests as one transaction: all take effect, or none."""
    body = _BODY.pack(0, 0, _SUBSYSTEM)
    return [Request(_BATCH_BEGIN, 0, body), *requests, Request(_BATCH_END, 0, body)]


def table_of(message: Message) -> TableName | None:
    """Return the table that a notification concerns; None if it concerns no table."""
    if message.kind >> 8 != _SUBSYSTEM or message.kind & 0xFF > _DELETE_ELEMENTS:
        return None
    return parse_table_name(message.body)


def get_table(table: TableName) -> Request:
    """Return the request for one table."""
    return _request(_GET_TABLE, 0, table)


def own_table(table: TableName) -> list[Request]:
    """Return the requests, in one datagram, that create a table that the socket owns.

    Only this socket can change or delete the table, and the kernel deletes it when the socket is closed. If a
    table with this name exists, the kernel refuses the request: EPERM if another socket owns the table, else
    EEXIST.
    """
    return transaction([_request(_NEW_TABLE, CREATE | EXCLUSIVE, table, _number(_FLAGS, _OWNER))])


def create_table(table: TableName) -> Request:
    """Return the request that creates a table, or keeps an existing table."""
    return _request(_NEW_TABLE, CREATE, table)


def delete_table(table: TableName) -> Request:
    """Return the request that removes a table and its content."""
    return _request(_DELETE_TABLE, 0, table)


def get_generation() -> Request:
    """Return the request for the number of the ruleset, which grows with each transaction."""
    return Request(_kind(_GET_GENERATION), ACK, _BODY.pack(ANY_FAMILY, 0, 0))


def parse_generation(body: bytes) -> int:
    """Return the number of the ruleset."""
    return integer_of(attributes(body, _BODY.size).get(1))


# Sets and their elements.


class SetSpec(Struct, frozen=True):
    """A set.

    Attributes:
        types: types of the key's fields, which nft shows.
        flags: NFT_SET_*.
        size: maximum number of elements; 0 if there is no limit.
        timeout_ms: lifetime of an element that a rule adds; 0 for no limit.
        counts: each element counts the packets and bytes of its look-ups. Kernels before Linux 5.7 ignore
            this.
    """

    name: str
    types: tuple[int, ...]
    flags: int = 0
    size: int = 0
    timeout_ms: int = 0
    counts: bool = False

    @property
    def key_length(self) -> int:
        """Length of a key in bytes. In a key with several fields, each field takes a multiple of four
        bytes.
        """
        if len(self.types) == 1:
            return _LENGTHS[self.types[0]]
        return sum(-(-_LENGTHS[one] // 4) * 4 for one in self.types)


_CONCATENATED = 0x80
INTERVALS = 0x4 | _CONCATENATED
"""NFT_SET_INTERVAL, NFT_SET_CONCAT: an element is a range in each field of the key."""

ADDED_BY_RULES = 0x10 | 0x20
"""NFT_SET_TIMEOUT, NFT_SET_EVAL."""

IPV4_ADDRESS, IPV6_ADDRESS, SERVICE = 7, 8, 13
"""Types of fields in libnftables: ipv4_addr, ipv6_addr, inet_service."""

_LENGTHS = {IPV4_ADDRESS: 4, IPV6_ADDRESS: 16, SERVICE: 2}
"""Length of a field in bytes."""

Element = bytes
"""An element of a set: its key, followed by the last key if it is a range; empty for the catch-all element.

A set may have tens of thousands of elements.
"""

_OF_ALL_KEYS = 2  # NFT_SET_ELEM_CATCHALL, Linux 5.13


def create_set(table: TableName, spec: SetSpec, number: int) -> Request:
    """Return the request that creates a set, or keeps an existing equal set.

    `number` is different for each set of a transaction.
    """
    lengths = [_LENGTHS[one] for one in spec.types] if spec.flags & _CONCATENATED else []
    fields = [nest(_LIST_ELEMENT, _number(1, length)) for length in lengths]
    size = [_number(1, spec.size)] if spec.size else []
    key_type = 0
    for one in spec.types:
        key_type = key_type << 6 | one
    return _request(
        _NEW_SET,
        CREATE,
        table,
        _text(_NAME, spec.name),
        _number(3, spec.flags),
        _number(4, key_type),
        _number(5, spec.key_length),
        nest(9, *size, *([nest(2, *fields)] if fields else [])),
        _number(10, number),
        *([attribute(11, _U64.pack(spec.timeout_ms))] if spec.timeout_ms else []),
        *([_counter_of_elements(17)] if spec.counts else []),
    )


def dump_sets(table: TableName) -> Request:
    """Return the request for the sets of a table."""
    return _dump(_GET_SET, table)


def parse_set(body: bytes) -> tuple[str, int, int]:
    """Return the name of a set, its flags, and the length of its keys."""
    found = attributes(body, _BODY.size)
    return text(found.get(_NAME, b"")), integer_of(found.get(3)), integer_of(found.get(5))


_MOST_ELEMENTS = 1000
"""Number of elements in one message. An attribute has at most 65,535 bytes."""


def add_elements(table: TableName, spec: SetSpec, elements: Iterable[Element]) -> Iterator[Request]:
    """Yield the requests that add elements to a set. Existing elements are kept."""
    yield from _elements(_NEW_ELEMENTS, CREATE, table, spec, elements)


def delete_elements(table: TableName, spec: SetSpec, elements: Iterable[Element]) -> Iterator[Request]:
    """Yield the requests that remove elements. The kernel refuses these requests if an element does not
    exist.
    """
    yield from _elements(_DELETE_ELEMENTS, 0, table, spec, elements)


def _elements(
    kind: int, flags: int, table: TableName, spec: SetSpec, elements: Iterable[Element]
) -> Iterator[Request]:
    length, rest = spec.key_length, iter(elements)
    while part := list(islice(rest, _MOST_ELEMENTS)):
        packed = [nest(_LIST_ELEMENT, *_parts(one, length)) for one in part]
        yield _request(kind, flags, table, _text(_NAME, spec.name), nest(3, *packed))


def _parts(element: Element, length: int) -> Iterator[bytes]:
    if not element:
        yield _number(3, _OF_ALL_KEYS)
        return
    yield _value(1, element[:length])
    if element[length:]:
        yield _value(10, element[length:])


def dump_elements(table: TableName, name: str) -> Request:
    """Return the request for the elements of a set."""
    return _dump(_GET_ELEMENTS, table, _text(_NAME, name))


def get_elements(table: TableName, spec: SetSpec, elements: Sequence[Element]) -> Request:
    """Return the request for single elements of a set, without a search of the whole set. The kernel refuses
    it if an element does not exist.
    """
    packed = [nest(_LIST_ELEMENT, *_parts(one, spec.key_length)) for one in elements]
    return Request(_kind(_GET_ELEMENTS), 0, _in(table, _text(_NAME, spec.name), nest(3, *packed)))


def parse_elements(body: bytes) -> list[Element]:
    """Return the elements of one message."""
    listed = (attributes(one) for _, one in _each(attributes(body, _BODY.size).get(3, b"")))
    return [_value_of(found.get(1, b"")) + _value_of(found.get(10, b"")) for found in listed]


class CountedElement(NamedTuple):
    """An element that a rule added: its key, the number of matching packets, the age of the latest."""

    key: bytes
    packets: int
    age_s: float


def parse_counted_elements(body: bytes) -> list[CountedElement]:
    """Return the elements in one message about a set with packet counters, without the catch-all element."""
    parsed = []
    for _, listed in _each(attributes(body, _BODY.size).get(3, b"")):
        found = attributes(listed)
        if 1 not in found:
            continue
        counter = attributes(attributes(found.get(7, b"")).get(2, b""))
        age_ms = integer_of(found.get(4)) - integer_of(found.get(5))
        packets = integer_of(counter.get(2))
        parsed.append(CountedElement(_value_of(found[1]), packets, max(age_ms, 0) / 1e3))
    return parsed


def parse_element_bytes(body: bytes) -> dict[Element, int]:
    """Return the counted bytes of the elements in one message, by their first key; without the elements that
    have no counter.
    """
    counted = {}
    for _, listed in _each(attributes(body, _BODY.size).get(3, b"")):
        found = attributes(listed)
        counter = attributes(attributes(found.get(7, b"")).get(2, b""))
        if 1 in found and 1 in counter:
            counted[_value_of(found[1])] = integer_of(counter[1])
    return counted


# Chains and rules.

PREROUTING, LOCAL_OUT = 0, 3
"""Hooks of IPv4 and IPv6 (linux/netfilter.h)."""

Expression = tuple[str, bytes]
"""Name and attributes of one step of a rule."""


class Rule(Struct, frozen=True):
    """A rule: a comment, which nft shows, and steps, which the kernel performs in order until a step does
    not match.
    """

    comment: str
    expressions: tuple[Expression, ...]


class Chain(Struct, frozen=True):
    """A chain. Without a hook, the chain is entered only by jumps."""

    name: str
    rules: tuple[Rule, ...]
    hook: int | None = None
    priority: int = 0


def create_chain(table: TableName, chain: Chain) -> Request:
    """Return the request that creates a chain without rules."""
    base: list[bytes] = []
    if chain.hook is not None:
        place = nest(4, _number(1, chain.hook), _number(2, chain.priority & 0xFFFFFFFF))
        base = [place, _number(5, ACCEPT), _text(7, "filter")]
    return _request(_NEW_CHAIN, CREATE, table, _text(3, chain.name), *base)


def create_rules(table: TableName, chain: Chain) -> Iterator[Request]:
    """Yield the requests that append the rules of a chain to the existing rules."""
    for rule in chain.rules:
        steps = [nest(_LIST_ELEMENT, _text(1, name), nest(2, data)) for name, data in rule.expressions]
        comment = rule.comment.encode() + b"\0"
        yield _request(
            _NEW_RULE,
            CREATE | _APPEND,
            table,
            _text(2, chain.name),
            nest(4, *steps),
            attribute(7, bytes((0, len(comment))) + comment),  # in libnftnl, type 0 is a comment
        )


def delete_rules(table: TableName) -> Request:
    """Return the request that removes all rules of a table."""
    return _request(_DELETE_RULE, 0, table)


def delete_chain(table: TableName, name: str) -> Request:
    """Return the request that removes a chain without rules."""
    return _request(_DELETE_CHAIN, 0, table, _text(3, name))


def dump_chains(family: int) -> Request:
    """Return the request for the chains of a family."""
    return Request(_kind(_GET_CHAIN), DUMP, _BODY.pack(family, 0, 0))


_CHAIN_HOOK, _CHAIN_TYPE = 4, 7  # NFTA_CHAIN_HOOK, NFTA_CHAIN_TYPE


def parse_base_type(body: bytes) -> str | None:
    """Return the type of a base chain, for example `nat`; None for a chain without a hook."""
    found = attributes(body, _BODY.size)
    return text(found.get(_CHAIN_TYPE, b"")) if _CHAIN_HOOK in found else None


def parse_chain(body: bytes) -> tuple[TableName, Chain, bool]:
    """Return the table, the chain without rules, and whether its policy is to accept."""
    found = attributes(body, _BODY.size)
    place = attributes(found.get(4, b""))
    priority = int.from_bytes(place.get(2, b""), "big", signed=True)
    hook = integer_of(place[1]) if 1 in place else None
    accepts = hook is None or (integer_of(found.get(5)) == ACCEPT and text(found.get(7, b"")) == "filter")
    return _table_in(body, found), Chain(text(found.get(3, b"")), (), hook, priority), accepts


def dump_every_rule() -> Request:
    """Return the request for the rules of all families."""
    return Request(_kind(_GET_RULE), DUMP, _BODY.pack(ANY_FAMILY, 0, 0))


def dump_rules(table: TableName) -> Request:
    """Return the request for the rules of a table."""
    return _dump(_GET_RULE, table)


def parse_rule(body: bytes) -> tuple[TableName, str, tuple[Expression, ...]]:
    """Return table, chain and steps of a rule."""
    found = attributes(body, _BODY.size)
    steps = []
    for _, listed in _each(found.get(4, b"")):
        parts = attributes(listed)
        steps.append((text(parts.get(1, b"")), parts.get(2, b"")))
    return _table_in(body, found), text(found.get(2, b"")), tuple(steps)


def is_rule(wanted: Rule, steps: Sequence[Expression]) -> bool:
    """Return whether the kernel's steps equal those of the rule. Additional attributes are ignored."""
    return len(steps) == len(wanted.expressions) and all(
        name == found and (name == "counter" or _says(data, said))
        for (name, data), (found, said) in zip(wanted.expressions, steps, strict=True)
    )


_NESTED = 0x8000


def _says(wanted: bytes, said: bytes) -> bool:
    found = attributes(said)
    for kind, value in _each(wanted):
        is_nested = bool(kind & _NESTED)
        there = found.get(kind & ~_NESTED)
        if there is None or not (_says(value, there) if is_nested else value == there):
            return False
    return True


# Expressions. A register has four bytes. A longer value, and a key with several fields, use consecutive
# registers.

REGISTER = 1
"""NFT_REG_1: the first register."""


def register_after(length: int) -> int:
    """Return the number that the kernel reports for the register after the first `length` bytes of registers.

    NFT_REG_1 to NFT_REG_4 (1 to 4) begin at multiples of 16 bytes; NFT_REG32_00 (8) and the next registers at
    multiples of 4.
    """
    return 8 + length // 4 if length % 16 else 1 + length // 16


ACCEPT, DROP = 1, 0
_JUMP, _GOTO, _RETURN = (code & 0xFFFFFFFF for code in (-3, -4, -5))
_EQUAL, _NOT_EQUAL = 0, 1

META_MARK, META_INPUT, META_OUTPUT, META_USER, META_PROTOCOL = 3, 6, 7, 10, 16
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
_FIB_INPUT, _FIB_TYPE = 1, 3


def meta(key: int, register: int = REGISTER) -> Expression:
    """Load a property of the packet."""
    return "meta", _number(1, register) + _number(2, key)


def set_mark(register: int = REGISTER) -> Expression:
    """Set the packet's mark."""
    return "meta", _number(2, META_MARK) + _number(3, register)


def payload(base: int, offset: int, length: int, register: int = REGISTER) -> Expression:
    """Load bytes of a header. The rule does not match if the packet is too short."""
    return "payload", _number(1, register) + _number(2, base) + _number(3, offset) + _number(4, length)


def masked(mask: bytes, flip: bytes | None = None, register: int = REGISTER) -> Expression:
    """Apply a mask, then flip bits."""
    data = _number(1, register) + _number(2, register) + _number(3, len(mask))
    return "bitwise", data + _value(4, mask) + _value(5, flip or bytes(len(mask)))


def equals(value: bytes, register: int = REGISTER) -> Expression:
    """Match if the register has this value."""
    return "cmp", _number(1, register) + _number(2, _EQUAL) + _value(3, value)


def differs(value: bytes, register: int = REGISTER) -> Expression:
    """Match if the register does not have this value."""
    return "cmp", _number(1, register) + _number(2, _NOT_EQUAL) + _value(3, value)


def input_route(register: int = REGISTER) -> Expression:
    """Load the index of the input interface if this host's route to the source uses it, else 0."""
    return "fib", _number(1, register) + _number(2, _FIB_INPUT) + _number(3, 0x1 | 0x8)


def destination_type(register: int = REGISTER) -> Expression:
    """Load the type of the destination, RTN_* (linux/rtnetlink.h)."""
    return "fib", _number(1, register) + _number(2, _FIB_TYPE) + _number(3, 0x2)


def is_in(name: str, register: int = REGISTER) -> Expression:
    """Match if the set contains the key."""
    return "lookup", _text(1, name) + _number(2, register)


def remember(name: str, timeout_ms: int, register: int = REGISTER) -> Expression:
    """Add the key to a set with a packet counter; if it exists, count the packet and renew the timeout."""
    counting = _counter_of_elements(7)
    return "dynset", _text(1, name) + _number(3, 1) + _number(4, register) + attribute(
        6, _U64.pack(timeout_ms)
    ) + counting


def _counter_of_elements(kind: int) -> bytes:
    """Return the attribute that gives each element a counter, which begins at 0."""
    return nest(kind, _text(1, "counter"), nest(2))


def counter() -> Expression:
    """Count packets and bytes."""
    return "counter", b""


def verdict(code: int) -> Expression:
    """Decide: ACCEPT or DROP."""
    return _verdict(_number(1, code))


def jump(chain: str) -> Expression:
    """Continue in another chain, then in the next rule of this chain."""
    return _verdict(_number(1, _JUMP) + _text(2, chain))


def goto(chain: str) -> Expression:
    """Continue in another chain, and do not return to this chain."""
    return _verdict(_number(1, _GOTO) + _text(2, chain))


def leave() -> Expression:
    """Leave the chain."""
    return _verdict(_number(1, _RETURN))


def _verdict(parts: bytes) -> Expression:
    return "immediate", _number(1, 0) + nest(2, nest(2, parts))


def _request(kind: int, flags: int, table: TableName, *parts: bytes) -> Request:
    return Request(_kind(kind), ACK | flags, _in(table, *parts))


def _dump(kind: int, table: TableName, *parts: bytes) -> Request:
    return Request(_kind(kind), DUMP, _in(table, *parts))


def _in(table: TableName, *parts: bytes) -> bytes:
    return _BODY.pack(table.family, 0, 0) + _text(_TABLE, table.name) + b"".join(parts)


def _table_in(body: bytes, found: Mapping[int, bytes]) -> TableName:
    return TableName(integer_of(body[:1]), text(found.get(_TABLE, b"")))


def _kind(message: int) -> int:
    return _SUBSYSTEM << 8 | message


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def _value(kind: int, data: bytes) -> bytes:
    return nest(kind, attribute(1, data))


def _value_of(nested: bytes) -> bytes:
    """Return the value that `_value` packed: its only attribute, without the padding."""
    return nested[ATTRIBUTE.size : int.from_bytes(nested[:2], sys.byteorder)]


def integer_of(data: bytes | None) -> int:
    """Return the number in an attribute; 0 if the attribute is missing."""
    return int.from_bytes(data or b"", "big")


def nested_attributes(data: bytes) -> Iterator[bytes]:
    """Yield the payload of each attribute, even if a kind occurs several times."""
    return (payload for _, payload in _each(data))


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind (with its flags) and payload of each attribute, even if a kind occurs several times."""
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        size, kind = ATTRIBUTE.unpack_from(data, offset)
        if size < ATTRIBUTE.size:
            return
        yield kind, data[offset + ATTRIBUTE.size : offset + size]
        offset += (size + 3) & ~3
