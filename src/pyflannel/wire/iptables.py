"""Rules and chains in the format of iptables, iptables-save and iptables-restore."""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from itertools import pairwise

from msgspec import Struct

from pyflannel.errors import WireError
from pyflannel.model.network_config import Family
from pyflannel.model.packet_filter import (
    STEMS,
    TABLES,
    Accept,
    FilterRule,
    ForeignRule,
    IptablesChain,
    IptablesHook,
    Jump,
    Mark,
    Masquerade,
    Prefix,
    Return,
    TunnelRule,
    Verdict,
    device_of,
)

# Rules as arguments of iptables.
#
# `[! ]-s PREFIX [! ]-d PREFIX -m mark --mark VALUE/MASK -m comment --comment "TEXT" -j TARGET`, in the order
# of iptables-save. A rule in another form is foreign. Source: iptables-save(8), iptables-extensions(8).

COMMENTS: Mapping[IptablesHook, str] = {
    "POSTROUTING": "flanneld masq",
    "FORWARD": "flanneld forward",
    "INPUT": "flanneld tunnel",
}
"""Comments of pyflannel's rules by built-in chain. The first two comments are the comments of the
original."""

_FULL_MASK = 0xFFFFFFFF


def format_rule(rule: FilterRule | TunnelRule, hook: IptablesHook) -> str:
    """Return the rule in the form of iptables-save, without the chain."""
    comment = f'-m comment --comment "{COMMENTS[hook]}"'
    if isinstance(rule, TunnelRule):
        address = f"{rule.address}/{rule.address.max_prefixlen}"
        return f"-d {address} -p udp -m udp --dport {rule.port} {comment} -j ACCEPT"
    return " ".join(
        [
            *_prefix("-s", rule.source),
            *_prefix("-d", rule.destination),
            *_mark(rule.mark),
            comment,
            *_target(rule.verdict),
        ]
    )


_TUNNEL_RULE = re.compile(r"-d (?P<address>[\da-f.:]+)/\d+ -p udp -m udp --dport (?P<port>\d+) .*")


def parse_rule(text: str, hook: IptablesHook) -> FilterRule | TunnelRule | ForeignRule:
    """Return the rule in a line of iptables-save.

    The rule is foreign if it contains a part that no owned rule contains.
    """
    if (match := _TUNNEL_RULE.fullmatch(text)) is not None:
        with suppress(ValueError):
            rule = TunnelRule(ip_address(match["address"]), int(match["port"]))
            return rule if format_rule(rule, hook) == text else ForeignRule(text)
    words = rule_words(text)
    source, words = _take_prefix("-s", words)
    destination, words = _take_prefix("-d", words)
    mark, words = _take_mark(words)
    verdict = _VERDICTS.get(tuple(words[4:]))
    if verdict is None or words[:4] != ["-m", "comment", "--comment", COMMENTS[hook]]:
        return ForeignRule(text)
    return FilterRule(source=source, destination=destination, mark=mark, verdict=verdict)


def rule_words(text: str) -> list[str]:
    """Return the words of a rule, and remove the quotes. A rule with an unclosed quote is a single word, and
    so is a rule that is too long for shlex, whose time is quadratic.
    """
    try:
        return shlex.split(text) if len(text) <= _LONGEST_RULE else [text]
    except ValueError:
        return [text]


_LONGEST_RULE = 8192
"""Maximum length in characters of a rule that is split into words. The kernel allows comments of 256
characters, and few values of other matches are longer."""


_VERDICTS: Mapping[tuple[str, ...], Verdict] = {
    ("-j", "ACCEPT"): Accept(),
    ("-j", "RETURN"): Return(),
    ("-j", "MASQUERADE"): Masquerade(is_fully_random=False),
    ("-j", "MASQUERADE", "--random-fully"): Masquerade(is_fully_random=True),
}


def _target(verdict: Verdict) -> tuple[str, ...]:
    return next(words for words, known in _VERDICTS.items() if known == verdict)


def _prefix(option: str, prefix: Prefix | None) -> list[str]:
    if prefix is None:
        return []
    return [*(["!"] if prefix.is_negated else []), option, str(prefix.network)]


def _take_prefix(option: str, words: list[str]) -> tuple[Prefix | None, list[str]]:
    is_negated = words[:1] == ["!"]
    rest = words[1:] if is_negated else words
    if rest[:1] != [option] or len(rest) < 2:
        return None, words
    try:
        return Prefix(ip_network(rest[1]), is_negated), rest[2:]
    except ValueError:
        return None, words


def _mark(mark: Mark | None) -> list[str]:
    if mark is None:
        return []
    mask = "" if mark.mask == _FULL_MASK else f"/{mark.mask:#x}"
    return ["-m", "mark", "--mark", f"{mark.value:#x}{mask}"]


def _take_mark(words: list[str]) -> tuple[Mark | None, list[str]]:
    if words[:3] != ["-m", "mark", "--mark"] or len(words) < 4:
        return None, words
    value, _, mask = words[3].partition("/")
    try:
        return Mark(int(value, 0), int(mask, 0) if mask else _FULL_MASK), words[4:]
    except ValueError:
        return None, words


# The output of iptables-save.
#
#     *TABLE
#     :CHAIN POLICY [PACKETS:BYTES]
#     -A CHAIN RULE
#     COMMIT
#
# POLICY is `-` for a chain that is not built in. Counters are ignored. Source: iptables-save(8).

_FOR_ALL = frozenset({"ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "MASQUERADE", "SNAT"})
"""Targets that end the chain: after them, no later rule is evaluated."""


class SavedChain(Struct, frozen=True):
    """A chain: its policy ("-" if the chain is not built in), and its rules without `-A CHAIN`."""

    policy: str
    rules: tuple[str, ...] = ()


SavedTables = Mapping[str, Mapping[str, SavedChain]]
"""Chains by table and name, in the order printed."""


def parse_save(text: str) -> SavedTables:
    """Return all tables of the output.

    Raises:
        WireError: a line has none of the four forms of this format.
    """
    tables: dict[str, dict[str, tuple[str, list[str]]]] = {}
    chains: dict[str, tuple[str, list[str]]] = {}
    for line in text.split("\n"):  # a comment may contain other characters that end a line for Python
        word, _, rest = line.partition(" ")
        match line[:1]:
            case "*":
                chains = tables.setdefault(line[1:].strip(), {})
            case ":":
                chains[word[1:]] = rest.partition(" ")[0], []
            case "-" if word == "-A":
                name, _, rule = rest.partition(" ")
                chains.setdefault(name, ("-", []))[1].append(rule)
            case "" | "#":
                pass
            case _ if word != "COMMIT":
                raise WireError(
                    f"iptables-save printed an unknown line: {line!r}",
                    hint="Report the version of iptables on this host.",
                )
    return {
        table: {name: SavedChain(policy, tuple(rules)) for name, (policy, rules) in found.items()}
        for table, found in tables.items()
    }


def chains_of(tables: SavedTables, family: Family) -> Iterator[IptablesChain]:
    """Yield the chains with names of pyflannel, regardless of the daemon that owns them."""
    for hook, stem in STEMS.items():
        chains = tables.get(TABLES[hook], {})
        for name in chains:
            device = device_of(name, stem)
            if device is not None:
                rules = tuple(parse_rule(rule, hook) for rule in chains[name].rules)
                jump = jump_of(chains, hook, name)
                yield IptablesChain(family=family, hook=hook, device=device, rules=rules, jump=jump)


def drops_by_default(tables: SavedTables, hook: IptablesHook) -> bool:
    """Return whether a built-in chain drops packets that no rule accepts, by its policy or its last rule."""
    chain = tables.get(TABLES[hook], {}).get(hook, SavedChain("ACCEPT"))
    deciding = deciding_index(chain.rules)
    if deciding is None:
        return chain.policy == "DROP"
    return _target_of(rule_words(chain.rules[deciding])) in ("DROP", "REJECT")


def is_unused_hook(tables: SavedTables, table: str, hook: str) -> bool:
    """Return whether a built-in chain has no effect."""
    return tables.get(table, {}).get(hook) == SavedChain("ACCEPT")


def jump_of(chains: Mapping[str, SavedChain], hook: IptablesHook, name: str) -> Jump:
    """Return how packets get from the built-in chain to pyflannel's chain."""
    jumps = jumps_to(chains, name)
    if not jumps:
        return Jump.MISSING
    if jumps != [(hook, jump_rule(hook, name))]:
        return Jump.SEVERAL
    rules = chains[hook].rules
    deciding = deciding_index(rules)
    return Jump.LATE if deciding is not None and deciding < rules.index(jumps[0][1]) else Jump.IN_PLACE


def jump_rule(hook: IptablesHook, name: str) -> str:
    """Return the text of the rule that jumps to a chain of pyflannel."""
    return f'-m comment --comment "{COMMENTS[hook]}" -j {name}'


def jumps_to(chains: Mapping[str, SavedChain], name: str) -> list[tuple[str, str]]:
    """Return the rules that jump or go to a chain, each with the chain that contains it."""
    return [
        (where, rule)
        for where, chain in chains.items()
        for rule in chain.rules
        if name in rule and _target_of(rule_words(rule)) == name
    ]


def deciding_index(rules: Sequence[str]) -> int | None:
    """Return the index of the first rule that decides about every packet."""
    return next((index for index, rule in enumerate(rules) if _decides_for_all(rule)), None)


def _target_of(words: Sequence[str]) -> str | None:
    for option, target in pairwise(words):
        if option in ("-j", "-g"):
            return target
    return None


def _decides_for_all(rule: str) -> bool:
    words = rule_words(rule)
    if words[:3] == ["-m", "comment", "--comment"]:
        words = words[4:]
    return words[:1] == ["-j"] and words[1:2] != [] and words[1] in _FOR_ALL


# Input of iptables-restore --noflush: one transaction for each chain, so that no packet is evaluated by half
# of a chain.
#
# `:CHAIN -` creates a chain, or empties an existing chain. Source: iptables-restore(8).


def format_chain(chain: IptablesChain, saved: SavedTables) -> str:
    """Return the input that creates the chain and its jump as planned. A jump at the correct position
    remains.
    """
    chains = saved.get(chain.table, {})
    lines = [
        f"-A {chain.name} {format_rule(rule, chain.hook)}"
        for rule in chain.rules
        if isinstance(rule, FilterRule | TunnelRule)
    ]
    if jump_of(chains, chain.hook, chain.name) is not Jump.IN_PLACE:
        lines = [*_without_jumps(chains, chain.name), *lines, _jump(chain, chains)]
    return _transaction(chain, *lines)


def format_removal(chain: IptablesChain, saved: SavedTables) -> str:
    """Return the input that removes the chain and all jumps to it."""
    jumps = _without_jumps(saved.get(chain.table, {}), chain.name)
    return _transaction(chain, *jumps, f"-X {chain.name}")


def _transaction(chain: IptablesChain, *lines: str) -> str:
    return "\n".join([f"*{chain.table}", f":{chain.name} - [0:0]", *lines, "COMMIT", ""])


def _without_jumps(chains: Mapping[str, SavedChain], name: str) -> Iterator[str]:
    # Jumps inside the chain itself are removed when it is emptied.
    return (f"-D {where} {rule}" for where, rule in jumps_to(chains, name) if where != name)


def _jump(chain: IptablesChain, chains: Mapping[str, SavedChain]) -> str:
    jump = jump_rule(chain.hook, chain.name)
    if chain.hook == "INPUT":
        return f"-I {chain.hook} 1 {jump}"
    hook = chains.get(chain.hook, SavedChain("ACCEPT"))
    gone = {rule for where, rule in jumps_to(chains, chain.name) if where == chain.hook}
    deciding = deciding_index([rule for rule in hook.rules if rule not in gone])
    return f"-A {chain.hook} {jump}" if deciding is None else f"-I {chain.hook} {deciding + 1} {jump}"
