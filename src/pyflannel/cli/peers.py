"""flannelctl peers: the other hosts, as this host reaches them."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.cli.answers import (
    answer,
    duration,
    handshake,
    places_of,
    print_json,
    print_table,
    size,
    socket_of,
)
from pyflannel.cli.hosts import cells, headings, hosts_argument, of_hosts
from pyflannel.cli.invocation import (
    Invocation,
    Verb,
    print_warning,
    run_dir_option,
    say,
    shared_options,
    state_options,
    wide_option,
)
from pyflannel.commands.local_daemon import last_known_leases, offline_status
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import NotReadyError, TargetError
from pyflannel.model.lease import FamilyReach, LeaseEntry, PeerEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.reach_matrix import Matrix, MatrixRow, letter
from pyflannel.model.status import Status, peer_entries
from pyflannel.wire.control_json import format_peers


@click.command(cls=Verb)
@hosts_argument
@wide_option
@click.option("--probe/--no-probe", default=True, help="Probe the hosts (default), or do not send probes.")
@click.option(
    "--matrix",
    "is_matrix",
    is_flag=True,
    help="Show which host reaches which other host. The hosts probe each other, and answer through the "
    "store.",
)
@run_dir_option
@state_options
@shared_options("socket", "json")
@click.pass_obj
def peers(
    invocation: Invocation,
    hosts: tuple[str, ...],
    wide: bool,
    probe: bool,
    is_matrix: bool,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """List the other hosts, and the reason if one is not reachable.

    The list contains all hosts, or each HOST: a host name, an address or a subnet. flannelctl probes up to
    256 of the hosts with ICMP echo through the tunnel, except with --no-probe. If flanneld does not respond,
    the list contains the last known hosts.

    LOSS is the share of up to 10 small probes without a reply. IN and OUT are the bytes of the packets from
    the host and to the host. wireguard counts both. vxlan and udp count IN, and flanneld asks up to 31 of the
    hosts for OUT. CHANGED is the time since the host joined, returned, or changed its
    addresses, backend or keys.

    With --matrix, the hosts probe each other, and the table has a row for each host: + if it reaches the host
    of the column, x if not. A matrix has at most 32 hosts.

    Exit codes:
      0  the hosts are listed, even if some of them do not answer
      1  a HOST is unknown
      2  with --matrix: there are too many hosts, or fewer than two
      3  flanneld does not respond, and its files contain no hosts

    Examples:
      flannelctl peers
      flannelctl peers docker2 --no-probe
      flannelctl peers --matrix
      flannelctl peers --json
    """
    places, socket = places_of(run_dir, state_dir, subnet_file), socket_of(invocation, run_dir)
    if is_matrix:
        entries, matrix = answer(invocation, _matrix(socket, hosts), is_limited=True)
        if invocation.wants_json:
            print_json(format_peers(entries, matrix))
        else:
            _print_matrix(matrix)
        return
    work = _peers(socket, places, hosts, probes=probe)
    entries = answer(invocation, work, is_limited=True)
    if invocation.wants_json:
        print_json(format_peers(entries))
    else:
        _print_peers(entries, is_wide=wide)


async def _matrix(socket: Path, hosts: Sequence[str]) -> tuple[list[PeerEntry], Matrix]:
    """Return the other hosts, without results of probes, and which host reaches which other host.

    Raises:
        NotReadyError: the daemon does not respond.
    """
    daemon = ControlClient(socket, _ASK_S)
    status, known = await asyncio.gather(daemon.status(), daemon.leases())
    named = [entry.subnet for entry in of_hosts(known, hosts)] if hosts else []
    return peer_entries(status, known), await daemon.matrix(named)


def _print_matrix(matrix: Matrix) -> None:
    """Print a row of letters for each host, the hosts that are not reached, and the hosts without results."""
    columns = "".join(str(number % 10) for number in range(1, len(matrix.rows) + 1))
    rows = [
        (str(number), _host(row), str(row.subnet), _letters(matrix, row))
        for number, row in enumerate(matrix.rows, 1)
    ]
    print_table(("#", "HOST", "SUBNET", columns), rows)
    say("+ reached, x not reached, - does not send, . the host itself, ? unknown")
    names = {row.subnet: _host(row) for row in matrix.rows}
    for row in matrix.rows:
        missed = [names[cell.subnet] for cell in row.cells if letter(cell.state) == "x"]
        if missed:
            more = f" and {len(missed) - _NAMED} more" if len(missed) > _NAMED else ""
            say(f"{_host(row)} does not reach {', '.join(missed[:_NAMED])}{more}")
        if row.failure is not None:
            say(f"{_host(row)}: {row.failure}")
    if matrix.left_out:
        say(f"{matrix.left_out} more hosts are not in the matrix: name the hosts to compare")


_NAMED = 8
"""Maximum number of hosts that one line names."""


def _host(row: MatrixRow) -> str:
    return row.host_name or str(row.public_ip)


def _letters(matrix: Matrix, row: MatrixRow) -> str:
    cells = {cell.subnet: letter(cell.state) for cell in row.cells}
    return "".join(
        "." if column.subnet == row.subnet else cells.get(column.subnet, "?") for column in matrix.rows
    )


_ASK_S = 1.5
"""Deadline in seconds for an answer of flanneld. After this time, flannelctl uses the files of flanneld, so
that the command still ends within 5 s."""


async def _known(socket: Path, places: Places) -> tuple[Status, list[LeaseEntry]]:
    """Return the status of the daemon and the leases that it knows, from its files if it does not respond.

    Raises:
        NotReadyError: the daemon does not respond, and its files contain no leases.
    """
    daemon = ControlClient(socket, _ASK_S)
    try:
        return await daemon.status(), await daemon.leases()
    except NotReadyError as error:
        if not (leases := last_known_leases(places)):
            raise
        print_warning(f"{error}. The list contains the last known hosts")
        return await offline_status(places, str(error)), leases


async def _peers(socket: Path, places: Places, hosts: Sequence[str], *, probes: bool) -> list[PeerEntry]:
    # Only this verb needs these functions.
    from pyflannel.commands.peer_traffic import received_bytes, sent_bytes

    status, known = await _known(socket, places)
    every_entry = peer_entries(status, known)
    listed = of_hosts(every_entry, hosts)
    received, sent, results = await asyncio.gather(
        received_bytes(replace(places, run_dir=socket.parent), status, every_entry),
        sent_bytes(socket, _ASK_S, status, listed),
        _results(status, known, listed) if probes else _no_results(),
    )
    first, ipv6 = results
    return [
        _probed(
            replace(
                entry,
                received_bytes=received.get(entry.subnet, entry.received_bytes),
                sent_bytes=sent.get(entry.subnet, entry.sent_bytes),
            ),
            first.get(entry.subnet),
            None if entry.ipv6_subnet is None else ipv6.get(entry.ipv6_subnet),
        )
        for entry in listed
    ]


_Results = tuple[Mapping[IpNetwork, FamilyReach], Mapping[IpNetwork, FamilyReach]]
"""The results of probes in the first family and over IPv6, by the subnet in the family."""


async def _no_results() -> _Results:
    return {}, {}


async def _results(status: Status, known: Sequence[LeaseEntry], listed: Sequence[PeerEntry]) -> _Results:
    """Probe a sample of the listed hosts."""
    from pyflannel.commands.reach import probe_families, sample_of

    subnets = {entry.subnet for entry in listed}
    leases = sample_of(status, [lease for lease in known if lease.subnet in subnets])
    try:
        first, *others = (await probe_families(status, leases)).values()
    except TargetError as error:
        print_warning(f"no host was probed: {error.in_full}")
        return {}, {}
    return first, others[0] if others else {}


def _probed(entry: PeerEntry, first: FamilyReach | None, ipv6: FamilyReach | None) -> PeerEntry:
    """Return the entry with the results of its probes in the first family, and over IPv6."""
    entry = replace(entry, ipv6=ipv6)
    if first is None:
        return entry
    return replace(
        entry,
        is_reached=first.is_reached,
        rtt_ms=first.rtt_ms,
        path_mtu=first.path_mtu,
        probes_sent=first.probes_sent,
        probes_lost=first.probes_lost,
    )


def _print_peers(entries: Sequence[PeerEntry], *, is_wide: bool) -> None:
    rows = [
        (
            *cells(entry, is_wide=is_wide),
            _loss(entry),
            "-" if entry.received_bytes is None else size(entry.received_bytes),
            "-" if entry.sent_bytes is None else size(entry.sent_bytes),
            "-" if entry.change_age_s is None else f"{duration(entry.change_age_s)} ago",
            _state(entry),
        )
        for entry in entries
    ]
    last = ("LOSS", "IN", "OUT", "CHANGED", "STATE")
    print_table((*headings(is_wide=is_wide), *last), rows, can_stack=True)


def _loss(entry: PeerEntry) -> str:
    first = _share(entry)
    if entry.ipv6 is None or (ipv6 := _share(entry.ipv6)) == first:
        return first
    return f"{first}, IPv6 {ipv6}"


def _share(results: PeerEntry | FamilyReach) -> str:
    if not results.probes_sent or results.probes_lost is None:
        return "-"
    return f"{100 * results.probes_lost / results.probes_sent:.0f} %"


def _state(entry: PeerEntry) -> str:
    if entry.refused is not None:
        return f"refused: {entry.refused}"
    encrypted = f", encrypted, {handshake(entry.handshake_age_s)}" if entry.is_encrypted else ""
    if entry.is_reached is None:
        return f"not probed{encrypted}"
    ping = f": run flannelctl ping {entry.public_ip}"
    if entry.ipv6 is not None and entry.ipv6.is_reached != entry.is_reached:
        return f"IPv4 {_answer(entry)}, IPv6 {_answer(entry.ipv6)}{ping}{_narrow(entry)}{encrypted}"
    if not entry.is_reached:
        return f"no answer{ping}{encrypted}"
    return f"{_answer(entry)}{_narrow(entry)}{encrypted}"


def _answer(results: PeerEntry | FamilyReach) -> str:
    if not results.is_reached:
        return "no answer"
    rtt = "" if results.rtt_ms is None else f" in {results.rtt_ms:.1f} ms"
    mtu = "" if results.path_mtu is None else f", mtu {results.path_mtu}"
    return f"answers{rtt}{mtu}"


def _narrow(entry: PeerEntry) -> str:
    """Return, as text, the measured MTU of each path to a peer, if the path carries only smaller packets than
    planned.
    """
    texts = []
    for path in entry.path_mtus:
        family = "" if path.ipv6_subnet is None else " of IPv6"
        texts.append(f", mtu of the {'route' if path.is_routed else 'path'}{family} {path.measured}")
    return "".join(texts)
