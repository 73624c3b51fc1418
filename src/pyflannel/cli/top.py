"""flannelctl top: this host on the whole screen."""

import asyncio
import os
import sys
from pathlib import Path

import click

from pyflannel.cli.answers import places_of, socket_of
from pyflannel.cli.invocation import Invocation, Verb, run_dir_option, shared_options, state_options
from pyflannel.errors import FlannelError, UsageError


@click.command(cls=Verb)
@run_dir_option
@state_options
@shared_options("socket")
@click.pass_obj
def top(
    invocation: Invocation, run_dir: Path | None, state_dir: Path | None, subnet_file: Path | None
) -> None:
    """Watch this host on the whole screen: peers, traffic, repairs and store, live.

    The screen shows each peer with its path, its round-trip time, the loss of the latest probes, and its
    traffic if the backend counts it. While the command runs, it probes the peers with ICMP echo. If flanneld
    does not respond, the screen states the reason, and continues when flanneld responds again.

    Keys: q quits, / filters, s sorts by the next column, r reverses the order, e hides the events. The arrow
    keys select a peer. Esc removes the filter and the selection.

    The command needs a terminal, and the Python package textual. If NO_COLOR is set, the screen has no
    colours.

    Exit codes:
      0  the user quit
      1  textual is missing
      2  there is no terminal
    """
    if not all(one.isatty() for one in (sys.stdin, sys.stdout, sys.stderr)) or _is_dumb():
        raise UsageError(
            "flannelctl top needs a terminal that can move its cursor",
            hint="Elsewhere, use flannelctl status --watch, flannelctl peers or flannelctl events --follow.",
        )
    try:
        from pyflannel.cli.top_screen import run_screen
    except ImportError as error:
        raise FlannelError(
            f"flannelctl top needs the Python package textual, version 8 or newer: {error}",
            hint=f"Install textual into {sys.prefix} by pip or 'pipx inject', or use flannelctl status and"
            " flannelctl peers.",
        ) from error
    places = places_of(run_dir, state_dir, subnet_file)
    asyncio.run(run_screen(socket_of(invocation, run_dir), places))


def _is_dumb() -> bool:
    return os.environ.get("TERM", "dumb") in ("dumb", "unknown")
