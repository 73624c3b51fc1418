"""flannelctl trace and bugreport: the way of a packet, and an archive for a report of a fault."""

import asyncio
import os
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path

import click
import msgspec

from pyflannel.cli.answers import places_of, print_facts, print_json, print_table
from pyflannel.cli.invocation import Invocation, run_dir_option, say, shared_options, state_options
from pyflannel.commands.bug_report import report_bug
from pyflannel.commands.trace import trace_packet
from pyflannel.model.probe import TraceReport, TraceStep
from pyflannel.wire.control_json import format_trace


@click.command()
@click.argument("addresses", metavar="[SOURCE] DESTINATION", nargs=-1, required=True)
@run_dir_option
@state_options
@shared_options("socket", "json")
@click.pass_obj
def trace(
    invocation: Invocation,
    addresses: tuple[str, ...],
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Follow a packet step by step, and show the first step that stops it.

    SOURCE and DESTINATION are addresses of containers or hosts. One of them must be on this host. Without
    SOURCE, the packet is from a container of this host. Each step is read from the kernel: container, bridge,
    route, filter rules, neighbour, FDB entry, program or forwarder, underlay. The other host is probed. If it
    does not answer, the way of the reply on this host follows. Needs root. Takes at most 5 seconds.

    \b
    Exit codes:
      0  no step stops the packet
      1  a step stops it, or neither address is on this host
      3  flanneld does not respond, and its files do not suffice

    \b
    Examples:
      flannelctl trace 10.100.93.7
      flannelctl trace 10.100.15.2 10.100.93.7
      flannelctl trace --json 10.100.93.7 10.100.15.2
    """  # noqa: D301 - \b is the character by which click keeps line breaks
    if len(addresses) > 2:
        raise click.UsageError("a packet has one source and one destination")
    *sources, destination = map(_address, addresses)
    places = places_of(run_dir, state_dir, subnet_file)
    source = sources[0] if sources else None
    report = asyncio.run(trace_packet(places, invocation.socket, source, destination))
    if invocation.wants_json:
        print_json(format_trace(report))
    else:
        _print_trace(report)
    if not report.ok:
        click.get_current_context().exit(1)


explain = trace


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise click.UsageError(f"{text!r} is not an IPv4 address") from error


def _print_trace(report: TraceReport) -> None:
    say(f"from {report.source} to {report.destination}")
    print_table(("STEP", "RESULT", "FOUND"), map(_trace_row, report.steps))
    if report.stops is not None:
        print_facts([("stops at", f"{report.stops}: {report.cause}"), ("type", report.fix or "")])


def _trace_row(step: TraceStep) -> tuple[str, str, str]:
    name = f"reply: {step.name}" if step.is_way_back else step.name
    reason = f" ({step.cause})" if step.state == "unknown" else ""
    return name, step.state, f"{step.found}{reason}"


@click.command()
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="flannel-bugreport-HOST-TIME.tar.gz in this directory",
    help="Archive to write. It must not exist.",
)
@run_dir_option
@state_options
@shared_options("json")
@click.pass_obj
def bugreport(
    invocation: Invocation,
    output: Path | None,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Write one archive with the state of this host, without secrets.

    Contains the documents of status, doctor, leases, events and config, the tables and filter rules of the
    kernel, logs, and versions. Passwords, private keys and tokens are removed from all texts. Addresses and
    host names stay. A part that is not complete in time is named as missing. Takes at most 5 seconds.

    \b
    Exit codes:
      0  the archive is written
      1  the archive cannot be written

    \b
    Examples:
      flannelctl bugreport
      flannelctl bugreport --output /tmp/report.tar.gz
    """  # noqa: D301 - \b is the character by which click keeps line breaks
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"flannel-bugreport-{os.uname().nodename}-{now}"
    archive = output or Path(f"{name}.tar.gz")
    report = asyncio.run(
        report_bug(places_of(run_dir, state_dir, subnet_file), archive, name, dict(os.environ))
    )
    if invocation.wants_json:
        print_json(msgspec.json.encode(report))
        return
    say(f"wrote {report.file}: {len(report.parts)} files, {report.removed} secrets removed")
    for one in report.missing:
        say(f"  missing {one.name}: {one.reason}")
    say("Read it before you send it: it contains addresses and names of hosts.")


bundle = bugreport
