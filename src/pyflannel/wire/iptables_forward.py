"""What iptables' FORWARD drops, read from iptables-save: of legacy iptables nft shows nothing."""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Network

from pyflannel.model.forward_chain import ForwardChain
from pyflannel.model.iptables_chain import HOOKS
from pyflannel.wire.iptables_rules import rule_words
from pyflannel.wire.iptables_save import SavedChain, SavedTables

_EVERYTHING = IPv4Network("0.0.0.0/0")
_DEEPEST = 8
"""Jumps that are followed; the kernel allows more, people do not."""


def dropping_forward(tables: SavedTables, program: str) -> ForwardChain | None:
    """Return FORWARD where its policy is to drop, as `program` shows it; None where it is not."""
    chains, hook = tables.get("filter", {}), HOOKS["filter"]
    if hook not in chains or chains[hook].policy != "DROP":
        return None
    passes = frozenset(_passed(hook, chains))
    return ForwardChain(family="ip", table="filter", name=hook, passes=passes, program=program)


def _passed(name: str, chains: Mapping[str, SavedChain], depth: int = 0) -> Iterator[IPv4Network]:
    """Yield what a chain accepts for its source or destination alone.

    A rule that stands before, and drops a part of it, is the operator's wish.
    """
    if depth > _DEEPEST or name not in chains:
        return
    for rule in chains[name].rules:
        match _without_comment(rule_words(rule)):
            case ["-j", "ACCEPT"]:
                yield _EVERYTHING
            case ["-s" | "-d", prefix, "-j", "ACCEPT"]:
                yield IPv4Network(prefix)
            case ["-j" | "-g", target]:
                yield from _passed(target, chains, depth + 1)
            case _:
                pass


def _without_comment(words: list[str]) -> list[str]:
    for at in range(len(words) - 3):
        if words[at : at + 3] == ["-m", "comment", "--comment"]:
            return [*words[:at], *words[at + 4 :]]
    return words
