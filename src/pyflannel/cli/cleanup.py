"""flannelctl cleanup, and flannelctl pins."""

import asyncio
import os
from dataclasses import asdict
from pathlib import Path

import click
import msgspec

from pyflannel.assembly.directories import Places
from pyflannel.cli.answers import print_json
from pyflannel.cli.invocation import Invocation, json_option, run_dir_option, say, state_options
from pyflannel.commands.cleanup import Cleanup, CleanupReport, clean_up, lay_pins
from pyflannel.commands.daemon_process import check_own_files


@click.command()
@click.option("--keep-lease", is_flag=True, help="Leave the lease, so that another program takes it over.")
@click.option(
    "--doubtful-rules",
    is_flag=True,
    help="Remove filter rules, too, that may be an original flannel's or anybody's.",
)
@click.option(
    "--node-id", metavar="ID", envvar="FLANNELD_NODE_ID", help="The identity that the daemon was given."
)
@run_dir_option
@state_options
@json_option
@click.pass_obj
def cleanup(
    invocation: Invocation,
    keep_lease: bool,
    doubtful_rules: bool,
    node_id: str | None,
    run_dir: Path,
    state_dir: Path,
    subnet_file: Path,
) -> None:
    """Take everything of flannel off this host.

    Stops flanneld and its forwarder, and removes their links, routes and files, and the lease. Packets of the
    network stop. What was removed is said.
    """
    places = Places(run_dir=run_dir, state_dir=state_dir, subnet_file=subnet_file)
    check_own_files(places, Places())
    work = Cleanup(
        places=places,
        store_url=invocation.store_url,
        node_id=node_id,
        keep_lease=keep_lease,
        doubtful_rules=doubtful_rules,
    )
    report = asyncio.run(clean_up(work, os.environ))
    if invocation.wants_json:
        print_json(msgspec.json.encode(asdict(report)))
    else:
        _print(report)
    if report.problems:
        click.get_current_context().exit(1)


def _print(report: CleanupReport) -> None:
    for line in report.removed:
        say(f"removed {line}")
    for line in report.kept:
        say(f"kept {line}")
    if not report.removed:
        say("nothing of flannel was here")
    for line in report.problems:
        say(f"flannelctl: {line}", err=True)


@click.command()
@run_dir_option
def pins(run_dir: Path) -> None:
    """Let a flanneld without CAP_SYS_ADMIN find its eBPF programs again.

    Mounts a bpffs at `.bpf` in the run directory, and pins there what stands at this host's links. It takes
    root, and the mount namespace of the host.
    """
    say(asyncio.run(lay_pins(Places(run_dir=run_dir))))
