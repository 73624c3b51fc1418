"""flannelctl doctor: what is wrong with this host, why, and what to type."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import msgspec

from pyflannel.assembly.directories import Places
from pyflannel.cli.answers import print_json
from pyflannel.cli.invocation import Invocation, json_option, run_dir_option, state_options
from pyflannel.commands.examination import examine
from pyflannel.model.status import Finding

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command()
@run_dir_option
@state_options
@json_option
@click.pass_obj
def doctor(invocation: Invocation, run_dir: Path, state_dir: Path, subnet_file: Path) -> None:
    """Say what is wrong with this host, why, and what to type.

    Nothing is changed. Exits with 1 when something is wrong that loses packets.
    """
    found = asyncio.run(examine(Places(run_dir=run_dir, state_dir=state_dir, subnet_file=subnet_file)))
    is_ok = all(one.severity != "error" for one in found)
    if invocation.wants_json:
        print_json(msgspec.json.encode({"ok": is_ok, "findings": [asdict(one) for one in found]}))
    else:
        _print(found)
    if not is_ok:
        click.get_current_context().exit(1)


def _print(found: Sequence[Finding]) -> None:
    for one in found:
        click.echo(f"{click.style(one.severity, fg=_COLOURS[one.severity], bold=True)}: {one.cause}")
        for line in one.evidence:
            click.echo(f"    seen: {line}")
        click.echo(f"    type: {one.fix}")
    if not found:
        click.echo("nothing is wrong with this host")
