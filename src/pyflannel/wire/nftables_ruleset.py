"""The output of `nft -j list table` as rules that can be evaluated. Source: libnftables-json(5).

The text of a rule, and the device of a chain at the hook `ingress`, are only in output of `nft -a list
table`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from ipaddress import ip_address, ip_network
from itertools import product
from operator import or_
from typing import Any, Literal, get_args

import msgspec
from msgspec import Struct

from pyflannel.errors import WireError
from pyflannel.model.netfilter import (
    ARP_OPERATIONS,
    TCP_FLAGS,
    Action,
    BaseChain,
    Field,
    Hook,
    Match,
    Rule,
    Ruleset,
    Unknown,
)
from pyflannel.wire.iptables_ruleset import PROTOCOLS

_HOOKS = frozenset(get_args(Hook))
_MOST = 4096
"""Maximum number of rules into which a verdict map or a set of concatenations is expanded."""

_FULL_MASK = 0xFFFFFFFF
_NEVER = Match("protocol", ())
"""A condition that no IP packet meets, for example a condition on ARP or on a VLAN."""

_OF_FAMILY: Mapping[str, Match] = {
    "ip": Match("family", ("ipv4",)),
    "ip6": Match("family", ("ipv6",)),
    "arp": Match("family", ("arp",)),
}
"""The condition that nft implies for a field of the header of IPv4, of IPv6 or of ARP."""

_HANDLE = re.compile(r"^\s*(?P<text>.*?) # handle (?P<handle>\d+)$", re.MULTILINE)
_CHAIN_DEVICE = re.compile(
    r"^\s*chain (?P<chain>\S+) \{[^\n]*\n\s*type \S+ hook \S+ devices? (?P<devices>= \{[^}]*\}|\S+) ",
    re.MULTILINE,
)
_NO_EFFECT = frozenset(
    {
        "counter",
        "log",
        "ct helper",
        "ct timeout",
        "ct expectation",
        "secmark",
        "comment",
        "set",
        "map",
        "flow",
        "dup",
    }
)
_TRANSLATIONS: Mapping[str, Literal["source", "destination"]] = {
    "masquerade": "source",
    "snat": "source",
    "dnat": "destination",
    "redirect": "destination",
}
_ICMP_TYPES = {
    "echo-reply": 0,
    "destination-unreachable": 3,
    "redirect": 5,
    "echo-request": 8,
    "time-exceeded": 11,
}
_ICMPV6_TYPES = {
    "destination-unreachable": 1,
    "packet-too-big": 2,
    "time-exceeded": 3,
    "parameter-problem": 4,
    "echo-request": 128,
    "echo-reply": 129,
    "mld-listener-query": 130,
    "mld-listener-report": 131,
    "mld-listener-done": 132,
    "mld-listener-reduction": 132,
    "nd-router-solicit": 133,
    "nd-router-advert": 134,
    "nd-neighbor-solicit": 135,
    "nd-neighbor-advert": 136,
    "nd-redirect": 137,
    "router-renumbering": 138,
    "ind-neighbor-solicit": 141,
    "ind-neighbor-advert": 142,
    "mld2-listener-report": 143,
}
"""Numbers of the types of ICMPv6 by the names of nft(8)."""

_Json = Mapping[str, Any]
_Values = tuple[tuple[int, int] | str, ...]


def parse_ruleset(document: str, listing: str) -> Ruleset:
    """Return the base chains of one table.

    Args:
        document: output of `nft -j list table`.
        listing: output of `nft -a list table`.

    Raises:
        WireError: the document is not nft's JSON.
    """
    try:
        return tuple(_base_chains(json.loads(document)["nftables"], listing))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        msgspec.ValidationError,
    ) as error:
        raise WireError(
            f"nft's JSON has an unknown form: {error!r}", hint="Report the output of nft --json list ruleset."
        ) from error


class _Base(Struct, frozen=True):
    """A base chain in nft's JSON."""

    family: str
    table: str
    name: str
    hook: Hook
    prio: int
    type: str
    policy: str = "accept"


def _base_chains(entries: Sequence[_Json], listing: str) -> Iterator[BaseChain]:
    named = {
        entry[kind]["name"]: entry[kind].get("elem", [])
        for entry in entries
        for kind in ("set", "map")
        if kind in entry
    }
    texts = {int(found["handle"]): found["text"] for found in _HANDLE.finditer(listing)}
    devices = {found["chain"]: found["devices"] for found in _CHAIN_DEVICE.finditer(listing)}
    chains: dict[str, tuple[Rule, ...]] = {}
    rules: dict[str, list[Rule]] = {}
    for entry in entries:
        if "rule" in entry:
            rule = entry["rule"]
            text = texts.get(rule["handle"], json.dumps(rule["expr"]))
            parsed = _Statements(named).rules(rule["expr"], text, rule["handle"])
            rules.setdefault(rule["chain"], []).extend(parsed)
    chains.update({name: tuple(found) for name, found in rules.items()})
    for entry in entries:
        chain = entry.get("chain", {})
        if chain.get("hook") in _HOOKS:
            base = msgspec.convert(chain, _Base)
            for device in _devices(chain, devices.get(base.name, "")):
                yield BaseChain(
                    program="nft",
                    family=base.family,
                    table=base.table,
                    name=base.name,
                    hook=base.hook,
                    priority=base.prio,
                    policy="drop" if base.policy == "drop" else "accept",
                    is_nat=base.type == "nat",
                    device=device,
                    chains=chains,
                )


def _devices(chain: _Json, listed: str) -> list[str]:
    """Return the devices of a chain; [""] for a chain of all devices. nft 1.0.6 omits these devices in its
    JSON.
    """
    given = chain.get("dev", [])
    named = [given] if isinstance(given, str) else list(given)
    return named or re.findall(r'"?([^\s"{},=]+)"?', listed) or [""]


class _Field(Struct, frozen=True):
    """The property that a condition tests, and the conditions that nft implies.

    Attributes:
        field: None if the property cannot be evaluated.
        names: numbers of the names that nft uses for values.
    """

    field: Field | None
    implied: tuple[Match, ...] = ()
    mask: int | None = None
    names: Mapping[str, int] = {}


class _Statements:
    """Parses the statements of rules of one table; `named` contains the sets and maps of the table."""

    def __init__(self, named: Mapping[str, Sequence[Any]]) -> None:
        self._named = named

    def rules(self, statements: Sequence[_Json], text: str, handle: int) -> Iterator[Rule]:
        """Yield a rule for each combination of conditions; a rule with a verdict map has several
        combinations.
        """
        before: list[list[list[Match | Unknown]]] = []
        for statement in statements:
            ((kind, value),) = statement.items()
            if kind == "vmap":
                for alternative, verdict in self._verdict_map(value):
                    yield from self._expanded([*before, [alternative]], verdict, text, handle)
                continue
            action = _action(kind, value)
            if action is None:
                before.append(self._alternatives(kind, value, text))
            elif action.kind != "continue":
                yield from self._expanded(before, action, text, handle)

    def _expanded(
        self, conditions: Sequence[Sequence[list[Match | Unknown]]], action: Action, text: str, handle: int
    ) -> Iterator[Rule]:
        count = 1
        for one in conditions:
            count *= len(one)
        if count > _MOST:
            yield Rule((Unknown(text),), action, text, handle)
            return
        for combination in product(*conditions):
            yield Rule(tuple(match for part in combination for match in part), action, text, handle)

    def _alternatives(self, kind: str, value: Any, text: str) -> list[list[Match | Unknown]]:
        """Return the alternative lists of conditions of a statement, one of which a packet must meet."""
        if kind == "quota" and isinstance(value, dict) and "val" in value:
            return [[] if _is_met(value) else [_NEVER]]
        if kind != "match":
            words = f"a match of iptables in {text!r}" if kind == "xt" else kind
            return [[Unknown(words, is_partial=kind == "limit")]]
        left, right, operator = value["left"], value["right"], value["op"]
        if isinstance(left, dict) and "concat" in left and operator in ("==", "in"):
            return [self._concatenated(left["concat"], one) for one in self._members(right)] or [[_NEVER]]
        return [self._condition(left, right, operator)]

    def _concatenated(self, lefts: Sequence[Any], member: Any) -> list[Match | Unknown]:
        rights = member["concat"] if isinstance(member, dict) and "concat" in member else [member]
        if len(lefts) != len(rights):
            return [Unknown("concat")]
        found: list[Match | Unknown] = []
        for left, right in zip(lefts, rights, strict=True):
            found += self._condition(left, right, "==")
        return found

    def _condition(self, left: Any, right: Any, operator: str) -> list[Match | Unknown]:
        found = _field(left)
        implied: list[Match | Unknown] = list(found.implied)
        if _is_usual_arp(left, right, operator):
            return implied
        if found.field is None:
            unknown = Unknown(json.dumps(left), is_partial="numgen" in left)
            return [*implied, unknown] if _NEVER not in implied else implied
        if operator in ("<", ">", "<=", ">=") and isinstance(right, int):
            low, high = {
                "<": (0, right - 1),
                "<=": (0, right),
                ">": (right + 1, _FULL_MASK),
                ">=": (right, _FULL_MASK),
            }[operator]
            return [*implied, Match(found.field, ((low, high),), False, found.mask)]
        if found.field == "tcp_flags" and operator in ("in", "!"):  # any flag is set, or none
            try:
                return [*implied, Match(found.field, ((0, 0),), operator == "in", _flags(right))]
            except (ValueError, KeyError):
                return [*implied, Unknown(json.dumps(right))]
        if isinstance(right, bool):  # a route exists, or it is missing
            return [*implied, Match(found.field, ("",), right is (operator == "=="), found.mask)]
        if operator not in ("==", "!=", "in"):
            return [*implied, Unknown(operator)]
        try:
            values = tuple(_value(one, found.field, found.names) for one in self._members(right, found.field))
        except (ValueError, KeyError):
            return [*implied, Unknown(json.dumps(right))]
        return [*implied, Match(found.field, values, operator == "!=", found.mask)]

    def _members(self, right: Any, field: Field | None = None) -> list[Any]:
        """Return the members of a set, a named set or a list of flags, or the single value. A list of flags
        of TCP is a single value.
        """
        match right:
            case {"set": [*members]}:
                found = members
            case {"set": member}:
                found = [member]
            case [*members] if field != "tcp_flags":
                found = members
            case str(name) if name.startswith("@"):
                found = list(self._named[name[1:]])
            case _:
                found = [right]
        return [one["elem"]["val"] if isinstance(one, dict) and "elem" in one else one for one in found]

    def _verdict_map(self, value: _Json) -> Iterator[tuple[list[Match | Unknown], Action]]:
        key = value["key"]
        lefts = key["concat"] if isinstance(key, dict) and "concat" in key else [key]
        for member, verdict in self._members(value["data"]):
            ((kind, target),) = verdict.items()
            action = _action(kind, target) or Action("unknown", kind)
            conditions = [] if member == "*" else self._concatenated(lefts, _plain(member))
            yield conditions, action


_UNITS = {"bytes": 1, "kbytes": 1 << 10, "mbytes": 1 << 20}


def _is_met(quota: _Json) -> bool:
    """Return whether packets meet the condition `quota over N` or `quota until N` now."""
    most = quota["val"] * _UNITS[quota.get("val_unit", "bytes")]
    is_used_up = quota.get("used", 0) * _UNITS[quota.get("used_unit", "bytes")] >= most
    return is_used_up is bool(quota.get("inv"))


def _plain(member: Any) -> Any:
    return member["elem"]["val"] if isinstance(member, dict) and "elem" in member else member


def _action(kind: str, value: Any) -> Action | None:
    """Return the effect of a statement; None if the statement is a condition."""
    match kind:
        case "accept" | "drop" | "return" | "continue" | "notrack" | "reject":
            kinds: Mapping[str, Literal["accept", "drop", "return", "continue", "notrack", "reject"]] = {
                "accept": "accept",
                "drop": "drop",
                "return": "return",
                "continue": "continue",
                "notrack": "notrack",
                "reject": "reject",
            }
            return Action(kinds[kind])
        case "jump" | "goto":
            return Action("jump" if kind == "jump" else "goto", msgspec.convert(value["target"], str))
        case "mangle":
            return _mangled(value)
        case _ if kind in _TRANSLATIONS:
            return Action("translate", translates=_TRANSLATIONS[kind])
        case _ if kind in _NO_EFFECT:
            return Action("continue")
        case "xt":
            return _xt(value)
        case "queue" if isinstance(value, dict) and value.keys() == {"num"} and isinstance(value["num"], int):
            return Action("queue", kind, value=value["num"])
        case "queue" | "tproxy" | "fwd" | "synproxy":
            return Action("unknown", kind)
        case _:
            return None


def _xt(value: Any) -> Action | None:
    """Return the effect of a target of iptables, which nft shows without its options."""
    match value:
        case {"type": "match", "name": "comment"}:
            return Action("continue")
        case {"type": "target", "name": "REJECT"}:
            return Action("reject")
        case {"type": "target", "name": "LOG" | "NFLOG" | "TCPMSS" | "CHECKSUM" | "TRACE"}:
            return Action("continue")
        case {"type": "target", "name": name}:
            return Action("unknown", str(name))
        case _:
            return None


def _mangled(value: _Json) -> Action:
    match value:
        case {"key": {"meta": {"key": "mark"}}, "value": int(mark)}:
            return Action("mark", value=mark)
        case {"key": {"meta": {"key": "mark"}}}:
            return Action("mark")
        case {"key": {"payload": {"field": "ttl" | "hoplimit"}}, "value": 0 | 1}:
            return Action("expire")
        case _:
            return Action("continue")


_RAW_FIELDS: Mapping[tuple[str, int, int], tuple[Field, str]] = {
    ("nh", 16, 16): ("length", "ip"),
    ("nh", 72, 8): ("protocol", "ip"),
    ("nh", 96, 32): ("saddr", "ip"),
    ("nh", 128, 32): ("daddr", "ip"),
    ("nh", 48, 8): ("protocol", "ip6"),
    ("nh", 64, 128): ("saddr", "ip6"),
    ("nh", 192, 128): ("daddr", "ip6"),
    ("th", 0, 16): ("sport", ""),
    ("th", 16, 16): ("dport", ""),
}
"""Fields by their header, and their offset and length in bits, with the header that has this field there. nft
lists a field in this form if the conditions of the rule do not imply the header, as after
`ether type { arp, ip }`."""


def _is(field: Field, number: int) -> Match:
    return Match(field, ((number, number),))


_USUAL_ARP = {"htype": (1, "ether"), "ptype": (0x0800, "ip"), "hlen": (6,), "plen": (4,)}
"""The fields of ARP for IPv4 over Ethernet, which arptables also compares in each rule. Source: RFC 826."""


def _is_usual_arp(left: Any, right: Any, operator: str) -> bool:
    match left:
        case {"payload": {"protocol": "arp", "field": str(name)}}:
            return operator == "==" and right in _USUAL_ARP.get(name, ())
        case _:
            return False


def _field(left: Any) -> _Field:
    match left:
        case {"payload": {"protocol": "ip", "field": "saddr" | "daddr" | "protocol" | "length" as name}}:
            return _Field(name, (_OF_FAMILY["ip"],))
        case {"payload": {"protocol": "ip6", "field": "saddr" | "daddr" as name}}:
            return _Field(name, (_OF_FAMILY["ip6"],))
        case {"payload": {"protocol": "ip6", "field": "hoplimit"}}:
            return _Field("hop_limit", (_OF_FAMILY["ip6"],))
        case {"payload": {"protocol": "ip6", "field": "nexthdr"}}:
            return _Field("protocol", (_OF_FAMILY["ip6"],))
        case {"payload": {"protocol": "ip" | "ip6" as protocol}}:
            return _Field(None, (_OF_FAMILY[protocol],))
        case {"payload": {"protocol": "arp", "field": "saddr ip" | "daddr ip" as name}}:
            return _Field("saddr" if name == "saddr ip" else "daddr", (_OF_FAMILY["arp"],))
        case {"payload": {"protocol": "arp", "field": "operation"}}:
            return _Field("operation", (_OF_FAMILY["arp"],), names=ARP_OPERATIONS)
        case {"payload": {"protocol": "arp"}}:
            return _Field(None, (_OF_FAMILY["arp"],))
        case {"payload": {"protocol": "vlan"}}:
            return _Field(None, (_NEVER,))
        case {"payload": {"base": str(base), "offset": int(offset), "len": int(length)}}:
            name, header = _RAW_FIELDS.get((base, offset, length), (None, ""))
            return _Field(name, (_OF_FAMILY[header],) if header else ())
        case {"payload": {"protocol": "ether", "field": "type"}}:
            return _Field("family")
        case {"payload": {"protocol": "th", "field": "sport" | "dport" as name}}:
            return _Field(name)
        case {"payload": {"protocol": "icmp", "field": "type"}}:
            return _Field("icmp_type", (_is("protocol", PROTOCOLS["icmp"]),), names=_ICMP_TYPES)
        case {"payload": {"protocol": "icmpv6", "field": "type"}}:
            return _Field("icmp_type", (_is("protocol", PROTOCOLS["icmpv6"]),), names=_ICMPV6_TYPES)
        case {"payload": {"protocol": "tcp", "field": "flags"}}:
            return _Field("tcp_flags", (_is("protocol", PROTOCOLS["tcp"]),))
        case {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, mask]}:
            return _Field("tcp_flags", (_is("protocol", PROTOCOLS["tcp"]),), _flags(mask))
        case {"payload": {"protocol": str(protocol), "field": str(name)}} if protocol in PROTOCOLS:
            implied = (_is("protocol", PROTOCOLS[protocol]),)
            match name:
                case "sport" | "dport":
                    return _Field(name, implied)
                case _:
                    return _Field(None, implied)
        case {"meta": {"key": "iifname" | "iif"}}:
            return _Field("iif")
        case {"meta": {"key": "oifname" | "oif"}}:
            return _Field("oif")
        case {"meta": {"key": "ibrname"}}:
            return _Field("in_bridge")
        case {"meta": {"key": "obrname"}}:
            return _Field("out_bridge")
        case {"meta": {"key": "l4proto"}}:
            return _Field("protocol")
        case {"meta": {"key": "mark"}}:
            return _Field("mark")
        case {"meta": {"key": "length"}}:
            return _Field("length")
        case {"meta": {"key": "nfproto" | "protocol"}}:
            return _Field("family")
        case {"ct": {"key": "state"}}:
            return _Field("state")
        case {"ct": {"key": "direction"}}:
            return _Field("direction")
        case {"ct": {"key": "status"}}:
            return _Field("status")
        case {"fib": {"result": "type", "flags": "daddr" | ["daddr"]}}:
            return _Field("dtype")
        case {"fib": {"result": "type", "flags": "saddr" | ["saddr"]}}:
            return _Field("stype")
        case {"fib": {"result": "oif" | "oifname", "flags": str(flag)}}:
            return _Field("back_link" if flag == "saddr" else None)
        case {"fib": {"result": "oif" | "oifname", "flags": [*flags]}} if "saddr" in flags:
            uses_link = {"saddr", "mark", "iif"} >= {*flags}
            return _Field(("back_iif" if "iif" in flags else "back_link") if uses_link else None)
        case {"&": [{"meta": {"key": "mark"}}, int(mask)]}:
            return _Field("mark", mask=mask)
        case _:
            return _Field(None)


def _value(right: Any, field: Field, names: Mapping[str, int]) -> tuple[int, int] | str:
    """Return a value of nft's JSON as a range of numbers or as a text.

    Raises:
        ValueError, KeyError: the value cannot be compared with the field.
    """
    match right, field:
        case _, "tcp_flags":
            flags = _flags(right)
            return flags, flags
        case {"range": [low, high]}, _:
            return _number(low, field, names), _number(high, field, names)
        case {"prefix": {"addr": str(address), "len": int(length)}}, _:
            network = ip_network((address, length))
            return int(network.network_address), int(network.broadcast_address)
        case "ip" | 0x0800, "family":  # ETH_P_IP
            return "ipv4"
        case "ip6" | 0x86DD, "family":  # ETH_P_IPV6
            return "ipv6"
        case "0", "back_link" | "back_iif":
            return ""
        case str(text), (
            "iif"
            | "oif"
            | "in_bridge"
            | "out_bridge"
            | "state"
            | "direction"
            | "status"
            | "stype"
            | "dtype"
            | "back_link"
            | "back_iif"
            | "family"
        ):
            return text
        case _:
            number = _number(right, field, names)
            return number, number


def _flags(value: Any) -> int:
    """Return the bits of flags of TCP: a number, a name, or several of them.

    Raises:
        ValueError, KeyError: the value contains another expression.
    """
    match value:
        case int():
            return value
        case str():
            return TCP_FLAGS[value]
        case [*parts] | {"|": [*parts]}:
            return reduce(or_, map(_flags, parts), 0)
        case _:
            raise ValueError(value)


def _number(value: Any, field: Field, names: Mapping[str, int]) -> int:
    if isinstance(value, bool):
        raise ValueError(value)
    if isinstance(value, int):
        return value
    if not isinstance(value, str):
        raise ValueError(value)
    if field in ("saddr", "daddr"):  # for bytes at an offset, nft prints an IPv6 address in hexadecimal
        return int(value, 16) if value.startswith("0x") else int(ip_address(value))
    if field == "protocol":
        return PROTOCOLS[value]
    if value in names:
        return names[value]
    raise ValueError(value)
