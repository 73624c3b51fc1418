"""The commands flannelctl status and flannelctl doctor."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.cli.answers import (
    answer,
    both,
    duration,
    handshake,
    label_of,
    places_of,
    print_facts,
    print_json,
    print_text,
    socket_of,
)
from pyflannel.cli.invocation import (
    Invocation,
    Verb,
    run_dir_option,
    say,
    shared_options,
    state_options,
    wide_option,
)
from pyflannel.commands.local_daemon import last_known_leases, offline_status, what_to_do
from pyflannel.commands.network_client import ControlClient, live_status
from pyflannel.errors import NotReadyError, WireError, sentences
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.status import (
    BackendStatus,
    DockerStatus,
    FastPathStatus,
    Finding,
    FirewallStatus,
    ForwarderStatus,
    LeaseSigningStatus,
    LeaseStatus,
    ReachStatus,
    ReconcileStatus,
    Status,
    StoreStatus,
    UnderlayStatus,
    WireguardStatus,
)
from pyflannel.wire.control_json import format_findings, format_status

_OF_PRINTING_S = 0.2
"""Seconds of doctor's time that are reserved for printing the findings."""

_COLOURS = {"error": "red", "warning": "yellow", "info": "cyan"}


@click.command(cls=Verb)
@click.option(
    "--fix",
    "fixes",
    is_flag=True,
    help="Run the repair commands that only change one kernel setting: turn forwarding on, set the "
    "bridge up, or set rp_filter of the tunnel device to loose. Then examine the host again.",
)
@run_dir_option
@state_options
@shared_options("json")
@click.pass_obj
def doctor(
    invocation: Invocation,
    fixes: bool,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """List the problems of this host, with cause and remedy.

    Without --fix, doctor changes nothing. The exit code is 1 if a problem is an error.
    """
    from pyflannel.commands.examination import examine, fix  # imported here: status does not need this module

    places = places_of(run_dir, state_dir, subnet_file)
    left_s = invocation.left_s(is_limited=True) - _OF_PRINTING_S
    found = answer(invocation, examine(places, left_s), is_limited=True)
    fixed = asyncio.run(fix(found)) if fixes else []
    if fixed:
        found = answer(replace(invocation, began=None), examine(places, left_s), is_limited=True)
    is_ok = all(one.severity != "error" for one in found)
    if invocation.wants_json:
        print_json(format_findings(found, is_ok=is_ok, fixed=fixed))
    else:
        for command in fixed:
            say(command, label="fixed")
        _print_findings(found)
    if not is_ok:
        click.get_current_context().exit(1)


def _print_findings(found: Sequence[Finding]) -> None:
    for one in found:
        say(one.cause, label=click.style(one.severity, fg=_COLOURS[one.severity], bold=True))
        for line in one.evidence:
            say(f"    seen: {line}")
        say(f"    {label_of(one.fix)}: {one.fix}")
    if not found:
        say("found no problem on this host")


_NOT_LIVE = "does not respond; the facts below are from its files"

_NAMED = 8
"""Maximum number of refused peers, of unknown senders and of repairs that are listed individually."""


@click.command(cls=Verb)
@wide_option
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="First wait until flanneld is ready, but at most SECONDS.",
)
@click.option("--watch", is_flag=True, help="Show the status every second, until Ctrl-C.")
@run_dir_option
@state_options
@shared_options("socket", "json")
@click.pass_obj
def status(
    invocation: Invocation,
    wide: bool,
    wait_s: float | None,
    watch: bool,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Show the state of flanneld on this host.

    The exit code is 0 if flanneld is ready, and 3 if flanneld is not ready. If flanneld does not respond,
    flannelctl shows the content of its files. The first line also states whether peers answer; flannelctl
    probes up to 32 of them. With --watch and --json, each line is a document.

    Examples:
      flannelctl status --wait 60
      flannelctl status --watch
    """
    places, socket = places_of(run_dir, state_dir, subnet_file), socket_of(invocation, run_dir)
    if wait_s is not None:
        asyncio.run(_wait_ready(socket, wait_s))
    if watch or wait_s is not None:
        invocation = replace(invocation, began=None)
    while watch:
        if sys.stdout.isatty() and not invocation.wants_json:
            click.clear()
        _show_status(invocation, socket, places, is_wide=wide, is_line=True)
        sys.stdout.flush()
        time.sleep(_WATCH_S)
    if not _show_status(invocation, socket, places, is_wide=wide):
        click.get_current_context().exit(3)


_WATCH_S = 1.0
"""Pause in seconds between two requests of `--watch`, and between two requests of `--wait`."""


async def _wait_ready(socket: Path, wait_s: float) -> None:
    """Return when flanneld is ready, at the latest after `wait_s` seconds."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while True:
                with contextlib.suppress(NotReadyError):
                    if (await ControlClient(socket).status()).is_ready:
                        return
                await asyncio.sleep(_WATCH_S)


def _show_status(
    invocation: Invocation, socket: Path, places: Places, *, is_wide: bool, is_line: bool = False
) -> bool:
    """Print the status, with `is_line` as JSON in one line; return whether flanneld is ready."""
    try:
        found = answer(invocation, _status_and_reach(socket, places), is_limited=True)
    except NotReadyError as error:
        left = answer(invocation, _status_of_files(places, str(error)), is_limited=True)
        _print_status(invocation, left, is_wide=is_wide, is_line=is_line)
        say(f"flannelctl: {error}", err=True)
        say(f"  {what_to_do(places, left, error)}", err=True)
        return False
    _print_status(invocation, found, is_wide=is_wide, is_line=is_line)
    return found.is_ready


_SAMPLED = 64
"""Maximum number of peers whose leases are requested. The probes need half of them at most."""


async def _status_and_reach(socket: Path, places: Places) -> Status:
    # Other verbs do not need these modules.
    from pyflannel.commands.firewall import with_firewall
    from pyflannel.commands.reach import with_reach

    status = await live_status(socket)
    leases: list[LeaseEntry] = []
    with contextlib.suppress(NotReadyError, WireError):
        leases = await ControlClient(socket).leases(_SAMPLED)
    reached, filtered = await asyncio.gather(
        with_reach(status, leases), with_firewall(status, places, leases)
    )
    return replace(reached, firewall=filtered.firewall)


async def _status_of_files(places: Places, cause: str) -> Status:
    """Return the status from the files of a daemon that does not respond, and from the kernel."""
    # Other verbs do not need this module.
    from pyflannel.commands.firewall import with_firewall

    return await with_firewall(await offline_status(places, cause), places, last_known_leases(places))


def _print_status(invocation: Invocation, found: Status, *, is_wide: bool, is_line: bool) -> None:
    if invocation.wants_json and is_line:
        print_text(format_status(found).decode())
    elif invocation.wants_json:
        print_json(format_status(found))
    else:
        print_facts(facts(found, is_wide=is_wide), health(found))


def facts(found: Status, *, is_wide: bool = False) -> Iterator[tuple[str, str]]:
    """Yield the values of a status as text for people, each with its name; the identity only if `is_wide`."""
    yield "flanneld", f"{found.version}, {_readiness(found)}" if found.is_live else _NOT_LIVE
    if found.host_name:
        yield "host", found.host_name
    if found.owner and is_wide:
        yield "owner", found.owner
    if found.network and (found.network.network or found.network.text):
        if found.network.network:
            yield "network", both(found.network.network, found.network.ipv6_network)
        else:
            yield "network", str(found.network.text)
    if found.lease:
        yield "lease", _lease(found.lease)
    if found.underlay:
        yield "underlay", _underlay(found.underlay)
    if found.backend:
        yield "backend", _backend(found.backend)
        for note in found.backend.notes:
            yield "note", note
    if found.store:
        yield "store", _store(found.store)
    if found.is_live or found.peers:  # without flanneld and its files, the number is unknown
        yield "peers", str(found.peers)
    if found.wireguard:
        yield from _wireguard(found.wireguard)
    yield from _refused_peers(found)
    yield from _path_mtus(found)
    if found.forwarder:
        yield "forwarder", _forwarder(found.forwarder)
    if found.fast_path:
        yield "fast path", _fast_path(found.fast_path)
        for feature in found.fast_path.lacking:
            if feature.text not in (found.fast_path.reason or ""):
                yield "lacking", feature.text
        for notice in found.fast_path.remarks:
            yield "warning", str(notice)
        if found.fast_path.mode == "flow":
            yield "bypass", "after the firewall accepts a packet, its flow skips the firewall for at most 1 s"
        for reason in found.fast_path.uncached:
            yield "not cached", reason
    if found.firewall:
        yield "firewall", _firewall(found.firewall)
        yield from _first("dropped by", found.firewall.drops or ())
    yield from _strangers(found)
    if found.docker:
        yield from _docker(found.docker)
    if found.lease_signing:
        yield from _lease_signing(found.lease_signing)
    if found.reconcile:
        yield "repairs", _repairs(found.reconcile)
        yield from _first("refused", found.reconcile.refused)
        yield from _first("held back", found.reconcile.held)
    yield from _first("warning", found.warnings)


_PROBLEMS = (
    "refused peer",
    "path mtu",
    "dropped by",
    "stranger",
    "refused lease",
    "refused",
    "held back",
    "warning",
)
"""The names of the facts that are problems."""


def health(found: Status) -> dict[str, bool]:
    """Return for each fact about the state of the host, by its name, whether the state is good."""
    drops = found.firewall is not None and bool(found.firewall.drops)
    parts = {"flanneld": found.is_ready and not (found.reach and found.reach.silent) and not drops}
    if found.network:
        parts["network"] = found.network.trouble is None
    if found.lease:
        parts["lease"] = found.lease.phase == "held"
    if found.store:
        parts["store"] = found.store.is_connected and not found.store.is_stale
    if found.reach or found.refused_peers:
        parts["peers"] = not (found.reach and found.reach.silent) and not found.refused_peers
    if found.forwarder:
        parts["forwarder"] = bool(found.forwarder.pid) and found.forwarder.is_attached
    if found.fast_path:
        parts["fast path"] = found.fast_path.mode not in ("user-space", "uncached")
    if found.firewall:
        parts["firewall"] = found.firewall.is_in_place is True and not drops
    if found.reconcile:
        parts["repairs"] = not found.reconcile.refused and not found.reconcile.held
    return {**parts, **dict.fromkeys(_PROBLEMS, False)}


def _refused_peers(found: Status) -> Iterator[tuple[str, str]]:
    """Yield the first refused peers that are not in a warning."""
    warnings = frozenset(found.warnings)  # there may be thousands of refused peers and of warnings
    peers = [peer for peer in found.refused_peers if peer.reason not in warnings]
    for peer in peers[:_NAMED]:
        yield "refused peer", f"{peer.subnet} at {peer.host_text}: {peer.reason}"
    if len(peers) > _NAMED:
        yield "refused peer", f"{len(peers) - _NAMED} more: see flannelctl peers"


def _path_mtus(found: Status) -> Iterator[tuple[str, str]]:
    for one in found.path_mtus[:_NAMED]:
        end = "on the route" if one.is_routed else "larger packets are lost"
        sizes = f"{one.measured} of {one.planned} bytes"
        yield "path mtu", f"{one.ipv6_subnet or one.subnet}: {sizes}, {end}{_for(one.since_s)}"
    if len(found.path_mtus) > _NAMED:
        yield "path mtu", f"{len(found.path_mtus) - _NAMED} more: see flannelctl peers"


def _strangers(found: Status) -> Iterator[tuple[str, str]]:
    for one in found.strangers[:_NAMED]:
        packets = "1 packet" if one.packets == 1 else f"{one.packets} packets, the latest"
        latest = f"{packets} {duration(one.age_s)} ago"
        yield "stranger", f"{one.address}, {one.reason}, {latest}: {one.cause}"
    if len(found.strangers) > _NAMED:
        yield "stranger", f"{len(found.strangers) - _NAMED} more: see flannelctl status --json"


def _docker(docker: DockerStatus) -> Iterator[tuple[str, str]]:
    if not docker.networks:
        yield "docker", "no network yet"
    for network in docker.networks[:_NAMED]:
        bridge = network.bridge or "a bridge of another driver"
        yield (
            "docker network",
            f"{network.subnet} on {bridge}, {network.used} of {network.usable} addresses in use",
        )
    if len(docker.networks) > _NAMED:
        yield "docker network", f"{len(docker.networks) - _NAMED} more: see flannelctl status --json"
    for port in docker.ports[:_NAMED]:
        host = f"{port.host_address or '0.0.0.0'}:{port.host_port}/{port.protocol}"
        yield "docker port", f"{host} to {port.address}:{port.port}"
    if len(docker.ports) > _NAMED:
        yield "docker port", f"{len(docker.ports) - _NAMED} more: see flannelctl status --json"


def _lease_signing(signing: LeaseSigningStatus) -> Iterator[tuple[str, str]]:
    keys = "the first key of each owner" if signing.allowed is None else f"{signing.allowed} allowed keys"
    own = ", without the key of this host" if signing.is_own_key_allowed is False else ""
    counter = "" if signing.counter is None else f", list {signing.counter}"
    yield "signatures", f"{signing.mode}, {keys}{counter}{own}"
    if signing.trouble is not None:
        yield "warning", f"keeps the last valid allow-list: {signing.trouble}"
    for one in signing.refused[:_NAMED]:
        times = "once" if one.times == 1 else f"{one.times} times"
        place = "" if one.is_in_store else ", not in the store any more"
        latest = f"{times}, {duration(one.age_s)} ago{place}"
        yield "refused lease", f"{one.subnet} at {one.host_text}, {latest}: {one.cause}"
    if len(signing.refused) > _NAMED:
        yield "refused lease", f"{len(signing.refused) - _NAMED} more: see flannelctl status --json"


def _first(name: str, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    yield from ((name, text) for text in texts[:_NAMED])
    if len(texts) > _NAMED:
        yield name, f"{len(texts) - _NAMED} more: see flannelctl status --json"


def _readiness(found: Status) -> str:
    if found.is_ready:
        reach = _reach(found.reach) if found.reach else ""
        is_silent = found.reach is not None and bool(found.reach.silent)
        drops = found.firewall is not None and bool(found.firewall.drops) and not is_silent
        return f"ready{reach}" + (_DROPS if drops else "")
    return f"not ready: waiting for {found.waiting_for}" if found.waiting_for else "not ready"


_DROPS = ", but this host drops packets: run flannelctl doctor"


def _reach(reach: ReachStatus) -> str:
    if not reach.silent:
        return f", all {reach.probed} probed peers answer" if reach.probed > 1 else ", the peer answers"
    return f", but {len(reach.silent)} of {reach.probed} probed peers do not answer: run flannelctl doctor"


def _lease(lease: LeaseStatus) -> str:
    parts = [both(lease.subnet or "none yet", lease.ipv6_subnet)]
    if lease.phase:
        parts.append(lease.phase + _for(lease.since_s))
    if lease.holder:
        parts.append(f"held by {lease.holder}")
    if lease.is_reservation:
        parts.append("reserved")
    elif lease.expires_in_s is not None:
        parts.append(f"expires in {duration(lease.expires_in_s)}")
    return ", ".join(parts)


def _underlay(underlay: UnderlayStatus) -> str:
    public = f", public {underlay.public_ip}" if underlay.public_ip != underlay.address else ""
    ipv6 = ""
    if underlay.ipv6_address not in (None, underlay.address):
        is_other = underlay.public_ipv6 != underlay.ipv6_address
        link = "" if underlay.ipv6_link is None else f"{underlay.ipv6_link}, "
        ipv6 = f", {link}{underlay.ipv6_address}" + (f", public {underlay.public_ipv6}" if is_other else "")
    return f"{underlay.link}, {underlay.address}{public}{ipv6}, mtu {underlay.mtu}"


def _backend(backend: BackendStatus) -> str:
    link = f", {backend.link}" if backend.link else ""
    encrypted = ", encrypted" if backend.is_encrypted else ""
    return backend.type + link + (f", mtu {backend.mtu}" if backend.mtu else "") + encrypted


def _wireguard(wireguard: WireguardStatus) -> Iterator[tuple[str, str]]:
    yield "wireguard", f"{'kernel' if wireguard.is_in_kernel else 'wireguard-go'}, key {wireguard.public_key}"
    for peer in wireguard.peers[:_NAMED]:
        at = f" at {peer.endpoint}" if peer.endpoint else ""
        yield "peer", f"{peer.subnet}{at}, encrypted, {handshake(peer.handshake_age_s)}"
    if len(wireguard.peers) > _NAMED:
        yield "peer", f"{len(wireguard.peers) - _NAMED} more: see flannelctl peers"


def _store(store: StoreStatus) -> str:
    text = f"{store.url}, {'connected' if store.is_connected else 'unreachable'}{_for(store.since_s)}"
    if store.answer_age_s is not None:
        took = "" if store.answer_s is None else f", a request took {store.answer_s * 1000:.0f} ms"
        text = f"{text}, last answer {duration(store.answer_age_s)} ago{took}"
    if not store.last_error:
        return text
    when = "" if store.last_error_age_s is None else f" {duration(store.last_error_age_s)} ago"
    return f"{text}, last error{when}: {store.last_error}"


def _forwarder(forwarder: ForwarderStatus) -> str:
    parts = [f"pid {forwarder.pid}" if forwarder.pid else "not running"]
    if forwarder.pid:
        parts.append("attached" if forwarder.is_attached else "not attached")
    parts += [restriction.replace("_", " ") for restriction in forwarder.restrictions]
    parts += [f"{reason} {count}" for reason, count in forwarder.counters.items() if count]
    return ", ".join(parts)


def _fast_path(fast_path: FastPathStatus) -> str:
    parts = [f"{fast_path.mode}: {fast_path.reason}" if fast_path.reason else fast_path.mode]
    parts += [f"{outcome} {count}" for outcome, count in fast_path.counters.items() if count]
    return sentences(", ".join(parts), fast_path.hint or "")


def _firewall(firewall: FirewallStatus) -> str:
    parts: list[str] = [firewall.engine]
    count = len(firewall.objects)
    objects = "1 chain or table" if count == 1 else f"{count} chains and tables"
    if firewall.is_in_place is None:
        parts.append(f"{objects} found, not checked because flanneld does not respond")
    elif firewall.missing:
        more = "" if len(firewall.missing) == 1 else f" and {len(firewall.missing) - 1} more"
        parts.append(f"not in place: {firewall.missing[0]}{more}")
    elif not firewall.is_in_place:
        parts.append("rules not in place yet")
    else:
        parts.append(f"{objects} in place" if count else "no rules planned")
    if firewall.drops is None:
        parts.append("rules of other programs unknown")
    elif not firewall.drops:
        parts.append("no rule drops packets of the overlay")
    return ", ".join(parts)


def _repairs(reconcile: ReconcileStatus) -> str:
    text = f"{reconcile.repairs} in {reconcile.passes} passes"
    return text + (f", the last: {reconcile.last_repair}" if reconcile.last_repair else "")


def _for(seconds: float | None) -> str:
    return "" if seconds is None else f" for {duration(seconds)}"
