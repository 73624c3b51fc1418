"""The Target of nftables: the tables of pyflannel, each replaced as a whole in one transaction."""

import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Self

from msgspec.structs import replace

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.filters.iptables import RESYNC_S
from pyflannel.kernel.filters.programs import MissingProgramError, RuleDump, run_program
from pyflannel.model.network_config import Family
from pyflannel.model.packet_filter import FilterRule, Masquerade, NftTable, Rules
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.ports import ChangeChannel, performed, refused_by
from pyflannel.wire.nftables import (
    FAMILIES,
    format_check,
    format_removal,
    format_table,
    parse_names,
    parse_table,
)

log = logging.getLogger(__name__)

_MISSING_HINT = "Install nftables; or set EnableNFTables to false in the network config, for iptables."


@dataclass(frozen=True, slots=True)
class _Seen:
    """The current tables of pyflannel; none if they cannot be read, with the reason for refusals."""

    tables: tuple[NftTable, ...] = ()
    error: TargetError | None = field(default=None, compare=False)


class NftTarget:
    """A Target for NftTable items.

    If nft cannot be run at all, a scan finds nothing, and each operation is refused with the reason.
    """

    kinds = (NftTable,)

    def __init__(self, resync_s: float = RESYNC_S) -> None:
        self._dump = RuleDump(self._read, resync_s)
        self._draws: dict[Family, bool] = {}

    async def __aenter__(self) -> Self:
        self._dump.__enter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._dump.__exit__()

    async def snapshot(self, desired: State) -> State:
        """Return the tables with the names of pyflannel."""
        seen = await self._dump.get()
        planned: dict[Hashable, NftTable] = {item.key: item for item in desired.of_type(NftTable)}
        self._dump.is_wanted = bool(planned or seen.tables)
        found: list[NftTable] = []
        for table in seen.tables:
            wanted = planned.get(table.key)
            is_as_near = wanted is not None and table == await self._possible(wanted)
            found.append(wanted if wanted is not None and is_as_near else table)
        return State.collect(found)

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Create or remove the tables, in order."""
        return await performed(operations, self._apply(operations))

    def changes(self) -> ChangeChannel:
        """Open a channel that announces changes of the tables since the latest reading."""
        return self._dump.changes()

    async def _apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        seen = await self._dump.get()
        try:
            for operation in operations:
                try:
                    if seen.error is not None:
                        raise seen.error
                    await self._perform(operation)
                except TargetError as error:
                    refusals.append(refused_by(operation, error))
        finally:
            self._dump.forget()
        return refusals

    async def _read(self) -> _Seen:
        try:
            tables = [await self._read_table(*name) for name in await self._read_names()]
            return _Seen(tuple(table for table in tables if table is not None))
        except MissingProgramError:
            return _Seen(error=MissingProgramError("nft", hint=_MISSING_HINT))
        except TargetError as error:
            if not error.is_permanent:
                raise
            return _Seen(error=error)
        except WireError as error:
            return _Seen(error=TargetError(str(error), hint=error.hint, is_permanent=True))

    async def _read_names(self) -> list[tuple[Family, str]]:
        return parse_names(await _nft("list", "tables"))

    async def _read_table(self, family: Family, device: str) -> NftTable | None:
        """Return a listed table; None if it was deleted in the meantime."""
        name = NftTable(family=family, device=device, chains=()).name
        try:
            text = await _nft("-j", "list", "table", FAMILIES[family], name)
        except TargetError:
            if (family, device) in await self._read_names():
                raise
            return None
        return parse_table(text, family, device)

    async def _perform(self, operation: Operation) -> None:
        match operation:
            case Add(NftTable() as table) | Replace(_, NftTable() as table):
                await _nft("-j", "-f", "-", given=format_table(await self._possible(table)))
            case Remove(NftTable() as table):
                await _nft("-j", "-f", "-", given=format_removal(table))
            case _:
                raise TypeError(f"not an operation on a table of nftables: {operation!r}")

    async def _possible(self, table: NftTable) -> NftTable:
        """Return the table in the form that this host supports, because not every kernel can choose random
        ports.
        """
        if not any(_draws(chain.rules) for chain in table.chains):
            return table
        if table.family not in self._draws:
            await self._probe(table.family)
        if self._draws.get(table.family, True):
            return table
        chains = tuple(replace(chain, rules=_less_random(chain.rules)) for chain in table.chains)
        return replace(table, chains=chains)

    async def _probe(self, family: Family) -> None:
        try:
            checked = await run_program("nft", "-c", "-j", "-f", "-", given=format_check(family))
        except TargetError:
            return  # the error is reported when the rules are written
        self._draws[family] = not checked.status
        if checked.status:
            log.warning("nftables: no random ports for masqueraded packets: %s", checked.cause)


async def _nft(*words: str, given: str = "") -> str:
    """Return the output of nft.

    Raises:
        TargetError: nft failed, or cannot be run.
    """
    ran = await run_program("nft", *words, given=given)
    if ran.status:
        raise TargetError(
            f"nft failed: {ran.cause}",
            hint="Run flanneld as root, or with CAP_NET_ADMIN; see dmesg.",
            is_permanent=ran.is_permanent,
        )
    return ran.output


def _draws(rules: Rules) -> bool:
    return any(isinstance(rule, FilterRule) and rule.verdict == Masquerade() for rule in rules)


def _less_random(rules: Rules) -> Rules:
    return tuple(
        replace(rule, verdict=Masquerade(is_fully_random=False))
        if isinstance(rule, FilterRule) and isinstance(rule.verdict, Masquerade)
        else rule
        for rule in rules
    )
