"""flannelctl trace, whois and bugreport: they follow a packet, explain an address, and write an archive
for a fault report.
"""

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

import click

from pyflannel.cli.answers import (
    answer,
    duration,
    label_of,
    network_of,
    places_of,
    print_facts,
    print_json,
    print_table,
)
from pyflannel.cli.invocation import Invocation, Verb, run_dir_option, say, shared_options, state_options
from pyflannel.commands.bug_report import report_bug
from pyflannel.commands.trace import AddressReport, trace_packet, who_is
from pyflannel.errors import UsageError
from pyflannel.model.lease import host_text
from pyflannel.model.network_config import IpAddress
from pyflannel.model.probe import PacketEvent, PacketTrace, TraceReport, TraceStep
from pyflannel.wire.control_json import format_document, format_trace


@click.command(cls=Verb)
@click.argument("addresses", metavar="[SOURCE] DESTINATION", nargs=-1, required=True)
@click.option(
    "--probe",
    "probes",
    is_flag=True,
    help="Also send one ICMP echo request from SOURCE, and show each decision of nftables about it.",
)
@run_dir_option
@state_options
@shared_options("socket", "json")
@click.pass_obj
def trace(
    invocation: Invocation,
    addresses: tuple[str, ...],
    probes: bool,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Follow a packet step by step, and show the first step that stops it.

    SOURCE and DESTINATION are addresses of containers or hosts. SOURCE or DESTINATION must be on this host.
    Without SOURCE, the packet is from a container of this host, or from this host if flannelctl finds no
    container.
    flannelctl reads each step from the kernel: container, bridge, route, filter rules, neighbour, FDB entry,
    program or forwarder, underlay. flannelctl also probes the other host. If the other host does not answer,
    flannelctl also shows the path of the reply on this host. The command needs root, and takes at most 5
    seconds.

    With --probe, a temporary table of nftables marks the probe and its reply. The kernel removes this table
    when flannelctl ends. The rules of iptables-legacy are not shown.

    Exit codes:
      0  no step stops the packet
      1  a step stops the packet, or neither address is on this host
      3  flanneld does not respond, and its files are not sufficient

    Examples:
      flannelctl trace 10.100.93.7
      flannelctl trace 10.100.15.2 10.100.93.7
      flannelctl trace --probe 10.100.15.2 10.100.93.7
      flannelctl trace --json 10.100.93.7 10.100.15.2
      flannelctl trace fd00:5:0:2::7
    """
    if len(addresses) > 2:
        raise click.UsageError("too many addresses: a packet has one source and one destination")
    *sources, destination = map(address_of, addresses)
    places = places_of(run_dir, state_dir, subnet_file)
    source = sources[0] if sources else None
    if source is not None and source.version != destination.version:
        raise UsageError(
            f"{source} and {destination} belong to different address families",
            hint="Specify two IPv4 addresses, or two IPv6 addresses.",
        )
    report = answer(
        invocation,
        trace_packet(places, invocation.socket, source, destination, probes=probes),
        is_limited=True,
    )
    if invocation.wants_json:
        print_json(format_trace(report))
    else:
        _print_trace(report)
    if not report.ok:
        click.get_current_context().exit(1)


explain = trace


def address_of(text: str) -> IpAddress:
    """Return the address in an argument.

    Raises:
        UsageError: the argument is not an IP address.
    """
    try:
        return ip_address(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r} is not an IP address",
            hint="'flannelctl leases' shows the addresses of the hosts; 'flannelctl ping' accepts names.",
        ) from error


def _print_trace(report: TraceReport) -> None:
    say(f"from {report.source} to {report.destination}")
    print_table(("STEP", "RESULT", "FOUND"), map(_trace_row, report.steps))
    if report.stops is not None:
        print_facts(
            [("stops at", f"{report.stops}: {report.cause}"), (label_of(report.fix or ""), report.fix or "")]
        )
    if report.probe is not None:
        _print_probe(report.probe)


_EVENT_HEADINGS = ("PACKET", "CHAIN", "IN", "OUT", "VERDICT", "RULE")


def _print_probe(probe: PacketTrace) -> None:
    say("")
    print_table(_EVENT_HEADINGS, map(_event_row, probe.events))
    say(
        "the probe got no reply" if probe.rtt_ms is None else f"the reply arrived after {probe.rtt_ms:.1f} ms"
    )


def _event_row(event: PacketEvent) -> tuple[str, ...]:
    handle = "policy" if event.handle is None else f"handle {event.handle}"
    chain = f"{event.family} {event.table} {event.chain}"
    return event.packet, chain, event.iif or "-", event.oif or "-", event.verdict, event.rule or handle


def _trace_row(step: TraceStep) -> tuple[str, str, str]:
    name = f"reply: {step.name}" if step.is_way_back else step.name
    reason = f" ({step.cause})" if step.state == "unknown" else ""
    return name, step.state, f"{step.found}{reason}"


@click.command(cls=Verb)
@click.argument("address", metavar="ADDRESS")
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def whois(invocation: Invocation, address: str, run_dir: Path | None) -> None:
    """Show the host and the container that have an address.

    ADDRESS is an address of a container, of a tunnel device or of a host. On the host of a container, its
    bridge, port and MAC address are also shown. The exit code is 1 if no host has a lease for the address.

    Examples:
      flannelctl whois 10.100.93.7
      flannelctl whois 10.10.10.102 --json
      flannelctl whois fd00:5:0:2::7
    """
    found = answer(invocation, _who_is(invocation, run_dir, address_of(address)))
    if invocation.wants_json:
        print_json(format_document(found))
    else:
        print_facts(_holder_facts(found))
    if found.kind == "unused":
        click.get_current_context().exit(1)


async def _who_is(invocation: Invocation, run_dir: Path | None, address: IpAddress) -> AddressReport:
    async with network_of(invocation, run_dir) as network:
        return await who_is(await network.leases(), address)


_KINDS = {
    "host": "the address of a host on the underlay",
    "tunnel": "the tunnel device of a host",
    "container": "a container",
    "unused": "no host has a lease for this address",
}


def _holder_facts(found: AddressReport) -> Iterator[tuple[str, str]]:
    yield "address", f"{found.address}, {_KINDS[found.kind]}"
    if found.public_ip is not None:
        here = ", this host" if found.is_here else ""
        yield "host", f"{host_text(found.public_ip, found.host_name)}{here}"
        expiry = "" if found.expires_in_s is None else f", expires in {duration(found.expires_in_s)}"
        yield "lease", f"{found.subnet}, {found.backend_type}{expiry}"
    if found.link is not None:
        details = [found.link, *([f"port {found.port}"] if found.port else []), found.mac or ""]
        yield "interface", ", ".join(filter(None, details))


_OF_PARTS = 0.6
"""Share of the maximum time in which bugreport collects files and outputs. In the rest of the time,
bugreport removes secrets and writes the archive."""


@click.command(cls=Verb)
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    show_default="flannel-bugreport-HOST-TIME.tar.gz in this directory",
    help="Archive to write. The file must not exist.",
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

    The archive contains the output of status, doctor, leases, events and config, the tables and filter rules
    of the kernel, logs, and versions. Passwords, private keys and tokens are removed from all texts.
    Addresses and host names are not removed. The archive names each part that could not be completed in time.
    The command takes at most 5 seconds.

    Exit codes:
      0  the archive is written
      1  the archive cannot be written

    Examples:
      flannelctl bugreport
      flannelctl bugreport --output /tmp/report.tar.gz
    """
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = f"flannel-bugreport-{os.uname().nodename}-{now}"
    archive = output or Path(f"{name}.tar.gz")
    places = places_of(run_dir, state_dir, subnet_file)
    deadline_s = invocation.left_s() * _OF_PARTS
    report = asyncio.run(report_bug(places, archive, name, dict(os.environ), deadline_s))
    if invocation.wants_json:
        print_json(format_document(report))
        return
    say(f"wrote {report.file}: {len(report.parts)} files, {report.removed} secrets removed")
    for one in report.missing:
        say(f"  missing {one.name}: {one.reason}")
    say("Read the archive before you send it, because it contains addresses and names of hosts.")


bundle = bugreport
