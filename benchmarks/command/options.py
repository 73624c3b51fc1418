"""Options that benchmarks share, and the exit status."""

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

from pyflannel.errors import FlannelError

_RESULTS = Path(__file__).parent.parent / "results"


def bench_parser(name: str, about: str | None) -> ArgumentParser:
    """Return the parser of `scripts/bench NAME`; --help shows the description."""
    return ArgumentParser(prog=f"scripts/bench {name}", description=about)


def add_rounds(parser: ArgumentParser, *, rounds: int, seconds: int) -> None:
    """Add the number of rounds and the duration of each measurement, with these defaults."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"measurements of each figure (default {rounds})"
    )
    parser.add_argument(
        "--seconds", type=int, default=seconds, help=f"length of each measurement (default {seconds})"
    )


def add_json(parser: ArgumentParser, what: str = "the figures") -> None:
    """Add the option for JSON."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def add_picture(parser: ArgumentParser, name: str) -> None:
    """Add the option for the path of the picture; the default is a path that git ignores."""
    picture = _RESULTS / f"{name}.svg"
    parser.add_argument("--picture", type=Path, default=picture, help=f"SVG to write (default {picture})")


def exit_status(main: Callable[[], int]) -> int:
    """Return the result of `main`. If the benchmark fails, print the error and return 1."""
    try:
        return main()
    except FlannelError as error:
        print(f"bench: {error}\n  {error.hint}", file=sys.stderr)
        return 1
