"""The programs of iptables, run: what they print, what they are told, which kind and version they are."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pyflannel.errors import TargetError
from pyflannel.kernel.filters.program import MissingProgramError, Ran, run_program
from pyflannel.kernel.filters.xtables_lock import LOCK, lock_holder
from pyflannel.model.iptables_chain import Family
from pyflannel.wire.iptables_save import SavedTables, is_unused_hook, parse_save

PROGRAMS: Mapping[Family, str] = {4: "iptables", 6: "ip6tables"}
"""What is on the PATH of every host: a name of one of the two kinds."""

_NFT_FAMILIES: Mapping[Family, str] = {4: "ip", 6: "ip6"}
_MODERN = (1, 6, 2)
"""The first version that waits for the lock in iptables-restore, and masquerades fully random."""

_LOCK_WAIT_S = 1
"""So long a change waits for the xtables lock; other repairs wait meanwhile."""


class LockHeldError(TargetError):
    """Another program holds the xtables lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What a program says of itself.

    Attributes:
        is_nft: it works on nf_tables; else it is legacy iptables.
    """

    number: tuple[int, ...] = _MODERN
    is_nft: bool = False
    text: str = ""

    @property
    def is_modern(self) -> bool:
        """Whether it waits for the lock when it is asked to, and draws ports."""
        return self.number >= _MODERN


async def version_of(program: str) -> Version | None:
    """Return the version of a program; None when it does not tell, or cannot be run."""
    try:
        ran = await run_program(program, "--version")
    except TargetError:
        return None
    number = re.search(r"v(\d+(?:\.\d+)*)", ran.output)
    parts = tuple(int(part) for part in number[1].split(".")) if number else _MODERN
    return Version(number=parts, is_nft="nf_tables" in ran.output, text=ran.output.strip())


async def read_saved(program: str) -> SavedTables:
    """Return what `PROGRAM-save` prints.

    Raises:
        TargetError: it failed, or cannot be run.
        WireError: it printed something else.
    """
    ran = await run_program(f"{program}-save")
    if ran.status:
        raise _failed(f"{program}-save", ran)
    return parse_save(ran.output)


async def restore(program: str, transaction: str, version: Version) -> None:
    """Have `PROGRAM-restore` carry a transaction out, all of it or nothing.

    Raises:
        LockHeldError: another program has held the xtables lock for a second.
        TargetError: it failed, or cannot be run.
    """
    waiting = [f"--wait={_LOCK_WAIT_S}"] if version.is_modern else []
    ran = await run_program(f"{program}-restore", "--noflush", *waiting, given=transaction)
    if not ran.status:
        return
    if "xtables lock" in ran.complaint:
        raise LockHeldError(
            f"{lock_holder() or 'another program'} holds the xtables lock ({LOCK})",
            hint="It is tried again every few seconds; end the program if it hangs.",
        )
    raise _failed(f"{program}-restore", ran)


async def tidy(program: str, family: Family, table: str, hook: str) -> None:
    """Take away what an iptables of nf_tables made for rules: the built-in chain, the table, if unused.

    Both are deleted only as long as they are empty, so that nobody's rules go with them.

    Raises:
        TargetError: the program cannot be run.
        WireError: it printed something else than rules.
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
        hint="Run flanneld as root, or with CAP_NET_ADMIN (legacy iptables: CAP_NET_RAW too); see dmesg.",
    )
