"""What all commands of flannelctl share: their options, and how they print text.

`--help` imports this module, so it imports little.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click

from pyflannel.errors import one_line

_Command = TypeVar("_Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Invocation:
    """The options that stand before the command.

    Attributes:
        store_url: the store to ask instead of the daemon; None when it was not given.
        socket: the daemon's; None when it was not given, and the run directory decides.
        wants_json: answers are documents, not text for people.
    """

    store_url: str | None = None
    socket: Path | None = None
    wants_json: bool = False


def say(text: str, *, label: str = "", err: bool = False) -> None:
    """Print a text as one line, escaped and cut, as parts of it may come from the store.

    Args:
        text: what is printed.
        label: printed before it as it is, with a colon; it may be styled.
        err: print on standard error.
    """
    click.echo(f"{label}: {one_line(text)}" if label else one_line(text), err=err)


def json_option(command: _Command) -> _Command:
    """Let `--json` stand after the command too."""

    def want_json(context: click.Context, _: click.Parameter, is_wanted: bool) -> None:
        if is_wanted:
            context.obj = replace(context.obj, wants_json=True)

    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        callback=want_json,
        help="Print a JSON document instead of text for people.",
    )(command)


def run_dir_option(command: _Command) -> _Command:
    """Let the daemon's run directory be named, as to the daemon itself."""
    return _directory("--run-dir", "/run/flannel", "Where the daemon has its sockets and its lock.")(command)


def state_options(command: _Command) -> _Command:
    """Let the daemon's state directory and subnet file be named, as to the daemon itself."""
    command = _directory("--subnet-file", "/run/flannel/subnet.env", "The subnet file of the daemon.")(
        command
    )
    return _directory("--state-dir", "/var/lib/flannel", "Where the daemon keeps its identity.")(command)


def _directory(name: str, default: str, text: str) -> Callable[[_Command], _Command]:
    return click.option(
        name,
        type=click.Path(path_type=Path),
        default=default,
        show_default=True,
        envvar="FLANNELD" + name.removeprefix("-").replace("-", "_").upper(),
        help=f"{text}  [env: the daemon's]",
    )
