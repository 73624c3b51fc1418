"""The hosts in the output of flannelctl leases and flannelctl peers, and the hosts that an operator names."""

import asyncio
from collections.abc import Sequence
from typing import TypeVar

import click
from msgspec.structs import replace

from pyflannel.cli.answers import both, socket_of
from pyflannel.cli.invocation import Invocation
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import FlannelError
from pyflannel.model.lease import LeaseEntry, PeerEntry
from pyflannel.plan.peers import place_of_subnet

_Entry = TypeVar("_Entry", LeaseEntry, PeerEntry)

_COMPLETION_S = 0.3
"""Deadline in seconds for the completion of host names, because a person waits for it."""


def complete_host(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the host names that begin with this text; none if the daemon does not respond in time."""
    given = context.obj or Invocation()
    options = {**context.find_root().params, **context.params}
    socket = socket_of(replace(given, socket=given.socket or options.get("socket")), options.get("run_dir"))

    async def known() -> list[LeaseEntry]:
        async with asyncio.timeout(_COMPLETION_S):
            return await ControlClient(socket).leases()

    try:
        names = {entry.host_name for entry in asyncio.run(known()) if entry.host_name}
    except (FlannelError, TimeoutError):
        return []
    return sorted(name for name in names if name.startswith(incomplete))


hosts_argument = click.argument("hosts", metavar="[HOST]...", nargs=-1, shell_complete=complete_host)


def of_hosts(entries: Sequence[_Entry], hosts: Sequence[str]) -> list[_Entry]:
    """Return the entries of these host names, addresses or subnets, or all entries if no host is named,
    ordered by subnet.

    Raises:
        FlannelError: a host has no entry.
    """
    ordered = sorted(entries, key=lambda entry: place_of_subnet(entry.subnet))
    if not hosts:
        return ordered
    for host in hosts:
        if not any(host in _names(entry) for entry in entries):
            raise FlannelError(
                f"{host} is not in the list of hosts",
                hint="Use a host name, an address or a subnet. Without an argument, all hosts are listed.",
            )
    return [entry for entry in ordered if not _names(entry).isdisjoint(hosts)]


def _names(entry: LeaseEntry | PeerEntry) -> set[str]:
    name = {entry.host_name} if entry.host_name else set()
    return {str(entry.public_ip), str(entry.subnet), *name}


def headings(*, is_wide: bool) -> tuple[str, ...]:
    """Return the first headings of a list of hosts. `is_wide`: with the column OWNER."""
    return ("SUBNET", "HOST", "PUBLIC IP", "BACKEND", *(("OWNER",) if is_wide else ()))


def cells(entry: LeaseEntry | PeerEntry, *, is_wide: bool) -> tuple[str, ...]:
    """Return the cells of a host below these headings."""
    return (
        both(entry.subnet, entry.ipv6_subnet),
        entry.host_name or "-",
        both(entry.public_ip, entry.public_ipv6),
        entry.backend_type or "udp",  # leases of the udp backend contain no type
        *((entry.owner or "-",) if is_wide else ()),
    )
