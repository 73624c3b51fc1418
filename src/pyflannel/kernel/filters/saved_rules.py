"""All filter rules that iptables knows of, in both of its kinds; and rules of others taken away.

A host has one kind of iptables under the plain name. Rules of the other kind stay where they are when the
name changes hands, and the kernel asks both.
"""

from contextlib import suppress

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.filters.iptables_programs import (
    PROGRAMS,
    Version,
    read_saved,
    restore,
    tidy,
    version_of,
)
from pyflannel.model.iptables_chain import HOOKS, Family
from pyflannel.model.saved_rules import LeftRules, SavedRules


async def read_rules() -> tuple[SavedRules, ...]:
    """Return what each program prints, nothing of one that is missing or fails; no table is made by it."""
    read = []
    for family, program in PROGRAMS.items():
        for one in (program, await _other(program)):
            saved = await _read(one, family, is_other=one != program)
            read += [] if saved is None else [saved]
    return tuple(read)


async def remove_rules(left: LeftRules) -> None:
    """Remove these rules, all or none; then what was made for them in nf_tables, where it is empty.

    Raises:
        TargetError: iptables failed, or is not there.
    """
    version = await version_of(left.program) or Version()
    await restore(left.program, "\n".join([f"*{left.table}", *left.removal, "COMMIT", ""]), version)
    if not version.is_nft:
        return
    family: Family = 6 if left.program.startswith(PROGRAMS[6]) else 4
    with suppress(TargetError, WireError):
        for table, hook in HOOKS.items():
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
    """Return the name of the kind that `program` is not."""
    version = await version_of(program)
    return f"{program}-nft" if version is not None and not version.is_nft else f"{program}-legacy"
