"""Rules as iptables writes and prints them.

`[! ]-s PREFIX [! ]-d PREFIX -m mark --mark VALUE/MASK -m comment --comment "TEXT" -j TARGET`, in the order of
iptables-save. Anything else is a foreign rule. Source: iptables-save(8), iptables-extensions(8).
"""

import shlex
from collections.abc import Mapping
from ipaddress import ip_network

from pyflannel.model.filter_rule import (
    Accept,
    FilterRule,
    ForeignRule,
    Mark,
    Masquerade,
    Prefix,
    Return,
    Verdict,
)
from pyflannel.model.iptables_chain import IptablesTable

COMMENTS: Mapping[IptablesTable, str] = {"nat": "flanneld masq", "filter": "flanneld forward"}
"""What each rule of ours says of itself; the original's texts."""

_FULL_MASK = 0xFFFFFFFF


def format_rule(rule: FilterRule, table: IptablesTable) -> str:
    """Return the rule as iptables-save prints it, without the chain."""
    return " ".join(
        [
            *_prefix("-s", rule.source),
            *_prefix("-d", rule.destination),
            *_mark(rule.mark),
            f'-m comment --comment "{COMMENTS[table]}"',
            *_target(rule.verdict),
        ]
    )


def parse_rule(text: str, table: IptablesTable) -> FilterRule | ForeignRule:
    """Return the rule that iptables-save printed so; what ours never say makes it a foreign one."""
    words = rule_words(text)
    source, words = _take_prefix("-s", words)
    destination, words = _take_prefix("-d", words)
    mark, words = _take_mark(words)
    verdict = _VERDICTS.get(tuple(words[4:]))
    if verdict is None or words[:4] != ["-m", "comment", "--comment", COMMENTS[table]]:
        return ForeignRule(text)
    return FilterRule(source=source, destination=destination, mark=mark, verdict=verdict)


def rule_words(text: str) -> list[str]:
    """Return the words of a rule, quotes undone; one that has no end of its quotes is a word by itself."""
    try:
        return shlex.split(text)
    except ValueError:
        return [text]


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
