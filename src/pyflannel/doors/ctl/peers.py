"""flannelctl peers: the other hosts of the network, and whether this host sends to them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click

from pyflannel.assembly.control_client import ControlClient
from pyflannel.doors.ctl.asking import socket_of
from pyflannel.doors.ctl.invocation import Invocation, json_option, run_dir_option
from pyflannel.doors.ctl.output import print_json, print_table
from pyflannel.model.lease_entry import LeaseEntry
from pyflannel.model.peer_entry import PeerEntry
from pyflannel.model.status import Status
from pyflannel.wire.control_json import format_peers

_HEADINGS = ("SUBNET", "PUBLIC IP", "BACKEND", "OWNER", "STATE")


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
        print_table(_HEADINGS, map(_row, entries))


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


def _row(entry: PeerEntry) -> tuple[str, ...]:
    return (
        str(entry.subnet),
        str(entry.public_ip),
        entry.backend_type or "udp",  # which publishes no type
        entry.owner or "-",
        "sent to" if entry.refused is None else f"refused: {entry.refused}",
    )
