"""What iptables-save prints, and what of it concerns us.

    *TABLE
    :CHAIN POLICY [PACKETS:OCTETS]
    -A CHAIN RULE
    COMMIT

POLICY is `-` for a chain that is not built in; counters are left out. Source: iptables-save(8).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pyflannel.errors import WireError
from pyflannel.model.filter_name import device_of
from pyflannel.model.iptables_chain import HOOKS, STEMS, Family, IptablesChain, IptablesTable, Jump
from pyflannel.wire.iptables_rules import COMMENTS, parse_rule, rule_words

_FOR_ALL = frozenset({"ACCEPT", "DROP", "REJECT", "RETURN", "QUEUE", "NFQUEUE", "MASQUERADE", "SNAT"})
"""Targets after which no later rule of the chain is asked."""


@dataclass(frozen=True, slots=True)
class SavedChain:
    """A chain as printed: its policy, "-" when it is not built in, and its rules without `-A CHAIN`."""

    policy: str
    rules: tuple[str, ...] = ()


SavedTables = Mapping[str, Mapping[str, SavedChain]]
"""Chains by table and name, in the order printed."""


def parse_save(text: str) -> SavedTables:
    """Return everything that was printed.

    Raises:
        WireError: a line is none of the four forms.
    """
    tables: dict[str, dict[str, SavedChain]] = {}
    chains: dict[str, SavedChain] = {}
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        match line[:1]:
            case "*":
                chains = tables.setdefault(line[1:].strip(), {})
            case ":":
                chains[word[1:]] = SavedChain(rest.partition(" ")[0])
            case "-" if word == "-A":
                name, _, rule = rest.partition(" ")
                known = chains.get(name, SavedChain("-"))
                chains[name] = SavedChain(known.policy, (*known.rules, rule))
            case "" | "#":
                pass
            case _ if word != "COMMIT":
                raise WireError(
                    f"iptables-save printed {line!r}", hint="Report the version of iptables on this host."
                )
    return tables


def chains_of(tables: SavedTables, family: Family) -> Iterator[IptablesChain]:
    """Yield the chains with our names, whichever daemon they belong to."""
    for table, stem in STEMS.items():
        chains = tables.get(table, {})
        for name in chains:
            device = device_of(name, stem)
            if device is not None:
                rules = tuple(parse_rule(rule, table) for rule in chains[name].rules)
                jump = jump_of(chains, table, name)
                yield IptablesChain(family=family, table=table, device=device, rules=rules, jump=jump)


def drops_forwarded(tables: SavedTables) -> bool:
    """Return whether FORWARD drops what no rule of it accepts, by its policy or by a last rule."""
    hook = tables.get("filter", {}).get(HOOKS["filter"], SavedChain("ACCEPT"))
    deciding = deciding_index(hook.rules)
    if deciding is None:
        return hook.policy == "DROP"
    return _target(rule_words(hook.rules[deciding])) in ("DROP", "REJECT")


def is_unused_hook(tables: SavedTables, table: str, hook: str) -> bool:
    """Return whether a built-in chain does nothing at all."""
    return tables.get(table, {}).get(hook) == SavedChain("ACCEPT")


def jump_of(chains: Mapping[str, SavedChain], table: IptablesTable, name: str) -> Jump:
    """Return how packets get from the built-in chain to ours."""
    hook = HOOKS[table]
    jumps = jumps_to(chains, name)
    if not jumps:
        return Jump.MISSING
    if jumps != [(hook, jump_rule(table, name))]:
        return Jump.SEVERAL
    rules = chains[hook].rules
    deciding = deciding_index(rules)
    return Jump.LATE if deciding is not None and deciding < rules.index(jumps[0][1]) else Jump.IN_PLACE


def jump_rule(table: IptablesTable, name: str) -> str:
    """Return the rule that jumps to a chain of ours."""
    return f'-m comment --comment "{COMMENTS[table]}" -j {name}'


def jumps_to(chains: Mapping[str, SavedChain], name: str) -> list[tuple[str, str]]:
    """Return the rules that jump or go to a chain, each with the chain that it stands in."""
    return [
        (where, rule)
        for where, chain in chains.items()
        for rule in chain.rules
        if name in rule and _target(rule_words(rule)) == name
    ]


def deciding_index(rules: Sequence[str]) -> int | None:
    """Return the index of the first rule that decides for every packet."""
    return next((index for index, rule in enumerate(rules) if _decides_for_all(rule)), None)


def _target(words: Sequence[str]) -> str | None:
    for option, target in pairwise(words):
        if option in ("-j", "-g"):
            return target
    return None


def _decides_for_all(rule: str) -> bool:
    words = rule_words(rule)
    if words[:3] == ["-m", "comment", "--comment"]:
        words = words[4:]
    return words[:1] == ["-j"] and words[1:2] != [] and words[1] in _FOR_ALL
