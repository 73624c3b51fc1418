"""flannelctl cleanup, and the commands of the systemd unit: prepare and pins."""

import asyncio
import os
from pathlib import Path

import click

from pyflannel.assembly.directories import Places
from pyflannel.cli.answers import answer, places_of, print_json
from pyflannel.cli.invocation import (
    Invocation,
    Verb,
    confirm,
    is_interactive,
    run_dir_option,
    say,
    shared_options,
    state_options,
)
from pyflannel.commands.cleanup import Cleanup, CleanupReport, clean_up, preview
from pyflannel.commands.local_daemon import check_own_files
from pyflannel.commands.preparation import create_pins, user_named
from pyflannel.commands.preparation import prepare as prepare_for
from pyflannel.wire.control_json import format_document


@click.command(cls=Verb)
@click.option("--dry-run", is_flag=True, help="List the objects to remove, and change nothing.")
@click.option("--keep-lease", is_flag=True, help="Keep the lease, so that another program can take it over.")
@click.option(
    "--doubtful-rules",
    is_flag=True,
    help="Also remove filter rules that may belong to the original flannel or to another program.",
)
@click.option(
    "--node-id",
    metavar="ID",
    envvar="FLANNELD_NODE_ID",
    help="Identity of this host, if flanneld runs with --node-id.",
)
@click.option("--yes", "-y", "is_confirmed", is_flag=True, help="Do not ask for confirmation.")
@run_dir_option
@state_options
@shared_options("store", "json")
@click.pass_obj
def cleanup(
    invocation: Invocation,
    dry_run: bool,
    keep_lease: bool,
    doubtful_rules: bool,
    node_id: str | None,
    is_confirmed: bool,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Remove flannel from this host.

    Cleanup stops flanneld and its forwarder, and removes their links, routes, filter rules and files, and the
    lease. The traffic of the network stops. On a terminal, flannelctl first asks for confirmation. At the
    end, flannelctl lists the removed objects.
    """
    places = places_of(run_dir, state_dir, subnet_file, store_url=invocation.store_url)
    check_own_files(places, Places())
    work = Cleanup(
        places=places,
        store_url=invocation.store_url,
        node_id=node_id,
        keep_lease=keep_lease,
        doubtful_rules=doubtful_rules,
    )
    if dry_run:
        _report(invocation, answer(invocation, preview(work, os.environ), is_limited=True), "would remove")
        return
    if not is_confirmed and is_interactive():
        for line in answer(invocation, preview(work, os.environ), is_limited=True).removed:
            say(f"will remove {line}", err=True)
        confirm(invocation, "Remove flannel from this host?")
    report = asyncio.run(clean_up(work, os.environ))
    _report(invocation, report, "removed")
    if report.problems:
        click.get_current_context().exit(1)


def _report(invocation: Invocation, report: CleanupReport, verb: str) -> None:
    if invocation.wants_json:
        print_json(format_document(report))
        return
    for line in report.removed:
        say(f"{verb} {line}")
    for line in report.kept:
        say(f"kept {line}")
    if not report.removed:
        say("found nothing of flannel on this host")
    for line in report.problems:
        say(f"flannelctl: {line}", err=True)


@click.command(cls=Verb)
@run_dir_option
@shared_options()
def pins(run_dir: Path | None) -> None:
    """Pin the eBPF programs of this host, so that a flanneld without CAP_SYS_ADMIN can open them.

    This command mounts a bpffs at `.bpf` in the run directory, and pins in it the programs that are attached
    to the links of this network namespace. The command needs root and the mount namespace of the host. The
    systemd unit of flanneld runs this command before each start.
    """
    for line in asyncio.run(create_pins(places_of(run_dir))):
        say(line)


@click.command(cls=Verb)
@click.option("--user", required=True, metavar="NAME", help="The user of flanneld.")
@run_dir_option
@state_options
@shared_options()
def prepare(user: str, run_dir: Path | None, state_dir: Path | None, subnet_file: Path | None) -> None:
    """Give the user of flanneld access to all objects that flanneld needs.

    This command pins the eBPF programs like `pins`, with this user as their owner. If flanneld ran as root
    before, its files become files of the user, and its forwarders are replaced without losing a packet. The
    user also gets access to the lock file of iptables. The command needs root and the mount namespace of the
    host. The systemd unit of flanneld runs this command before each start.
    """
    done, failures = asyncio.run(prepare_for(places_of(run_dir, state_dir, subnet_file), user_named(user)))
    for line in done:
        say(line)
    for error in failures:
        say(f"flannelctl: {error.in_full}", err=True)
    if failures:
        click.get_current_context().exit(1)
