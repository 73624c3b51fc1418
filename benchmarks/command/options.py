"""Options that benches share, and the exit status."""

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from pyflannel.errors import FlannelError

_RESULTS = Path(__file__).parent.parent / "results"


def bench_parser(name: str, about: str | None) -> ArgumentParser:
    """Return the parser of `scripts/bench NAME`; what it is about is shown by --help."""
    return ArgumentParser(prog=f"scripts/bench {name}", description=about)


def add_rounds(parser: ArgumentParser, *, rounds: int, seconds: int) -> None:
    """Add how often and for how long each figure is measured, with these defaults."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"measurements of each figure (default {rounds})"
    )
    parser.add_argument(
        "--seconds", type=int, default=seconds, help=f"length of each measurement (default {seconds})"
    )


def add_json(parser: ArgumentParser, what: str = "the figures") -> None:
    """Add the choice of JSON."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def add_picture(parser: ArgumentParser, name: str) -> None:
    """Add where the picture goes: by default to a place that git does not follow."""
    picture = _RESULTS / f"{name}.svg"
    parser.add_argument("--picture", type=Path, default=picture, help=f"SVG to write (default {picture})")


def exit_status(main: Callable[[], int]) -> int:
    """Return what `main` does; when the bench fails, say why, and return 1."""
    try:
        return main()
    except FlannelError as error:
        print(f"bench: {error}\n  {error.hint}", file=sys.stderr)
        return 1
