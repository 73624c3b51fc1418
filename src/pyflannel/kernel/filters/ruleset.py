"""Reads all rules of netfilter in this network namespace: of nf_tables and of both kinds of iptables."""

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence, Set

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.errors import FlannelError, TargetError, WireError
from pyflannel.kernel.filters.iptables import PROGRAMS, read_saved, version_of
from pyflannel.kernel.filters.programs import run_program
from pyflannel.model.netfilter import Action, Rule, Ruleset
from pyflannel.model.network_config import IPV4_ONLY, Family
from pyflannel.wire.iptables import SavedTables
from pyflannel.wire.iptables_ruleset import ruleset_of
from pyflannel.wire.nftables import is_own_table
from pyflannel.wire.nftables_ruleset import parse_ruleset

_NFT_FAMILIES: Mapping[Family, tuple[str, ...]] = {4: ("ip", "arp"), 6: ("ip6",)}
_COMMON_FAMILIES = frozenset({"inet", "netdev", "bridge"})


class ReadRules(Struct, frozen=True):
    """The rules that could be read, and the reasons why other rules could not be read."""

    ruleset: Ruleset
    failures: tuple[FlannelError, ...] = ()


async def read_ruleset(families: Sequence[Family] = IPV4_ONLY) -> ReadRules:
    """Return all rules for packets of these families, except those in the tables of pyflannel."""
    by_programs = await asyncio.gather(*map(_by_iptables, families))
    listed = {
        (_NFT_FAMILIES[family][0], name)
        for family, (_, names) in zip(families, by_programs, strict=True)
        for name in names
    }
    own = {name for family in families for name in _NFT_FAMILIES[family]}
    tables, failures = await _tables(_COMMON_FAMILIES | own, listed)
    found = (*(chain for ruleset, _ in by_programs for chain in ruleset), *tables)
    rules = (rule for chain in found for some in chain.chains.values() for rule in some)
    if any(rule.action.kind == "queue" for rule in rules):
        found = without_readers(found, await _read_queues())
    return ReadRules(found, failures)


async def _read_queues() -> frozenset[int] | None:
    """Return the numbers of the queues that a program reads; None if they are unreadable. The first column is
    the number (net/netfilter/nfnetlink_queue.c, seq_show).
    """
    with contextlib.suppress(TargetError, ValueError, IndexError):
        ran = await run_program("cat", "/proc/self/net/netfilter/nfnetlink_queue")
        return None if ran.status else frozenset(int(line.split()[0]) for line in ran.output.splitlines())
    return None


def without_readers(ruleset: Ruleset, queues: frozenset[int] | None) -> Ruleset:
    """Return the rules, with the verdict `drop` for queues that no program reads: the kernel drops their
    packets.
    """
    if queues is None:
        return ruleset

    def decided(rule: Rule) -> Rule:
        is_lost = rule.action.kind == "queue" and rule.action.value not in queues
        return replace(rule, action=Action("drop")) if is_lost else rule

    return tuple(
        replace(chain, chains={name: tuple(map(decided, rules)) for name, rules in chain.chains.items()})
        for chain in ruleset
    )


async def _by_iptables(family: Family) -> tuple[Ruleset, frozenset[str]]:
    """Return the rules of both kinds of iptables, and the tables of nf_tables that iptables lists."""
    program = PROGRAMS[family]
    version = await version_of(program)
    is_nft = version is None or version.is_nft
    legacy = f"{program}-legacy" if is_nft else program
    modern = program if is_nft else f"{program}-nft"
    by_legacy, by_modern = await asyncio.gather(_saved(legacy), _saved(modern))
    return (*ruleset_of(by_modern, modern), *ruleset_of(by_legacy, legacy)), frozenset(by_modern)


_ENFORCERS = (
    (re.compile(r"^table \w+ kube-network-policies\b", re.MULTILINE), "kube-network-policies"),
    (re.compile(r"^table \w+ kindnet-network-policies\b", re.MULTILINE), "kindnet"),
    (re.compile(r"^(table \w+ calico\b|\s*chain cali-)", re.MULTILINE), "Calico"),
    (re.compile(r"^\s*chain KUBE-ROUTER-FORWARD\b", re.MULTILINE), "kube-router"),
    (re.compile(r"^\s*chain CILIUM_FORWARD\b", re.MULTILINE), "Cilium"),
)
"""Tables and chains of the programs that enforce NetworkPolicies of Kubernetes on hosts with flannel."""


async def policy_enforcer() -> str | None:
    """Return the program that enforces NetworkPolicies on this host; None if no known program enforces them.

    Raises:
        TargetError: the chains cannot be listed.
    """
    listed = await _nft("list", "chains")
    return next((name for pattern, name in _ENFORCERS if pattern.search(listed)), None)


async def _saved(program: str) -> SavedTables:
    try:
        return await read_saved(program)
    except (TargetError, WireError):
        return {}  # the program is not installed, or the kernel does not support it


async def _tables(
    families: Set[str], listed: Set[tuple[str, str]]
) -> tuple[Ruleset, tuple[FlannelError, ...]]:
    """Return the tables of nf_tables of these families, except those of iptables, which are in `listed`."""
    found: list[Ruleset] = []
    failures: list[FlannelError] = []
    try:
        names = await _nft("list", "tables")
    except FlannelError as error:
        return (), (error,)
    for line in names.split("\n"):
        match line.split():
            case ["table", family, name, *_] if family in families and not is_own_table(name):
                if (family, name) in listed:
                    continue
                try:
                    document, listing = await asyncio.gather(
                        _nft("-j", "list", "table", family, name), _nft("-a", "list", "table", family, name)
                    )
                    found.append(parse_ruleset(document, listing))
                except FlannelError as error:
                    failures.append(error)
    return tuple(chain for table in found for chain in table), tuple(failures)


async def _nft(*words: str) -> str:
    ran = await run_program("nft", *words)
    if ran.status:
        raise TargetError(f"nft failed: {ran.cause}", hint="Run flannelctl as root.")
    return ran.output
