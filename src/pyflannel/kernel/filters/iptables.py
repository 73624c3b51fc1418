"""iptables (nft or legacy) as a Target: the programs of iptables, their lock, and rules of other programs
in the tables.
"""

import logging
import os
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.filters.programs import MissingProgramError, Ran, RuleDump, run_program
from pyflannel.model.network_config import Family
from pyflannel.model.packet_filter import (
    TABLES,
    FilterRule,
    IptablesChain,
    IptablesHook,
    LeftRules,
    Masquerade,
    SavedRules,
)
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.ports import ChangeChannel, performed, refused_by
from pyflannel.wire.iptables import (
    SavedTables,
    chains_of,
    drops_by_default,
    format_chain,
    format_removal,
    is_unused_hook,
    parse_save,
)

LOCK = "/run/xtables.lock"


def lock_holder() -> str | None:
    """Return the process that holds the lock, as `NAME (pid N)`; None if it is free or unknown.

    Source: proc(5), /proc/locks: `1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END`.
    """
    try:
        inode = os.stat(LOCK).st_ino
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                name = Path(f"/proc/{words[4]}/comm").read_text(errors="replace").strip()
                return f"{name} (pid {words[4]})"
    except OSError:
        pass
    return None


PROGRAMS: Mapping[Family, str] = {4: "iptables", 6: "ip6tables"}
"""Names of the programs of the kind of iptables that the host uses by default, for each family."""

_NFT_FAMILIES: Mapping[Family, str] = {4: "ip", 6: "ip6"}
_MODERN = (1, 6, 2)
"""The first version that waits for the lock in iptables-restore, and supports fully random source ports
for masquerading."""

_LOCK_WAIT_S = 1
"""Seconds for which a change waits for the xtables lock. During this time, other repairs wait."""


class LockHeldError(TargetError):
    """Another program holds the xtables lock."""


class Version(Struct, frozen=True, kw_only=True):
    """The kind and the version that a program reports.

    Attributes:
        is_nft: True if the program uses nf_tables; False for legacy iptables.
    """

    number: tuple[int, ...] = _MODERN
    is_nft: bool = False
    text: str = ""

    @property
    def is_modern(self) -> bool:
        """True if iptables has an option to wait for the lock, and can choose random ports."""
        return self.number >= _MODERN


async def version_of(program: str) -> Version | None:
    """Return the version of a program; None if it prints no version, or cannot be run."""
    try:
        ran = await run_program(program, "--version")
    except TargetError:
        return None
    number = re.search(r"v(\d+(?:\.\d+)*)", ran.output)
    parts = tuple(int(part) for part in number[1].split(".")) if number else _MODERN
    return Version(number=parts, is_nft="nf_tables" in ran.output, text=ran.output.strip())


_NO_TABLE_NAMES = "Failed to list table names"
"""The message of legacy iptables to a user other than root. Only root may read /proc/net/ip_tables_names, and
no capability changes this."""


async def read_saved(program: str) -> SavedTables:
    """Return the output of `PROGRAM-save`; with legacy iptables and without root, only the output for the
    used tables.

    Raises:
        TargetError: the program failed, or cannot be run.
        WireError: the output has another format.
    """
    ran = await run_program(f"{program}-save")
    if _NO_TABLE_NAMES not in ran.complaint:
        return _parsed(program, ran)
    single = [await run_program(f"{program}-save", "-t", table) for table in dict.fromkeys(TABLES.values())]
    # the kernel may not support one of the kinds
    possible = [one for one in single if not one.status] or single[:1]
    return dict(ChainMap(*(dict(_parsed(program, one)) for one in possible)))


def _parsed(program: str, ran: Ran) -> SavedTables:
    if ran.status:
        raise _failed(f"{program}-save", ran)
    return parse_save(ran.output)


async def restore(program: str, transaction: str, version: Version) -> None:
    """Let `PROGRAM-restore` perform a transaction completely or not at all.

    Raises:
        LockHeldError: another program has held the xtables lock for a second.
        TargetError: the program failed, or cannot be run.
    """
    waiting = [f"--wait={_LOCK_WAIT_S}"] if version.is_modern else []
    ran = await run_program(f"{program}-restore", "--noflush", *waiting, given=transaction)
    if not ran.status:
        return
    if "xtables lock" in ran.complaint:
        raise LockHeldError(
            f"{lock_holder() or 'another program'} holds the xtables lock ({LOCK})",
            hint="flanneld tries again every few seconds. If the other program hangs, terminate it.",
        )
    raise _failed(f"{program}-restore", ran)


async def tidy(program: str, family: Family, table: str, hook: str) -> None:
    """Remove the built-in chain and the table that iptables with the nf_tables backend created, if they are
    unused.

    The chain and the table are deleted only while they are empty, so that no rule of another program is
    deleted.

    Raises:
        TargetError: the program cannot be run.
        WireError: the output has another format.
    """
    if is_unused_hook(await read_saved(program), table, hook):
        await run_program(program, "-t", table, "-X", hook)
    name = _NFT_FAMILIES[family]
    try:
        shown = await run_program("nft", "list", "table", name, table)
        if not shown.status and shown.output.split() == ["table", name, table, "{", "}"]:
            await run_program("nft", "delete", "table", name, table)
    except MissingProgramError:
        return


def _failed(program: str, ran: Ran) -> TargetError:
    return TargetError(
        f"{program} failed: {ran.cause}",
        hint="Run flanneld as root, or with CAP_NET_ADMIN (and CAP_NET_RAW for legacy iptables); see dmesg.",
        is_permanent=ran.is_permanent,
    )


# Reads all filter rules of iptables, of both kinds, and removes rules of the original.
#
# On a host, the name `iptables` runs one of the two kinds. If this name is switched to the other kind, the
# rules of the previous kind remain, and the kernel evaluates the rules of both.


async def read_rules() -> tuple[SavedRules, ...]:
    """Return the output of each program, skipping programs that are missing or fail. The programs create
    no table.
    """
    read = []
    for family, program in PROGRAMS.items():
        for one in (program, await _other(program)):
            saved = await _read(one, family, is_other=one != program)
            read += [] if saved is None else [saved]
    return tuple(read)


async def remove_rules(left: LeftRules) -> None:
    """Remove these rules, either all or none, and then the empty chains and tables that nf_tables created for
    them.

    Raises:
        TargetError: iptables failed, or is not installed.
    """
    version = await version_of(left.program) or Version()
    await restore(left.program, "\n".join([f"*{left.table}", *left.removal, "COMMIT", ""]), version)
    if not version.is_nft:
        return
    family: Family = 6 if left.program.startswith(PROGRAMS[6]) else 4
    with suppress(TargetError, WireError):
        for hook, table in TABLES.items():
            if table == left.table:
                await tidy(left.program, family, table, hook)


async def _read(program: str, family: Family, *, is_other: bool) -> SavedRules | None:
    try:
        tables = await read_saved(program)
    except (TargetError, WireError):
        return None
    chains = {table: {name: one.rules for name, one in found.items()} for table, found in tables.items()}
    return SavedRules(program=program, family=family, is_other=is_other, chains=chains)


async def _other(program: str) -> str:
    """Return the name of the program of the other kind of iptables."""
    version = await version_of(program)
    return f"{program}-nft" if version is not None and not version.is_nft else f"{program}-legacy"


log = logging.getLogger(__name__)

RESYNC_S = 5.0

_MISSING_HINT = (
    "Install iptables; or set EnableNFTables in the network config; or omit --ip-masq and use"
    " --iptables-forward-rules=false."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """The current rules of one family. Rules of other programs are ignored in comparisons.

    Attributes:
        dropping: the built-in chains that drop packets that no rule accepts.
    """

    chains: tuple[IptablesChain, ...] = ()
    dropping: tuple[IptablesHook, ...] = ()
    saved: SavedTables = field(default_factory=dict, compare=False)
    error: TargetError | None = field(default=None, compare=False)


class IptablesTarget:
    """A Target for IptablesChain items.

    If iptables is permanently unreadable, a scan finds nothing, and each operation is refused with the
    reason.
    """

    kinds = (IptablesChain,)

    def __init__(self, resync_s: float = RESYNC_S) -> None:
        self._dump = RuleDump(self._read, resync_s)
        self._families = frozenset(PROGRAMS)
        self._versions: dict[Family, Version] = {}

    async def __aenter__(self) -> Self:
        self._dump.__enter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._dump.__exit__()

    async def snapshot(self, desired: State) -> State:
        """Return the chains of pyflannel. An absent chain counts as present if it is not needed because no
        policy drops packets.
        """
        planned = list(desired.of_type(IptablesChain))
        seen = await self._see(frozenset(chain.family for chain in planned))
        found: dict[object, IptablesChain] = {
            chain.key: chain for one in seen.values() for chain in one.chains
        }
        self._families = frozenset(chain.family for chain in (*planned, *found.values()))
        self._dump.is_wanted = bool(self._families)
        for chain in planned:
            there, is_needed = found.get(chain.key), _is_needed(chain, seen[chain.family])
            if there is not None and is_needed:
                found[chain.key] = await self._normalised(there, chain)
            elif there is None and not is_needed:
                found[chain.key] = chain
        return State.collect(found.values())

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Create or remove each chain in one transaction. Wait for the lock only once; if the lock stays
        held, refuse the remaining operations.
        """
        return await performed(operations, self._apply(operations))

    def changes(self) -> ChangeChannel:
        """Open a channel that announces when chains, jumps or policies differ from the last scan."""
        return self._dump.changes()

    async def _apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        held: LockHeldError | None = None
        chains = (one.subject for one in operations)
        seen = await self._see(frozenset(one.family for one in chains if isinstance(one, IptablesChain)))
        try:
            for operation in operations:
                try:
                    if held is not None:
                        raise held
                    await self._perform(operation, seen)
                except TargetError as error:
                    held = error if isinstance(error, LockHeldError) else None
                    refusals.append(refused_by(operation, error))
        finally:
            self._dump.forget()
        return refusals

    async def _see(self, families: frozenset[Family]) -> Mapping[Family, _Seen]:
        """Return the present rules of at least these families."""
        seen = await self._dump.get()
        if families <= seen.keys():
            return seen
        self._families |= families
        self._dump.forget()
        return await self._dump.get()

    async def _read(self) -> Mapping[Family, _Seen]:
        """Read the families that are planned or were found; and all families the first time."""
        return {family: await self._read_family(family) for family in sorted(self._families)}

    async def _read_family(self, family: Family) -> _Seen:
        try:
            saved = await read_saved(PROGRAMS[family])
        except MissingProgramError:
            return _Seen(error=MissingProgramError(PROGRAMS[family], hint=_MISSING_HINT))
        except TargetError as error:
            if not error.is_permanent:
                raise
            return _Seen(error=error)
        except WireError as error:
            return _Seen(error=TargetError(str(error), hint=error.hint, is_permanent=True))
        dropping = tuple(hook for hook in TABLES if drops_by_default(saved, hook))
        return _Seen(chains=tuple(chains_of(saved, family)), dropping=dropping, saved=saved)

    async def _normalised(self, there: IptablesChain, planned: IptablesChain) -> IptablesChain:
        """Return the planned chain if the current chain is the closest form that this host supports."""
        there = replace(there, is_for_dropping=planned.is_for_dropping)
        return planned if there == await self._possible(planned) else there

    async def _possible(self, chain: IptablesChain) -> IptablesChain:
        """Return the chain in the form that this iptables supports."""
        if await self._is_modern(chain.family):
            return chain
        rules = tuple(_less_random(rule) if isinstance(rule, FilterRule) else rule for rule in chain.rules)
        return replace(chain, rules=rules)

    async def _is_modern(self, family: Family) -> bool:
        return (await self._version(family)).is_modern

    async def _version(self, family: Family) -> Version:
        """Return the version of iptables; the newest version if it is unknown."""
        known = self._versions.get(family)
        if known is None:
            known = await version_of(PROGRAMS[family])
            if known is None:
                return Version()
            if not known.is_modern:
                log.warning("%s: no random ports for masqueraded packets", known.text)
            self._versions[family] = known
        return known

    async def _perform(self, operation: Operation, seen: Mapping[Family, _Seen]) -> None:
        match operation:
            case Remove(IptablesChain() as chain):
                await self._remove(chain, seen[chain.family])
            case Replace(_, IptablesChain() as chain) if not _is_needed(chain, seen[chain.family]):
                await self._remove(chain, seen[chain.family])
            case Add(IptablesChain() as chain) | Replace(_, IptablesChain() as chain):
                saved = _saved(seen[chain.family])
                await self._restore(chain.family, format_chain(await self._possible(chain), saved))
            case _:
                raise TypeError(f"not an operation on a chain of iptables: {operation!r}")

    async def _remove(self, chain: IptablesChain, seen: _Seen) -> None:
        await self._restore(chain.family, format_removal(chain, _saved(seen)))
        if (await self._version(chain.family)).is_nft:  # no command removes a table of legacy iptables
            with suppress(TargetError, WireError):
                await tidy(PROGRAMS[chain.family], chain.family, chain.table, chain.hook)

    async def _restore(self, family: Family, transaction: str) -> None:
        await restore(PROGRAMS[family], transaction, await self._version(family))


def _saved(seen: _Seen) -> SavedTables:
    if seen.error is not None:
        raise seen.error
    return seen.saved


def _is_needed(chain: IptablesChain, seen: _Seen) -> bool:
    """Return whether iptables may drop packets that the chain would accept; False if iptables is missing."""
    if not chain.is_for_dropping or chain.hook in seen.dropping:
        return True
    return seen.error is not None and not isinstance(seen.error, MissingProgramError)


def _less_random(rule: FilterRule) -> FilterRule:
    if not isinstance(rule.verdict, Masquerade):
        return rule
    return replace(rule, verdict=Masquerade(is_fully_random=False))
