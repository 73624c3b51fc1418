"""Access to the daemon or the store for flannelctl's verbs, and output as JSON, table or list."""

import asyncio
import contextlib
import itertools
import os
import shutil
import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import click
import msgspec
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.assembly.store_flags import store_url_from_environment
from pyflannel.assembly.stores import parse_store_url
from pyflannel.cli.invocation import Invocation
from pyflannel.commands.network_client import NetworkClient, network_client, network_store
from pyflannel.errors import NotReadyError, UsageError, one_line, printable
from pyflannel.ports import Store

_Answer = TypeVar("_Answer")

_LONGEST_CELL = 256
"""Maximum number of printed characters in a cell of a table: the maximum length of an owner."""

_WIDE = 1000
"""Width of a table in a file or a pipe. Long lines are not wrapped, so that grep finds them."""


def print_json(document: bytes) -> None:
    """Print a JSON document, indented."""
    text = msgspec.json.format(document, indent=2).decode()
    click.echo(printable(text, keep="\n"))  # JSON may contain characters that control a terminal


def print_text(text: str) -> None:
    """Print a text from the store in full. Characters that control a terminal are escaped, so that a JSON
    document stays equal.
    """
    click.echo(printable(text, keep="\n\t"))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, can_stack: bool = False) -> None:
    """Print a table of rows with headings; on a terminal, the table is as wide as the terminal.

    With `can_stack`, a table that does not fit the terminal becomes a block of lines for each row.
    """
    from rich.console import Console  # not at the top, because rich loads slowly
    from rich.table import Table

    rows = list(rows)
    if can_stack and sys.stdout.isatty() and _is_too_wide(headings, rows):
        for number, row in enumerate(rows):
            if number:
                click.echo()
            print_facts(zip(headings, row, strict=True))
        return

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        *cells, last = row
        table.add_row(*(one_line(cell, _LONGEST_CELL) for cell in cells), one_line(last))
    width = None if sys.stdout.isatty() else _WIDE
    # Markup and highlighting are disabled, because the texts come from the store and from files.
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as text:
        console.print(table)
    for line in text.get().splitlines():
        click.echo(line.rstrip())


def _is_too_wide(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether the other columns leave too little of the terminal to the last column, which may be
    folded.
    """
    *widths, last = (max(map(len, column)) for column in zip(headings, *rows, strict=True))
    needed = sum(widths) + 2 * len(widths) + min(last, _LAST_COLUMN)
    return needed > shutil.get_terminal_size().columns


_LAST_COLUMN = 24
"""Characters that the last column of a table needs at most; longer texts are folded."""


def print_facts(facts: Iterable[tuple[str, str]], health: Mapping[str, bool] = MappingProxyType({})) -> None:
    """Print named values, one per line, with the names in one column.

    On a terminal, a name in `health` is green if its value is true, otherwise red.
    """
    lines = list(facts)
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        colour = None if name not in health else "green" if health[name] else "red"
        click.echo(f"{click.style(name.ljust(width), fg=colour, bold=True)}  {one_line(value)}")


def label_of(fix: str) -> str:
    """Return the label of a remedy: `type` for a command, `do` for a sentence."""
    return "do" if fix[:1].isupper() else "type"


def both(ipv4: object, ipv6: object) -> str:
    """Return the IPv4 and the IPv6 value as one text for people. `ipv6` is None without IPv6, and equals
    `ipv4` in a network with IPv6 alone.
    """
    return str(ipv4) if ipv6 in (None, ipv4) else f"{ipv4} {ipv6}"


def duration(seconds: float) -> str:
    """Return a duration in its two largest units: `23 h 59 min`."""
    whole = max(0, int(seconds))
    units = [(86400, "d"), (3600, "h"), (60, "min"), (1, "s")]
    for (size, name), (small, small_name) in itertools.pairwise(units):
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name}" + (f" {rest} {small_name}" if rest else "")
    return f"{whole} s"


def size(number: float) -> str:
    """Return a number of bytes with three digits and its unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 999.5 or unit == "TB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if number >= 99.5 or unit == "B" else f"{number:.1f} {unit}"


def handshake(age_s: float | None) -> str:
    """Return the age of the latest handshake of WireGuard as text for people."""
    return "no handshake yet" if age_s is None else f"last handshake {duration(age_s)} ago"


def local_time(at: float | None) -> str:
    """Return a time as text for people; `unknown` for None."""
    return (
        "unknown"
        if at is None
        else datetime.fromtimestamp(at, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    )


def reach(begin: int, revision: int, *, is_complete: bool) -> str:
    """Return a sentence that states how far back a history reaches."""
    start = (
        "The history is complete since the store was created"
        if begin <= 1
        else f"The history is complete since revision {begin}: the store deleted older changes"
    )
    if is_complete:
        return f"{start}, up to revision {revision}."
    return f"{start}, but the store did not send all changes up to revision {revision} in time."


def places_of(
    run_dir: Path | None,
    state_dir: Path | None = None,
    subnet_file: Path | None = None,
    *,
    store_url: str | None = None,
) -> Places:
    """Return the paths of a daemon: the given paths, or otherwise the paths of its prefix in the store.

    `store_url`: the store of the daemon; None for the store of the FLANNELD_ variables.
    """
    usual = Places()
    with contextlib.suppress(UsageError):  # an invalid variable is reported by flanneld, not here
        url = store_url or store_url_from_environment(os.environ)
        usual = usual.of_prefix(parse_store_url(url).prefix)
    return replace(
        usual,
        run_dir=run_dir or usual.run_dir,
        state_dir=state_dir or usual.state_dir,
        subnet_file=subnet_file or usual.subnet_file,
    )


def socket_of(invocation: Invocation, run_dir: Path | None) -> Path:
    """Return the given control socket, or the control socket of the daemon with this run directory."""
    return invocation.socket or places_of(run_dir).control_socket


def network_of(
    invocation: Invocation, run_dir: Path | None, *, creates: bool = False
) -> AbstractAsyncContextManager[NetworkClient]:
    """Open the daemon or the store that the options select; `creates` permits the creation of a store
    file.
    """
    return network_client(
        invocation.store_url,
        socket_of(invocation, run_dir),
        os.environ,
        only_daemon=invocation.socket is not None,
        creates=creates,
    )


def store_of(
    invocation: Invocation, run_dir: Path | None, *, creates: bool = False, whole: bool = False
) -> AbstractAsyncContextManager[Store]:
    """Open the store that the options select, or the store of the daemon.

    With `whole`, open the store with all its networks, even if only one of them is selected.
    """
    return network_store(
        invocation.store_url,
        socket_of(invocation, run_dir),
        os.environ,
        only_daemon=invocation.socket is not None,
        creates=creates,
        whole=whole,
    )


def answer(
    invocation: Invocation,
    work: Coroutine[Any, Any, _Answer],
    *,
    writes: bool = False,
    is_limited: bool = False,
) -> _Answer:
    """Do the work of a command, and return its result within 5 s of the start of flannelctl.

    Args:
        invocation: the command.
        work: the work; it is cancelled at the deadline.
        writes: True if the work changes the store. If the work is cancelled, the change may have taken
            effect.
        is_limited: see `Invocation.left_s`.

    Raises:
        NotReadyError: the work is not complete in time.
    """
    left_s = invocation.left_s(is_limited=is_limited)
    return asyncio.run(_in_time(work, left_s, writes=writes))


async def _in_time(work: Coroutine[Any, Any, _Answer], left_s: float, *, writes: bool) -> _Answer:
    try:
        async with asyncio.timeout(left_s) as limit:
            return await work
    except TimeoutError as error:
        if not limit.expired():
            raise
        if writes:
            raise NotReadyError(
                "flanneld and the store have not confirmed the write in time. The write may have taken "
                "effect",
                hint="Check both with flannelctl doctor. Before you try again, run flannelctl leases and "
                "flannelctl config get.",
            ) from error
        raise NotReadyError(
            "the answers of flanneld and of the store were not complete in time",
            hint="Check flanneld with flannelctl doctor, the store, and the load of the host.",
        ) from error
