"""flannelctl leases, peers and events: what the host knows of its network."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from pyflannel.cli.answers import duration, network_of, print_json, print_table, socket_of
from pyflannel.cli.invocation import Invocation, json_option, run_dir_option
from pyflannel.commands.network_client import ControlClient
from pyflannel.model.lease import LeaseEntry, PeerEntry
from pyflannel.model.status import JournalEntry, Status
from pyflannel.wire.control_json import format_events, format_leases, format_peers

_HEADINGS = ("SUBNET", "PUBLIC IP", "BACKEND", "OWNER", "EXPIRES")


@click.command()
@run_dir_option
@json_option
@click.pass_obj
def leases(invocation: Invocation, run_dir: Path) -> None:
    """List the leases of the network."""
    entries = sorted(asyncio.run(_leases(invocation, run_dir)), key=lambda entry: entry.subnet)
    if invocation.wants_json:
        print_json(format_leases(entries))
    else:
        print_table(_HEADINGS, map(_row, entries))


async def _leases(invocation: Invocation, run_dir: Path) -> list[LeaseEntry]:
    async with network_of(invocation, run_dir) as network:
        return await network.leases()


def _row(entry: LeaseEntry) -> tuple[str, ...]:
    return (
        str(entry.subnet) if entry.ipv6_subnet is None else f"{entry.subnet} {entry.ipv6_subnet}",
        str(entry.public_ip),
        entry.backend_type or "udp",  # which publishes no type
        entry.owner or "-",
        _expiry(entry),
    )


def _expiry(entry: LeaseEntry) -> str:
    if entry.is_reservation:
        return "never: reserved"
    if entry.expires_in_s is None:
        return "not known"
    return f"in {duration(entry.expires_in_s)}"


_PEER_HEADINGS = ("SUBNET", "PUBLIC IP", "BACKEND", "OWNER", "STATE")


@click.command()
@run_dir_option
@json_option
@click.pass_obj
def peers(invocation: Invocation, run_dir: Path) -> None:
    """List the other hosts, and why this host does not send to some of them.

    Only the daemon knows.
    """
    entries = asyncio.run(_peers(socket_of(invocation, run_dir)))
    if invocation.wants_json:
        print_json(format_peers(entries))
    else:
        print_table(_PEER_HEADINGS, map(_peer_row, entries))


async def _peers(socket: Path) -> list[PeerEntry]:
    daemon = ControlClient(socket)
    return entries_of(await daemon.status(), await daemon.leases())


def entries_of(status: Status, leases: Sequence[LeaseEntry]) -> list[PeerEntry]:
    """Return the peers among the leases, in the order of their subnets."""
    refused = {peer.subnet: peer.reason for peer in status.refused_peers}
    own = status.lease.subnet if status.lease else None
    return [
        PeerEntry(
            subnet=lease.subnet,
            public_ip=lease.public_ip,
            backend_type=lease.backend_type,
            owner=lease.owner,
            refused=refused.get(lease.subnet),
        )
        for lease in sorted(leases, key=lambda lease: lease.subnet)
        if lease.subnet != own
    ]


def _peer_row(entry: PeerEntry) -> tuple[str, ...]:
    return (
        str(entry.subnet),
        str(entry.public_ip),
        entry.backend_type or "udp",  # which publishes no type
        entry.owner or "-",
        "sent to" if entry.refused is None else f"refused: {entry.refused}",
    )


_EVENT_HEADINGS = ("TIME", "EVENT", "FOUND")


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
        print_table(_EVENT_HEADINGS, map(_event_row, entries))


def _event_row(entry: JournalEntry) -> tuple[str, ...]:
    at = datetime.fromtimestamp(entry.at, UTC).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], entry.event, entry.found
