"""flannelctl events: the repairs, changes and refusals on this host."""

import asyncio
import re
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from pyflannel.cli.answers import answer, print_json, print_table, print_text, socket_of
from pyflannel.cli.invocation import Invocation, Verb, print_warning, run_dir_option, say, shared_options
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import NotReadyError, UsageError, WireError
from pyflannel.model.status import JournalEntry
from pyflannel.wire.control_json import format_events

_EVENT_HEADINGS = ("TIME", "EVENT", "FOUND")


_LOOK_S = 0.5
"""Interval in seconds between two requests of `--follow` to flanneld."""

_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(rf"(\d+)\s*({'|'.join(_UNITS_S)})")


@click.command(cls=Verb)
@click.option(
    "--since",
    metavar="TIME",
    help="Show only events since TIME: 30s, 10min, 2h or 1d ago, or 2026-11-30T19:00 in local time.",
)
@click.option("--follow", "-f", is_flag=True, help="Wait for further events, until Ctrl-C.")
@run_dir_option
@shared_options("socket", "json")
@click.pass_obj
def events(invocation: Invocation, since: str | None, follow: bool, run_dir: Path | None) -> None:
    """List the repairs, changes and refusals on this host, with the latest last.

    The list contains the last 1,000 events since flanneld started. The command needs a running flanneld. With
    --follow, flannelctl continues to wait if flanneld restarts.

    Examples:
      flannelctl events --since 10min
      flannelctl events --follow --json
    """
    begin = 0.0 if since is None else begin_of(since, time.time())
    daemon = ControlClient(socket_of(invocation, run_dir))
    entries = answer(invocation, daemon.events(), is_limited=True)
    shown = [entry for entry in entries if entry.at >= begin]
    if follow:
        _print_events(shown, wants_json=invocation.wants_json)
        asyncio.run(_follow(daemon, entries, begin, wants_json=invocation.wants_json))
    elif invocation.wants_json:
        print_json(format_events(shown))
    else:
        print_table(_EVENT_HEADINGS, map(_event_row, shown))


def begin_of(text: str, now: float) -> float:
    """Return the time that `--since` names, in seconds since the epoch; `now` is the current time.

    Raises:
        UsageError: the text is neither a duration nor a time.
    """
    if (found := _DURATION.fullmatch(text.strip())) is not None:
        return now - int(found[1]) * _UNITS_S[found[2]]
    try:
        return datetime.fromisoformat(text.strip()).astimezone().timestamp()
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since {text!r} is neither a duration nor a time",
            hint="Write a duration such as 30s, 10min, 2h or 1d, or a time such as 2026-11-30T19:00.",
        ) from error


def later(before: Sequence[JournalEntry], after: Sequence[JournalEntry]) -> Sequence[JournalEntry]:
    """Return the events in `after` that are newer than the events in `before`; all events if flanneld
    restarted between the two lists.
    """
    for place in range(len(after) if before else 0, 0, -1):
        if after[place - 1] == before[-1]:
            return after[place:]
    return after


async def _follow(
    daemon: ControlClient, entries: list[JournalEntry], begin: float, *, wants_json: bool
) -> None:
    """Print new events until Ctrl-C."""
    is_away = False
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            found = await daemon.events()
        except (NotReadyError, WireError) as error:
            if not is_away:
                print_warning(f"waiting for flanneld: {error}")
            is_away = True
            continue
        is_away = False
        new = [entry for entry in later(entries, found) if entry.at >= begin]
        entries = found
        _print_events(new, wants_json=wants_json)


def _print_events(entries: Sequence[JournalEntry], *, wants_json: bool) -> None:
    """Print new events: one line for each event, or all in one JSON document on one line."""
    if not entries:
        return
    if wants_json:
        print_text(format_events(entries).decode())
    else:
        for entry in entries:
            say("  ".join(_event_row(entry)))
    sys.stdout.flush()


def _event_row(entry: JournalEntry) -> tuple[str, ...]:
    at = datetime.fromtimestamp(entry.at, UTC).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], entry.event, entry.found
