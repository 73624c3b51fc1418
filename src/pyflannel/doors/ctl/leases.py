"""flannelctl leases: who holds which subnet."""

import asyncio
from pathlib import Path

import click

from pyflannel.doors.ctl.asking import network_of
from pyflannel.doors.ctl.invocation import Invocation, json_option, run_dir_option
from pyflannel.doors.ctl.output import duration, print_json, print_table
from pyflannel.model.lease_entry import LeaseEntry
from pyflannel.wire.control_json import format_leases

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
