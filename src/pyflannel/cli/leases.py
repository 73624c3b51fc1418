"""flannelctl leases: list, reserve and release leases, and show their history."""

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import click
from msgspec.structs import replace

from pyflannel.cli.answers import (
    answer,
    both,
    duration,
    local_time,
    network_of,
    print_json,
    print_table,
    reach,
    store_of,
)
from pyflannel.cli.hosts import cells, headings, hosts_argument, of_hosts
from pyflannel.cli.invocation import (
    Invocation,
    ListGroup,
    confirm,
    is_interactive,
    print_warning,
    run_dir_option,
    say,
    shared_options,
    wide_option,
)
from pyflannel.commands.history import LeaseEvent, LeaseHistory, lease_history
from pyflannel.commands.reservations import (
    ANSWER_S,
    Release,
    Reservation,
    Subnets,
    examine_release,
    parse_subnets,
    release,
    reserve,
)
from pyflannel.errors import FlannelError, UsageError
from pyflannel.model.lease import LeaseEntry, host_text
from pyflannel.model.store_record import Record
from pyflannel.wire.control_json import format_document, format_leases


@click.group(cls=ListGroup)
def leases() -> None:
    """List, reserve and release the leases of the network.

    Without a verb, flannelctl lists all leases, or the leases of each HOST that follows.

    Examples:
      flannelctl leases
      flannelctl leases docker1
      flannelctl leases reserve 10.100.15.0/24 --public-ip 10.10.10.101
      flannelctl leases history 10.100.15.0/24
    """


@leases.command("ls")
@hosts_argument
@wide_option
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def list_leases(invocation: Invocation, hosts: tuple[str, ...], wide: bool, run_dir: Path | None) -> None:
    """List the leases of the network.

    The list contains all leases, or the leases of each HOST: a host name, an address or a subnet.
    """
    entries = of_hosts(answer(invocation, _leases(invocation, run_dir), is_limited=True), hosts)
    if invocation.wants_json:
        print_json(format_leases(entries))
    else:
        rows = [(*cells(entry, is_wide=wide), _expiry(entry)) for entry in entries]
        print_table((*headings(is_wide=wide), "EXPIRES"), rows, can_stack=True)


async def _leases(invocation: Invocation, run_dir: Path | None) -> list[LeaseEntry]:
    async with network_of(invocation, run_dir) as network:
        return await network.leases()


def _expiry(entry: LeaseEntry) -> str:
    if entry.is_reservation:
        return "never (reserved)"
    if entry.expires_in_s is None:
        return "unknown"
    return f"in {duration(entry.expires_in_s)}"


@leases.command("reserve")
@click.argument("subnet", metavar="SUBNET")
@click.option(
    "--public-ip",
    metavar="ADDRESS",
    help="Reserve a free SUBNET for the host with this address on the underlay.",
)
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def reserve_(invocation: Invocation, subnet: str, public_ip: str | None, run_dir: Path | None) -> None:
    """Reserve a subnet for a host. A reservation is a lease that never expires.

    If a host has a lease for SUBNET, it keeps the subnet, and no packet is lost. A free SUBNET is reserved
    for the host with the address --public-ip. The host uses SUBNET when flanneld first starts there. A subnet
    of another host is never reserved.

    Exit codes:
      0  the subnet is reserved, even if it was reserved for this host before
      1  SUBNET is leased to another host, or the store refused the write
      2  SUBNET is not a subnet of the network, or no host is named
      3  there is no network config, or no answer in time

    Examples:
      flannelctl leases reserve 10.100.15.0/24
      flannelctl leases reserve 10.100.5.0/24 --public-ip 10.10.10.101
    """
    subnets, address = parse_subnets(subnet), None if public_ip is None else _address(public_ip)
    made = answer(invocation, _reserve(invocation, run_dir, subnets, address), writes=True)
    if invocation.wants_json:
        print_json(format_document(made))
        return
    verb = "reserved" if made.was_written else "already reserved"
    say(f"{verb}: {both(made.subnet, made.ipv6_subnet)} for {host_text(made.public_ip, made.host_name)}")


async def _reserve(
    invocation: Invocation, run_dir: Path | None, subnets: Subnets, address: IPv4Address | None
) -> Reservation:
    async with store_of(invocation, run_dir) as store:
        return await reserve(store, subnets, address)


def _address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise UsageError(
            f"--public-ip {text!r} is not an IPv4 address", hint="Write the address in the form 10.10.10.101."
        ) from error


@leases.command("release")
@click.argument("subnet", metavar="SUBNET")
@click.option(
    "--force", is_flag=True, help="Release the lease without asking its holder, even if the host is running."
)
@click.option("--yes", "-y", "is_confirmed", is_flag=True, help="Do not ask for confirmation.")
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def release_(
    invocation: Invocation, subnet: str, force: bool, is_confirmed: bool, run_dir: Path | None
) -> None:
    """Release a lease or a reservation, so that another host can use the subnet.

    First flannelctl asks the holder through the store. If the holder answers within 2 s, it is alive, and its
    lease is released only with --force. A host with the original flannel cannot answer, and its lease too is
    released only with --force. With --force, a running flanneld acquires the same subnet again, as a lease
    that expires, and no packet is lost. On a terminal, flannelctl asks for confirmation.

    Exit codes:
      0  the lease is released
      1  SUBNET has no lease, the host of the lease is alive or unknown, or the store refused the write
      2  SUBNET is not a subnet
      3  no answer in time

    Examples:
      flannelctl leases release 10.100.15.0/24
      flannelctl leases release 10.100.15.0/24 --force --yes
    """
    subnets = parse_subnets(subnet)
    found, record = answer(
        invocation, _examine_release(invocation, run_dir, subnets, asks=not force), writes=not force
    )
    _check_release(found, is_forced=force)
    if not is_confirmed and is_interactive():
        invocation = confirm(invocation, f"Release {found.subnet}?")
    answer(invocation, _release(invocation, run_dir, record), writes=True)
    if invocation.wants_json:
        print_json(format_document(found))
    else:
        what = "reservation" if found.was_reservation else "lease"
        say(f"released the {what}: {both(found.subnet, found.ipv6_subnet)}")


async def _examine_release(
    invocation: Invocation, run_dir: Path | None, subnets: Subnets, *, asks: bool
) -> tuple[Release, Record]:
    async with store_of(invocation, run_dir) as store:
        return await examine_release(store, subnets, asks=asks)


def _check_release(found: Release, *, is_forced: bool) -> None:
    if found.holder in ("alive", "unknown") and not is_forced:
        raise FlannelError(
            f"{_holder(found)}, so {found.subnet} is not released",
            hint="First stop flannel on this host with flannelctl cleanup. With --force, a running "
            "flanneld acquires "
            "the subnet again, as a lease that expires.",
        )
    if found.holder == "silent":
        print_warning(
            f"{_holder(found)}. If flanneld is running on the holder, another host may get its subnet"
        )


async def _release(invocation: Invocation, run_dir: Path | None, record: Record) -> None:
    async with store_of(invocation, run_dir) as store:
        await release(store, record)


def _holder(found: Release) -> str:
    host = "the holder" if found.public_ip is None else host_text(found.public_ip, found.host_name)
    if found.holder == "alive":
        return f"{host} is alive"
    if found.holder == "unknown":
        return f"{host} cannot be asked, because pyflannel did not write its lease"
    return f"{host} has not answered within {ANSWER_S:g} s"


_HEADINGS = ("REVISION", "EVENT", "SUBNET", "HOST", "PUBLIC IP", "BACKEND", "NOT LATER THAN")


@leases.command("history")
@click.argument("subnet", metavar="[SUBNET|ADDRESS]", required=False)
@click.option("--renewals", is_flag=True, help="Also show the renewals: one per lease and day.")
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def history(invocation: Invocation, subnet: str | None, renewals: bool, run_dir: Path | None) -> None:
    """List the earlier leases that the store still has, with the latest lease last.

    The list contains all leases, or the leases that overlap SUBNET or contain ADDRESS. etcd keeps changes
    until its compaction. The SQLite store keeps at least the last 10,000 changes. The last line shows how far
    back the history reaches. A store keeps no times: "not later than" is computed from the age of later
    leases.

    Exit codes:
      0  the history is shown
      1  SUBNET had no lease, or the store refused the request
      2  SUBNET is not a subnet
      3  no answer in time

    Examples:
      flannelctl leases history
      flannelctl leases history 10.100.15.0/24 --renewals
      flannelctl leases history 10.100.15.7 --json
    """
    chosen = None if subnet is None else _network(subnet)
    found = answer(invocation, _history(invocation, run_dir))
    shown = [
        one
        for one in found.changes
        if (chosen is None or one.subnet.overlaps(chosen)) and (renewals or one.event != "renewed")
    ]
    if chosen is not None and not shown:
        raise FlannelError(f"the history contains no lease of {chosen}", hint=_reach(found))
    if invocation.wants_json:
        print_json(format_document(replace(found, changes=tuple(shown))))
        return
    print_table(_HEADINGS, map(_row, shown), can_stack=True)
    say(_reach(found))


async def _history(invocation: Invocation, run_dir: Path | None) -> LeaseHistory:
    async with store_of(invocation, run_dir) as store:
        return await lease_history(store)


def _network(text: str) -> IPv4Network:
    return parse_subnets(text if "/" in text or "-" in text else f"{text}/32")[0]


def _row(one: LeaseEvent) -> tuple[str, ...]:
    holder = (one.host_name or "-", "-" if one.public_ip is None else str(one.public_ip))
    subnet = both(one.subnet, one.ipv6_subnet)
    return str(one.revision), one.event, subnet, *holder, one.backend_type or "-", local_time(one.not_after)


def _reach(found: LeaseHistory) -> str:
    return reach(found.begin, found.revision, is_complete=found.is_complete)
