"""The output of iptables-save and ip6tables-save as rules that can be evaluated.

Source: iptables(8), iptables-extensions(8).
"""

import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Literal

from pyflannel.model.netfilter import TCP_FLAGS, Action, BaseChain, Field, Hook, Match, Rule, Ruleset, Unknown
from pyflannel.wire.iptables import SavedChain, SavedTables, rule_words

PROTOCOLS: Mapping[str, int] = {
    "icmp": 1,
    "igmp": 2,
    "ipencap": 4,
    "ipip": 4,
    "tcp": 6,
    "udp": 17,
    "dccp": 33,
    "gre": 47,
    "esp": 50,
    "ah": 51,
    "icmpv6": 58,
    "ipv6-icmp": 58,
    "sctp": 132,
    "udplite": 136,
}
"""Numbers of IP protocols by name: the names of /etc/protocols, of iptables and of nft."""

_HOOKS: Mapping[str, Hook] = {
    "PREROUTING": "prerouting",
    "INPUT": "input",
    "FORWARD": "forward",
    "OUTPUT": "output",
    "POSTROUTING": "postrouting",
}
_PRIORITIES: Mapping[str, int] = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
"""Source: linux/netfilter_ipv4.h, enum nf_ip_hook_priorities."""

_DESTINATION_NAT, _SOURCE_NAT = -100, 100
_CONTINUING = frozenset(
    {
        "LOG",
        "NFLOG",
        "ULOG",
        "TRACE",
        "CHECKSUM",
        "TCPMSS",
        "SET",
        "TTL",
        "HL",
        "DSCP",
        "CLASSIFY",
        "AUDIT",
        "RATEEST",
    }
)
_SOURCES, _DESTINATIONS = frozenset({"MASQUERADE", "SNAT", "NETMAP"}), frozenset({"DNAT", "REDIRECT"})
_FULL_MASK = 0xFFFFFFFF
_COMMENT = re.compile(r'-m comment --comment (?:"(?:[^"\\]|\\.)*"|[^"\s]+)(?: |$)')
_QUOTES = re.compile(r"[\"'\\]")
_LAST = 65535


def ruleset_of(tables: SavedTables, program: str) -> Ruleset:
    """Return the base chains of the tables that `program` listed."""
    return tuple(_base_chains(tables, program))


def _base_chains(tables: SavedTables, program: str) -> Iterator[BaseChain]:
    for table, saved in tables.items():
        chains = {name: tuple(_rules(one, saved)) for name, one in saved.items()}
        for name, one in saved.items():
            if one.policy not in ("ACCEPT", "DROP") or name not in _HOOKS:
                continue
            yield BaseChain(
                program=program,
                family="ip6" if program.startswith("ip6") else "ip",
                table=table,
                name=name,
                hook=_HOOKS[name],
                priority=_priority(table, name),
                policy="drop" if one.policy == "DROP" else "accept",
                is_nat=table == "nat",
                chains=chains,
            )


def _priority(table: str, chain: str) -> int:
    if table == "nat":
        return _DESTINATION_NAT if chain in ("PREROUTING", "OUTPUT") else _SOURCE_NAT
    return _PRIORITIES.get(table, 0)


def _rules(chain: SavedChain, saved: Mapping[str, SavedChain]) -> Iterator[Rule]:
    for number, text in enumerate(chain.rules, 1):
        words = _words_of(_COMMENT.sub("", text))
        at = next((at for at, word in enumerate(words) if word in ("-j", "-g")), len(words))
        yield Rule(tuple(_matches(words[:at])), _action(words[at:], saved), text, number)


def _words_of(text: str) -> list[str]:
    """Return the words of a rule. Thousands of rules of kube-proxy have quotes only in their comment."""
    return rule_words(text) if _QUOTES.search(text) else text.split()


def _action(words: Sequence[str], saved: Mapping[str, SavedChain]) -> Action:
    if len(words) < 2:
        return Action("continue")
    option, target, *rest = words
    match target:
        case "ACCEPT" | "DROP" | "REJECT" | "RETURN":
            kinds: Mapping[str, Literal["accept", "drop", "reject", "return"]] = {
                "ACCEPT": "accept",
                "DROP": "drop",
                "REJECT": "reject",
                "RETURN": "return",
            }
            return Action(kinds[target])
        case "NOTRACK":
            return Action("notrack")
        case "CT":
            return Action("notrack" if "--notrack" in rest else "continue")
        case "MARK":
            return _mark(rest)
        case "TTL" | "HL" if rest[:1] in (["--ttl-set"], ["--hl-set"]) and rest[1:] in (["0"], ["1"]):
            return Action("expire")
        case "NFQUEUE" if rest[:1] == ["--queue-num"] and len(rest) == 2 and rest[1].isdecimal():
            return Action("queue", target, value=int(rest[1]))
        case "CONNMARK":
            return Action("mark") if "--restore-mark" in rest else Action("continue")
        case _ if target in _CONTINUING:
            return Action("continue")
        case _ if target in _SOURCES:
            return Action("translate", translates="source")
        case _ if target in _DESTINATIONS:
            return Action("translate", translates="destination")
        case _ if target in saved:
            return Action("goto" if option == "-g" else "jump", target)
        case _:
            return Action("unknown", target)


def _mark(words: Sequence[str]) -> Action:
    """Return the effect of `--set-xmark VALUE/MASK`: the bits of the mask are cleared, the value is XORed."""
    with suppress(ValueError):
        if words[:1] == ["--set-xmark"] and len(words) > 1:
            value, _, mask = words[1].partition("/")
            return Action("mark", value=int(value, 0), keep=~int(mask or "0xffffffff", 0) & _FULL_MASK)
    return Action("mark")


def _matches(words: Sequence[str]) -> Iterator[Match | Unknown]:
    """Yield the conditions of a rule. An option without a parser makes the rest of the rule unknown."""
    rest, is_negated = deque(words), False
    while rest:
        option = rest.popleft()
        if option == "!":
            is_negated = True
            continue
        if option in ("-m", "--comment", "--log-prefix"):
            _skip(rest)
            continue
        if option == "--rt-type":  # no packet that is evaluated has a routing header
            _skip(rest)
            is_negated = False
            yield Match("protocol", ())
            continue
        if option == "-f":  # no packet that is evaluated is a second fragment
            yield Match("protocol", (), is_negated)
            is_negated = False
            continue
        if option in _PARTIAL:
            yield Unknown(" ".join([option, *_partial(rest)]), is_partial=True)
            is_negated = False
            continue
        parser = _PARSERS.get(option)
        if parser is None or not rest:
            yield Unknown(" ".join([*(["!"] if is_negated else []), option, *rest]))
            return
        text = rest.popleft()
        if option == "--tcp-flags" and rest:
            text = f"{text} {rest.popleft()}"
        try:
            found = parser(text)
        except ValueError:
            yield Unknown(f"{option} {text}")
            return
        if found is not None:
            field, values, mask = found
            yield Match(field, values, is_negated, mask)
        is_negated = False


_PARTIAL = frozenset({"--mode", "--limit"})
_OF_PARTIAL = frozenset({"--probability", "--every", "--packet", "--limit-burst"})


def _partial(words: deque[str]) -> Iterator[str]:
    """Remove and yield the words of the match `statistic` after `--mode`, or of `limit` after `--limit`."""
    yield words.popleft() if words else ""
    while len(words) > 1 and words[words[0] == "!"] in _OF_PARTIAL:
        yield from [words.popleft() for _ in range(min(len(words), 2 + (words[0] == "!")))]


def _skip(words: deque[str]) -> None:
    """Remove the first word, if there is one."""
    if words:
        words.popleft()


_Values = tuple[tuple[int, int] | str, ...]
_Parser = Callable[[str], tuple[Field, _Values, int | None] | None]


def _prefix(field: Field) -> _Parser:
    def parse(text: str) -> tuple[Field, _Values, None]:
        network = ip_network(text)
        return field, ((int(network.network_address), int(network.broadcast_address)),), None

    return parse


def _range(field: Field) -> _Parser:
    def parse(text: str) -> tuple[Field, _Values, None]:
        first, _, last = text.partition("-")
        return field, ((int(ip_address(first)), int(ip_address(last or first))),), None

    return parse


def _interface(field: Field) -> _Parser:
    def parse(text: str) -> tuple[Field, _Values, None]:
        return field, (f"{text[:-1]}*" if text.endswith("+") else text,), None

    return parse


def _ports(field: Field) -> _Parser:
    def parse(text: str) -> tuple[Field, _Values, None]:
        return field, tuple(_port_range(one) for one in text.split(",")), None

    return parse


def _port_range(text: str) -> tuple[int, int]:
    first, colon, last = text.partition(":")
    low = int(first or 0)
    return low, int(last or _LAST) if colon else low


def _words(field: Field) -> _Parser:
    def parse(text: str) -> tuple[Field, _Values, None]:
        return field, tuple(text.lower().split(",")), None

    return parse


def _protocol(text: str) -> tuple[Field, _Values, None] | None:
    if text in ("all", "0"):
        return None
    number = PROTOCOLS[text] if text in PROTOCOLS else int(text)
    return "protocol", ((number, number),), None


def _mark_match(text: str) -> tuple[Field, _Values, int | None]:
    value, _, mask = text.partition("/")
    return "mark", ((int(value, 0),) * 2,), int(mask, 0) if mask else None


def _icmp(text: str) -> tuple[Field, _Values, None] | None:
    return None if text in ("any", "255") else ("icmp_type", ((int(text), int(text)),), None)


def _tcp_flags(text: str) -> tuple[Field, _Values, int]:
    """Parse the flags that are compared, and the flags among them that are set."""
    compared, is_set = map(_flags, text.split(" "))
    return "tcp_flags", ((is_set, is_set),), compared


def _flags(text: str) -> int:
    if text in ("ALL", "NONE"):
        return sum(TCP_FLAGS.values()) if text == "ALL" else 0
    names = text.lower().split(",")
    if unknown := set(names) - TCP_FLAGS.keys():
        raise ValueError(unknown)
    return sum(TCP_FLAGS[name] for name in set(names))


def _length(text: str) -> tuple[Field, _Values, None]:
    return "length", (_port_range(text),), None


def _hop_limit(text: str) -> tuple[Field, _Values, None]:
    return "hop_limit", ((int(text), int(text)),), None


_PARSERS: Mapping[str, _Parser] = {
    "-s": _prefix("saddr"),
    "-d": _prefix("daddr"),
    "--src-range": _range("saddr"),
    "--dst-range": _range("daddr"),
    "-i": _interface("iif"),
    "-o": _interface("oif"),
    "-p": _protocol,
    "--sport": _ports("sport"),
    "--dport": _ports("dport"),
    "--sports": _ports("sport"),
    "--dports": _ports("dport"),
    "--ctstate": _words("state"),
    "--state": _words("state"),
    "--ctstatus": _words("status"),
    "--src-type": _words("stype"),
    "--dst-type": _words("dtype"),
    "--mark": _mark_match,
    "--icmp-type": _icmp,
    "--icmpv6-type": _icmp,
    "--tcp-flags": _tcp_flags,
    "--length": _length,
    "--ctdir": _words("direction"),
    "--hl-eq": _hop_limit,
}
