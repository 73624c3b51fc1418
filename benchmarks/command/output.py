"""What a bench prints and draws, and how busy the machine was meanwhile."""

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

_WIDTH = 160
"""Of what goes to no terminal, in characters."""


def step(what: str) -> None:
    """Say on standard error what is under way, so that the figures alone are on standard output."""
    print(f"· {what}", file=sys.stderr)


def load() -> float:
    """Return the load of the machine: processes that want a processor, on average of a minute."""
    return os.getloadavg()[0]


def load_since(before: float) -> str:
    """Return a line that tells the load before, as `load` gave it, and now."""
    return f"load of the machine: {before:.1f} before, {load():.1f} after, {os.cpu_count()} processors"


def save_picture(options: Namespace, picture: str) -> None:
    """Write the picture to where the options say."""
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(picture)


def show(tables: Iterable[Table], lines: Iterable[str]) -> None:
    """Print tables, and lines below them that are never broken."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for table in tables:
        console.print(table)
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def present(
    options: Namespace, *, figures: object, tables: Iterable[Table], proof: Iterable[str], picture: str
) -> None:
    """Save the picture, and print the figures: as JSON, or as tables with what they were measured on."""
    save_picture(options, picture)
    if options.json:
        print(json.dumps(figures))
    else:
        show(tables, [*proof, f"picture: {options.picture}"])
