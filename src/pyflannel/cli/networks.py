"""flannelctl network: several networks in one store."""

from pathlib import Path

import click

from pyflannel.cli.answers import answer, both, print_json, print_table, store_of
from pyflannel.cli.config import checked_config, read_source, source_argument
from pyflannel.cli.invocation import (
    Invocation,
    VerbGroup,
    confirm,
    is_interactive,
    print_warning,
    run_dir_option,
    say,
    shared_options,
)
from pyflannel.commands.networks import (
    NetworkChange,
    NetworkEntry,
    Networks,
    check_name,
    create_network,
    find_network,
    list_networks,
    remove_network,
)
from pyflannel.errors import ConfigError
from pyflannel.wire.control_json import format_document


@click.group(cls=VerbGroup)
def network() -> None:
    """List, create and remove the networks of a store.

    A store contains one network without a name, and any number of networks with a name. flanneld runs the
    networks with a name with --networks or --watch-networks.

    Examples:
      flannelctl network ls
      flannelctl network create blue '{"Network": "10.101.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}'
      flannelctl network rm blue
    """


_HEADINGS = ("NAME", "NETWORK", "BACKEND", "LEASES", "RESERVED", "CONFIG")


@network.command("ls")
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def ls(invocation: Invocation, run_dir: Path | None) -> None:
    """List the networks of the store with their configs and the number of their leases.

    The network without a name is shown as "-". A network without a config is listed if it has leases.

    Exit codes:
      0  the networks are shown, even if there are none
      1  the store refused the request
      3  no answer in time

    Examples:
      flannelctl network ls
      flannelctl --store etcd://10.0.0.1 network ls --json
    """
    found = answer(invocation, _list(invocation, run_dir))
    if invocation.wants_json:
        print_json(format_document(found))
    else:
        print_table(_HEADINGS, map(_row, found.networks), can_stack=True)


async def _list(invocation: Invocation, run_dir: Path | None) -> Networks:
    async with store_of(invocation, run_dir, whole=True) as store:
        return await list_networks(store)


def _row(entry: NetworkEntry) -> tuple[str, ...]:
    return (
        entry.name or "-",
        "-" if entry.network is None else both(entry.network, entry.ipv6_network),
        entry.backend_type or "-",
        str(entry.leases),
        str(entry.reservations),
        entry.error or "valid",
    )


@network.command()
@click.argument("name", metavar="NAME")
@source_argument
@click.option(
    "--force",
    is_flag=True,
    help="Create the network despite unknown keys or a conflict with another network.",
)
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def create(invocation: Invocation, name: str, source: str, force: bool, run_dir: Path | None) -> None:
    """Check a network config and write it for a new network.

    The config is a FILE, the JSON itself, or - for standard input. The ranges of two networks must not
    overlap. So that a host can run both networks, two networks with the backend udp or wireguard need
    different ports. Two networks with vxlan need different values of VNI.

    Exit codes:
      0  the network is created
      1  the network exists or conflicts with another network, or the store refused the write
      2  the name or the config is invalid
      3  no answer in time

    Examples:
      flannelctl network create blue blue.json
      flannelctl network create red '{"Network": "10.102.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}'
    """
    check_name(name)
    text = read_source(source)
    _, warnings = checked_config(text, accepts_unknown=force)
    if warnings and not force:
        raise ConfigError("; ".join(warnings), hint="Correct the config, or write it with --force.")
    made = answer(invocation, _create(invocation, run_dir, name, text, is_forced=force), writes=True)
    for conflict in made.conflicts:
        print_warning(conflict)
    if invocation.wants_json:
        print_json(format_document(made))
    else:
        say(f"created the network {name}: {made.network}")


async def _create(
    invocation: Invocation, run_dir: Path | None, name: str, text: str, *, is_forced: bool
) -> NetworkChange:
    async with store_of(invocation, run_dir, creates=True, whole=True) as store:
        return await create_network(store, name, text, is_forced=is_forced)


@network.command()
@click.argument("name", metavar="NAME")
@click.option("--force", is_flag=True, help="Also delete the leases of the network.")
@click.option("--yes", "-y", "is_confirmed", is_flag=True, help="Do not ask for confirmation.")
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def rm(invocation: Invocation, name: str, force: bool, is_confirmed: bool, run_dir: Path | None) -> None:
    """Remove a network from the store.

    If a network has leases, flannelctl removes it only with --force, and then also deletes its leases and
    reservations. Hosts with --watch-networks stop the network. Other running hosts keep the network with
    their last config, and write their leases again. The data path remains on all hosts until flannelctl
    cleanup removes it.

    Exit codes:
      0  the network is removed
      1  the network has leases, or the store refused the request
      2  the name is invalid
      3  the network does not exist, or no answer in time

    Examples:
      flannelctl network rm blue
      flannelctl network rm blue --force --yes
    """
    found = answer(invocation, _find(invocation, run_dir, name))
    if (force or not found.leases) and not is_confirmed and is_interactive():
        invocation = confirm(invocation, f"Remove the network {name} with {found.leases} leases?")
    gone = answer(invocation, _remove(invocation, run_dir, found, is_forced=force), writes=True)
    if invocation.wants_json:
        print_json(format_document(gone))
    else:
        leases = f" and {gone.removed_leases} leases" if gone.removed_leases else ""
        say(f"removed the network {name}{leases}")


async def _find(invocation: Invocation, run_dir: Path | None, name: str) -> NetworkEntry:
    async with store_of(invocation, run_dir, whole=True) as store:
        return await find_network(store, name)


async def _remove(
    invocation: Invocation, run_dir: Path | None, found: NetworkEntry, *, is_forced: bool
) -> NetworkChange:
    async with store_of(invocation, run_dir, whole=True) as store:
        return await remove_network(store, found, is_forced=is_forced)
