"""The output and the picture of a benchmark, and the load of the machine."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

_WIDTH = 160
"""Width in characters of output that is not to a terminal."""


def step(what: str) -> None:
    """Report the current step on standard error, so that standard output contains only the figures."""
    print(f"· {what}", file=sys.stderr)


def load() -> float:
    """Return the load of the machine: processes that want a processor, averaged over a minute."""
    return os.getloadavg()[0]


def load_since(before: float) -> str:
    """Return a line with the earlier load `before`, which `load` returned, and with the current load."""
    return f"load of the machine: {before:.1f} before, {load():.1f} after, {os.cpu_count()} processors"


def save_picture(options: Namespace, picture: str | None) -> None:
    """Write the picture, if there is one, to the path in the options."""
    if picture is None:
        return
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(picture)


def show(tables: Iterable[Table], lines: Iterable[str]) -> None:
    """Print tables, and lines below them that are never wrapped."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False, emoji=False)
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def present(
    options: Namespace, *, figures: object, tables: Iterable[Table], proof: Iterable[str], picture: str | None
) -> None:
    """Save the picture, and print the figures: as JSON, or as tables with data about the machine."""
    save_picture(options, picture)
    if options.json:
        print(json.dumps(figures))
    else:
        show(tables, [*proof, *([] if picture is None else [f"picture: {options.picture}"])])
