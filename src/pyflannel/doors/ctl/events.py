"""flannelctl events: what flanneld found on this host and did about it, object by object."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import click

from pyflannel.assembly.control_client import ControlClient
from pyflannel.doors.ctl.asking import socket_of
from pyflannel.doors.ctl.invocation import Invocation, json_option, run_dir_option
from pyflannel.doors.ctl.output import print_json, print_table
from pyflannel.model.journal_entry import JournalEntry
from pyflannel.wire.control_json import format_events

_HEADINGS = ("TIME", "EVENT", "FOUND")


@click.command()
@run_dir_option
@json_option
@click.pass_obj
def events(invocation: Invocation, run_dir: Path) -> None:
    """List what was repaired, planned and refused on this host, the latest last.

    Only the daemon knows, since its start, and the last thousand.
    """
    entries = asyncio.run(ControlClient(socket_of(invocation, run_dir)).events())
    if invocation.wants_json:
        print_json(format_events(entries))
    else:
        print_table(_HEADINGS, map(_row, entries))


def _row(entry: JournalEntry) -> tuple[str, ...]:
    at = datetime.fromtimestamp(entry.at, UTC).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], entry.event, entry.found
