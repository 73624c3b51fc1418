"""The Target that is iptables, whichever of its two kinds the host has."""

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.filters.iptables_programs import (
    PROGRAMS,
    LockHeldError,
    Version,
    read_saved,
    restore,
    tidy,
    version_of,
)
from pyflannel.kernel.filters.program import MissingProgramError
from pyflannel.kernel.filters.rule_dump import RuleDump
from pyflannel.model.filter_rule import FilterRule, Masquerade
from pyflannel.model.iptables_chain import Family, IptablesChain
from pyflannel.model.operation import Add, Operation, Refusal, Remove, Replace
from pyflannel.model.state import State
from pyflannel.wire.iptables_restore import format_chain, format_removal
from pyflannel.wire.iptables_save import SavedTables, chains_of, drops_forwarded

log = logging.getLogger(__name__)

RESYNC_S = 5.0

_MISSING_HINT = (
    "Install iptables; or set EnableNFTables in the network config; or leave --ip-masq out and write"
    " --iptables-forward-rules=false."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What is there of one family; equal to another when they differ in what is no concern of ours alone."""

    chains: tuple[IptablesChain, ...] = ()
    drops: bool = False
    saved: SavedTables = field(default_factory=dict, compare=False)
    error: TargetError | None = field(default=None, compare=False)


class IptablesTarget:
    """A Target for IptablesChain items.

    Where iptables cannot be read nothing is found, and each operation is refused with the reason: links and
    routes are mended all the same.
    """

    def __init__(self, resync_s: float = RESYNC_S) -> None:
        self._dump = RuleDump(self._read, resync_s)
        self._families = frozenset(PROGRAMS)
        self._versions: dict[Family, Version] = {}

    def close(self) -> None:
        """Let go of the notifications."""
        self._dump.close()

    async def snapshot(self, desired: State) -> State:
        """Return the chains with our names; one that is only for a policy of DROP is there without it."""
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
        """Make or remove the chains, each in one transaction; once the lock was waited for, no more."""
        seen = await self._dump.get()
        try:
            return await self._apply(operations, seen)
        finally:
            self._dump.forget()

    def changes(self) -> AsyncIterator[None]:
        """Yield when our chains, the jumps to them, or the policy of FORWARD are not as they were read."""
        return self._dump.changes()

    async def _apply(self, operations: Sequence[Operation], seen: Mapping[Family, _Seen]) -> list[Refusal]:
        refusals: list[Refusal] = []
        held: LockHeldError | None = None
        for operation in operations:
            try:
                if held is not None:
                    raise held
                await self._perform(operation, seen)
            except TargetError as error:
                held = error if isinstance(error, LockHeldError) else None
                refusals.append(Refusal(operation=operation, cause=str(error), hint=error.hint))
        return refusals

    async def _see(self, families: frozenset[Family]) -> Mapping[Family, _Seen]:
        """Return what is there of these families at least."""
        seen = await self._dump.get()
        if families <= seen.keys():
            return seen
        self._families |= families
        self._dump.forget()
        return await self._dump.get()

    async def _read(self) -> Mapping[Family, _Seen]:
        """Read the families that are planned or were found; all of them the first time."""
        return {family: await self._read_family(family) for family in sorted(self._families)}

    async def _read_family(self, family: Family) -> _Seen:
        try:
            saved = await read_saved(PROGRAMS[family])
        except MissingProgramError:
            return _Seen(error=MissingProgramError(PROGRAMS[family], hint=_MISSING_HINT))
        except TargetError as error:
            return _Seen(error=error)
        except WireError as error:
            return _Seen(error=TargetError(str(error), hint=error.hint))
        return _Seen(chains=tuple(chains_of(saved, family)), drops=drops_forwarded(saved), saved=saved)

    async def _normalised(self, there: IptablesChain, planned: IptablesChain) -> IptablesChain:
        """Return what is there as the plan would say it, where it is as near to it as this host can get."""
        there = replace(there, is_for_dropping=planned.is_for_dropping)
        return planned if there == await self._possible(planned) else there

    async def _possible(self, chain: IptablesChain) -> IptablesChain:
        """Return the chain as this iptables can make it."""
        if await self._is_modern(chain.family):
            return chain
        rules = tuple(_less_random(rule) if isinstance(rule, FilterRule) else rule for rule in chain.rules)
        return replace(chain, rules=rules)

    async def _is_modern(self, family: Family) -> bool:
        return (await self._version(family)).is_modern

    async def _version(self, family: Family) -> Version:
        """Return the version of iptables; the newest is assumed as long as it does not tell."""
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
        if (await self._version(chain.family)).is_nft:  # a table of legacy iptables stays with the namespace
            with suppress(TargetError, WireError):
                await tidy(PROGRAMS[chain.family], chain.family, chain.table, chain.hook)

    async def _restore(self, family: Family, transaction: str) -> None:
        await restore(PROGRAMS[family], transaction, await self._version(family))


def _saved(seen: _Seen) -> SavedTables:
    if seen.error is not None:
        raise seen.error
    return seen.saved


def _is_needed(chain: IptablesChain, seen: _Seen) -> bool:
    """Return whether iptables may drop what the chain would accept; where it is missing nobody asks it to."""
    if not chain.is_for_dropping or seen.drops:
        return True
    return seen.error is not None and not isinstance(seen.error, MissingProgramError)


def _less_random(rule: FilterRule) -> FilterRule:
    if not isinstance(rule.verdict, Masquerade):
        return rule
    return replace(rule, verdict=Masquerade(is_fully_random=False))
