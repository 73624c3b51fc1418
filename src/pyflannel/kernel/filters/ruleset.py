"""Reads all rules of netfilter in this network namespace: of nf_tables and of both kinds of iptables."""

import asyncio
import re

from msgspec import Struct

from pyflannel.errors import FlannelError, TargetError, WireError
from pyflannel.kernel.filters.iptables import PROGRAMS, read_saved, version_of
from pyflannel.kernel.filters.programs import run_program
from pyflannel.model.netfilter import Ruleset
from pyflannel.wire.iptables import SavedTables
from pyflannel.wire.iptables_ruleset import ruleset_of
from pyflannel.wire.nftables import is_own_table
from pyflannel.wire.nftables_ruleset import parse_ruleset

_FAMILIES = frozenset({"ip", "inet", "netdev", "bridge"})


class ReadRules(Struct, frozen=True):
    """The rules that could be read, and the reasons why other rules could not be read."""

    ruleset: Ruleset
    failures: tuple[FlannelError, ...] = ()


async def read_ruleset() -> ReadRules:
    """Return all rules for IPv4 packets, except those in the tables of pyflannel."""
    program = PROGRAMS[4]
    version = await version_of(program)
    is_nft = version is None or version.is_nft
    legacy = f"{program}-legacy" if is_nft else program
    modern = program if is_nft else f"{program}-nft"
    by_legacy, by_modern = await asyncio.gather(_saved(legacy), _saved(modern))
    tables, failures = await _tables(frozenset(by_modern))
    return ReadRules((*ruleset_of(by_modern, modern), *ruleset_of(by_legacy, legacy), *tables), failures)


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


async def _tables(listed: frozenset[str]) -> tuple[Ruleset, tuple[FlannelError, ...]]:
    """Return the tables of nf_tables, except those of iptables, which are in `listed`."""
    found: list[Ruleset] = []
    failures: list[FlannelError] = []
    try:
        names = await _nft("list", "tables")
    except FlannelError as error:
        return (), (error,)
    for line in names.split("\n"):
        match line.split():
            case ["table", family, name, *_] if family in _FAMILIES and not is_own_table(name):
                if family == "ip" and name in listed:
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
