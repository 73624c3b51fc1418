"""flannelctl leases ls, peers, ping, bench, events and rotate-key: the network as this host sees it."""

import asyncio
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import click
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.cli.answers import (
    answer,
    both,
    duration,
    handshake,
    network_of,
    places_of,
    print_facts,
    print_json,
    print_table,
    print_text,
    size,
    socket_of,
)
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
from pyflannel.errors import FlannelError, NotReadyError, TargetError, UsageError, WireError
from pyflannel.model.lease import FamilyReach, LeaseEntry, PeerEntry, host_text
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.probe import (
    BenchLine,
    BenchReport,
    PingReport,
    PingStep,
)
from pyflannel.model.reach_matrix import Matrix, MatrixRow, letter
from pyflannel.model.status import JournalEntry, Status, peer_entries
from pyflannel.plan.peers import place_of_subnet
from pyflannel.wire.control_json import (
    format_document,
    format_events,
    format_leases,
    format_peers,
    format_ping,
    format_public_key,
)

_Entry = TypeVar("_Entry", LeaseEntry, PeerEntry)

_HEADINGS = ("SUBNET", "HOST", "PUBLIC IP", "BACKEND")
"""The first columns of every list of hosts. The column OWNER and one more column follow."""


_COMPLETION_S = 0.3
"""Deadline in seconds for the completion of host names, because a person waits for it."""


def _complete_host(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
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


_hosts_argument = click.argument("hosts", metavar="[HOST]...", nargs=-1, shell_complete=_complete_host)


def _of_hosts(entries: Sequence[_Entry], hosts: Sequence[str]) -> list[_Entry]:
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


@click.command("ls")
@_hosts_argument
@wide_option
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def list_leases(invocation: Invocation, hosts: tuple[str, ...], wide: bool, run_dir: Path | None) -> None:
    """List the leases of the network.

    The list contains all leases, or the leases of each HOST: a host name, an address or a subnet.
    """
    entries = _of_hosts(answer(invocation, _leases(invocation, run_dir)), hosts)
    if invocation.wants_json:
        print_json(format_leases(entries))
    else:
        _print_hosts(entries, "EXPIRES", map(_expiry, entries), is_wide=wide)


async def _leases(invocation: Invocation, run_dir: Path | None) -> list[LeaseEntry]:
    async with network_of(invocation, run_dir) as network:
        return await network.leases()


def _print_hosts(
    entries: Sequence[LeaseEntry | PeerEntry], last_heading: str, last_cells: Iterable[str], *, is_wide: bool
) -> None:
    owner = ("OWNER",) if is_wide else ()
    rows = (_row(entry, last, is_wide=is_wide) for entry, last in zip(entries, last_cells, strict=True))
    print_table((*_HEADINGS, *owner, last_heading), rows)


def _row(entry: LeaseEntry | PeerEntry, last: str, *, is_wide: bool) -> tuple[str, ...]:
    return (
        both(entry.subnet, entry.ipv6_subnet),
        entry.host_name or "-",
        both(entry.public_ip, entry.public_ipv6),
        entry.backend_type or "udp",  # leases of the udp backend contain no type
        *((entry.owner or "-",) if is_wide else ()),
        last,
    )


def _expiry(entry: LeaseEntry) -> str:
    if entry.is_reservation:
        return "never (reserved)"
    if entry.expires_in_s is None:
        return "unknown"
    return f"in {duration(entry.expires_in_s)}"


@click.command(cls=Verb)
@_hosts_argument
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
    named = [entry.subnet for entry in _of_hosts(known, hosts)] if hosts else []
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
    listed = _of_hosts(every_entry, hosts)
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
    owner = ("OWNER",) if is_wide else ()
    headings = (*_HEADINGS, *owner, "LOSS", "IN", "OUT", "CHANGED", "STATE")
    rows = [
        (
            *_row(entry, _loss(entry), is_wide=is_wide),
            "-" if entry.received_bytes is None else size(entry.received_bytes),
            "-" if entry.sent_bytes is None else size(entry.sent_bytes),
            "-" if entry.change_age_s is None else f"{duration(entry.change_age_s)} ago",
            _state(entry),
        )
        for entry in entries
    ]
    print_table(headings, rows, can_stack=True)


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


@click.command(cls=Verb)
@click.argument("host", metavar="HOST|ADDRESS", shell_complete=_complete_host)
@run_dir_option
@state_options
@shared_options("socket", "json")
@click.pass_obj
def ping(
    invocation: Invocation,
    host: str,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Probe the path to a host or a container, and show where packets stop.

    HOST is a host name, an address or a subnet of a lease; ADDRESS is the IPv4 or IPv6 address of a
    container. flannelctl probes the underlay, the tunnel and the container with ICMP echo. If both hosts have
    IPv4 and IPv6, flannelctl probes a HOST in both families. If no answer arrives, flannelctl checks this
    host. A host with the original flannel also answers. The command needs root, and takes at most 5 seconds.

    Exit codes:
      0  packets of the largest size arrive
      1  packets stop, or the host is unknown
      3  flanneld does not respond, and its files are not sufficient

    Examples:
      flannelctl ping docker2
      flannelctl ping 10.100.93.7
      flannelctl ping --json 192.168.50.101
    """
    from pyflannel.commands.examination import ping_path

    places = places_of(run_dir, state_dir, subnet_file)
    report = answer(invocation, ping_path(places, invocation.socket, host), is_limited=True)
    if invocation.wants_json:
        print_json(format_ping(report))
    else:
        _print_report(report)
    if not report.ok:
        click.get_current_context().exit(1)


def _print_report(report: PingReport) -> None:
    has_families = len({step.family for step in report.steps}) > 1
    lines: list[tuple[str, str]] = [
        (f"IPv{step.family} {step.name}" if has_families else step.name, _step(step)) for step in report.steps
    ]
    if report.stops is not None:
        lines += [("stops at", f"{report.stops}: {report.cause}"), ("type", report.fix or "")]
    print_facts([("host", f"{host_text(report.public_ip, report.host_name)}, {report.subnet}"), *lines])


def _step(step: PingStep) -> str:
    rtt = "" if step.rtt_ms is None else f" in {step.rtt_ms:.1f} ms"
    mtu = "" if step.mtu is None else f", up to {step.mtu} bytes"
    text = f", {step.text}" if step.text else ""
    return f"{step.destination} {step.state}{rtt}{mtu}{text}"


@click.command(cls=Verb)
@click.argument("host", metavar="HOST|ADDRESS", shell_complete=_complete_host)
@run_dir_option
@state_options
@shared_options("socket", "json")
@click.pass_obj
def bench(
    invocation: Invocation,
    host: str,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Measure round-trip times to a host: underlay, tunnel and container path, and their ratios.

    HOST is a host name, an address or a subnet of a lease; ADDRESS is the address of a container. flannelctl
    sends single ICMP echo packets of 84 bytes and of the MTU of the network, one at a time, for about two
    seconds. The other host needs no running flanneld, and may run the original flannel. flannelctl bench does
    not measure throughput. The command needs root, and takes at most 5 seconds.

    Exit codes:
      0  each path answered
      1  a path did not answer, or the host is unknown
      3  flanneld does not respond, and its files are not sufficient

    Examples:
      flannelctl bench docker2
      flannelctl bench 10.100.93.7 --json
    """
    from pyflannel.commands.examination import bench_host

    places = places_of(run_dir, state_dir, subnet_file)
    report = answer(invocation, bench_host(places, invocation.socket, host), is_limited=True)
    if invocation.wants_json:
        print_json(format_document(report))
    else:
        _print_bench(report)
    if not report.ok:
        click.get_current_context().exit(1)


_BENCH_HEADINGS = ("PATH", "ADDRESS", "BYTES", "ANSWERED", "MIN MS", "MEDIAN MS", "P90 MS", "RATIO")


def _print_bench(report: BenchReport) -> None:
    encrypted = ", encrypted" if report.is_encrypted else ""
    host = host_text(report.public_ip, report.host_name)
    say(f"{host}, {report.subnet}, {report.backend_type}{encrypted}")
    print_table(_BENCH_HEADINGS, map(_bench_row, report.lines))
    for label, texts in (("measured", report.measured), ("not measured", report.not_measured)):
        for text in texts:
            say(f"{label}: {text}")


def _bench_row(line: BenchLine) -> tuple[str, ...]:
    times = (line.min_ms, line.median_ms, line.p90_ms)
    reason = f" ({line.text})" if line.text and not line.received else ""
    return (
        line.name,
        str(line.destination),
        str(line.size),
        f"{line.received} of {line.sent}{reason}",
        *("-" if one is None else f"{one:.3f}" for one in times),
        "-" if line.ratio is None else f"{line.ratio:.2f}",
    )


@click.command("rotate-key")
@run_dir_option
@shared_options("socket", "json")
@click.pass_obj
def rotate_key(invocation: Invocation, run_dir: Path | None) -> None:
    """Replace the WireGuard key of this host, without losing a packet.

    The command needs a running flanneld with the wireguard backend, and its store. flannelctl prints the new
    public key.
    """
    daemon = ControlClient(socket_of(invocation, run_dir))
    public_key = answer(invocation, daemon.rotate_key(), writes=True)
    if invocation.wants_json:
        print_json(format_public_key(public_key))
    else:
        say(public_key)


_EVENT_HEADINGS = ("TIME", "EVENT", "FOUND")


_LOOK_S = 0.5
"""Interval in seconds between two requests of `--follow` to flanneld."""

_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(rf"(\d+)\s*({'|'.join(_UNITS_S)})")


@click.command(cls=Verb)
@click.option(
    "--since",
    metavar="TIME",
    help="Show only events since TIME: 30s, 10min, 2h or 1d ago, or 2026-11-30T19:00 in local time.",
)
@click.option("--follow", "-f", is_flag=True, help="Wait for further events, until Ctrl-C.")
@run_dir_option
@shared_options("socket", "json")
@click.pass_obj
def events(invocation: Invocation, since: str | None, follow: bool, run_dir: Path | None) -> None:
    """List the repairs, changes and refusals on this host, with the latest last.

    The list contains the last 1,000 events since flanneld started. The command needs a running flanneld. With
    --follow, flannelctl continues to wait if flanneld restarts.

    Examples:
      flannelctl events --since 10min
      flannelctl events --follow --json
    """
    begin = 0.0 if since is None else begin_of(since, time.time())
    daemon = ControlClient(socket_of(invocation, run_dir))
    entries = answer(invocation, daemon.events(), is_limited=True)
    shown = [entry for entry in entries if entry.at >= begin]
    if follow:
        _print_events(shown, wants_json=invocation.wants_json)
        asyncio.run(_follow(daemon, entries, begin, wants_json=invocation.wants_json))
    elif invocation.wants_json:
        print_json(format_events(shown))
    else:
        print_table(_EVENT_HEADINGS, map(_event_row, shown))


def begin_of(text: str, now: float) -> float:
    """Return the time that `--since` names, in seconds since the epoch; `now` is the current time.

    Raises:
        UsageError: the text is neither a duration nor a time.
    """
    if (found := _DURATION.fullmatch(text.strip())) is not None:
        return now - int(found[1]) * _UNITS_S[found[2]]
    try:
        return datetime.fromisoformat(text.strip()).astimezone().timestamp()
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since {text!r} is neither a duration nor a time",
            hint="Write a duration such as 30s, 10min, 2h or 1d, or a time such as 2026-11-30T19:00.",
        ) from error


def later(before: Sequence[JournalEntry], after: Sequence[JournalEntry]) -> Sequence[JournalEntry]:
    """Return the events in `after` that are newer than the events in `before`; all events if flanneld
    restarted between the two lists.
    """
    for place in range(len(after) if before else 0, 0, -1):
        if after[place - 1] == before[-1]:
            return after[place:]
    return after


async def _follow(
    daemon: ControlClient, entries: list[JournalEntry], begin: float, *, wants_json: bool
) -> None:
    """Print new events until Ctrl-C."""
    is_away = False
    while True:
        await asyncio.sleep(_LOOK_S)
        try:
            found = await daemon.events()
        except (NotReadyError, WireError) as error:
            if not is_away:
                print_warning(f"waiting for flanneld: {error}")
            is_away = True
            continue
        is_away = False
        new = [entry for entry in later(entries, found) if entry.at >= begin]
        entries = found
        _print_events(new, wants_json=wants_json)


def _print_events(entries: Sequence[JournalEntry], *, wants_json: bool) -> None:
    """Print new events: one line for each event, or all in one JSON document on one line."""
    if not entries:
        return
    if wants_json:
        print_text(format_events(entries).decode())
    else:
        for entry in entries:
            say("  ".join(_event_row(entry)))
    sys.stdout.flush()


def _event_row(entry: JournalEntry) -> tuple[str, ...]:
    at = datetime.fromtimestamp(entry.at, UTC).astimezone()
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], entry.event, entry.found
