"""doctor: examines this host and the paths to its peers, and collects the findings."""

import asyncio
import contextlib
import shlex
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from itertools import islice

from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.commands.bare_packets import losses_of_bare_packets
from pyflannel.commands.losses import losses_to
from pyflannel.commands.membership import leases_of_host, status_of_host
from pyflannel.commands.network_client import ControlClient
from pyflannel.commands.observations import lost_stores, observe_family, observe_host
from pyflannel.commands.reach import (
    ends_of,
    neighbours_of_host,
    peers_of,
    probe_peers,
)
from pyflannel.errors import NotReadyError, TargetError, WireError
from pyflannel.kernel.filters.programs import run_program
from pyflannel.kernel.host.packet_path import ask_route, policy_rules, routes_in_table
from pyflannel.kernel.network.address_probe import other_holder
from pyflannel.kernel.network.echo import clock_offsets
from pyflannel.kernel.network.link_watch import LinkWatch
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.probe import PeerReach
from pyflannel.model.route import RouteAnswer
from pyflannel.model.status import Finding, Status, StoreTimes
from pyflannel.plan.doctor.addresses import address_taken
from pyflannel.plan.doctor.clocks import clock_findings
from pyflannel.plan.doctor.coverage import coverage, partly_examined
from pyflannel.plan.doctor.families import families_of, leases_in, status_in
from pyflannel.plan.doctor.findings import SAFE, findings_in_family, findings_of_host, merged
from pyflannel.plan.doctor.host_routes import Detour, HostRoutes, detour, selected_tables
from pyflannel.plan.doctor.lease import LeaseReading, is_disputed, lease_findings
from pyflannel.plan.doctor.observed import BadNeighbour, LinkSetter, Observed
from pyflannel.plan.doctor.peers import is_cut_off, with_peers
from pyflannel.plan.doctor.store import store_findings, under_their_cause
from pyflannel.ports import in_thread
from pyflannel.processes.found import find_link_setters

First = Callable[[Family], Awaitable[Collection[IpNetwork]]]
"""Returns, for a family, the subnets of the peers whose packets are evaluated first. A host may have ten
thousand peers."""


async def examine(places: Places, left_s: float = 15.0) -> tuple[Finding, ...]:
    """Return the findings about this host, errors first. If the examination takes more than `left_s`
    seconds, one finding reports that the examination is incomplete.

    Raises:
        TargetError: links and routes are unreadable.
    """
    end = asyncio.get_running_loop().time() + left_s
    whole, every_lease = await asyncio.gather(status_of_host(places), leases_of_host(places))
    started = asyncio.get_running_loop().time()
    views = {
        family: (status_in(whole, family, every_lease), leases_in(every_lease, family))
        for family in families_of(whole)
    }
    reaching = {family: asyncio.ensure_future(_reach(*view)) for family, view in views.items()}

    async def silent(family: Family) -> Collection[IpNetwork]:
        return {one.subnet for one in await asyncio.shield(reaching[family]) if not one.is_reached}

    found, reached, losses, bare, offsets, times = await asyncio.gather(
        _examined_until(end, places, whole, every_lease, silent),
        asyncio.gather(*reaching.values()),
        asyncio.gather(*(losses_to(*view, asyncio.shield(reaching[one])) for one, view in views.items())),
        asyncio.gather(*(losses_of_bare_packets(*view) for view in views.values())),
        _clock_offsets(whole, every_lease),
        _store_times(places, whole),
    )
    writes = await _lease_findings(places, LeaseReading(whole, _own_entry(whole, every_lease)), started)
    common = (*found.get(None, ()), *writes, *store_findings(whole, times), *clock_findings(offsets))
    entries = await _bad_neighbours()
    stores = [address for address, _ in lost_stores(whole)]
    on_the_way = _on_the_way(stores, await _host_answers(stores, whole), whole, entries)
    of_store = next(iter(on_the_way.values()), None)
    complete: list[Finding] = []
    for (family, (status, leases)), reach, lossy, filtered in zip(
        views.items(), reached, losses, bare, strict=True
    ):
        probed = len([*peers_of(status, leases)]) if reach else 0
        partly = partly_examined([("{} peers were probed", len(reach), probed)])
        reach = [lossy.corrected(one, status) for one in reach]
        status = lossy.of_status(status)
        taken = await _taken_address(status) if is_cut_off(reach, status) else ()
        own = under_their_cause((*taken, *common, *found.get(family, ()), *partly, *lossy.findings))
        silent_peers = [
            one.public_ip for one in reach if not one.is_reached and one.underlay.state != "reached"
        ]
        answers = await _host_answers(silent_peers, status)
        deaf = _on_the_way(silent_peers, answers, status, entries)
        detours = await _detours(answers, status, deaf)
        complete += with_peers(own, reach, status, deaf, of_store, detours, filtered)
    return merged(complete)


def _own_entry(status: Status, leases: Iterable[LeaseEntry]) -> LeaseEntry | None:
    own = status.lease.subnet if status.lease is not None else None
    return next((one for one in leases if one.subnet == own), None)


async def _lease_findings(places: Places, first: LeaseReading, started: float) -> tuple[Finding, ...]:
    """Return the findings about the key of this host's lease, from a first reading and another one now.

    `started`: time of the first reading, by the clock of the loop.
    """
    if not is_disputed(first.status):
        return ()
    status, leases = await asyncio.gather(status_of_host(places), leases_of_host(places))
    seconds = asyncio.get_running_loop().time() - started
    return tuple(lease_findings(first, LeaseReading(status, _own_entry(status, leases)), seconds))


async def _taken_address(status: Status) -> tuple[Finding, ...]:
    """Return the finding that another host has the address of this host on the underlay."""
    underlay = status.underlay
    if underlay is None or not isinstance(underlay.address, IPv4Address):
        return ()
    mac = await other_holder(underlay.link, underlay.address)
    return () if mac is None else (address_taken(underlay.link, underlay.address, mac),)


async def _examined_until(
    end: float, places: Places, status: Status, leases: list[LeaseEntry], first: First
) -> Mapping[Family | None, tuple[Finding, ...]]:
    """Return the findings about this host itself, by family; None for findings about all families. If they
    are not complete at `end`, return only a finding that reports this.
    """
    try:
        async with asyncio.timeout_at(end):
            return await examined(places, status, leases, first)
    except TimeoutError:
        cause = "the examination of this host took too long, so its problems are unknown"
        return {None: (Finding(code="not-examined", severity="error", cause=cause, fix="flannelctl doctor"),)}


async def examined(
    places: Places, status: Status, leases: list[LeaseEntry], first: First
) -> Mapping[Family | None, tuple[Finding, ...]]:
    """Return the findings about this host itself, by family; None for findings about all families. Rules and
    routes are evaluated for the packets of some peers, beginning with those that `first` returns.
    """
    families = families_of(status)
    with LinkWatch() as watch:
        host = await observe_host(places, status, families)
        observed = [
            await observe_family(
                places,
                host,
                status_in(status, family, leases),
                leases_in(leases, family),
                family,
                is_alone=len(families) == 1,
                early=await first(family),
            )
            for family in families
        ]
        downs = watch.set_down()
    setters = await _link_setters(observed, downs)
    unread = tuple(
        Finding(code="rules-unread", severity="info", cause=f"filter rules: {error}", fix=error.hint)
        for error in host.read.failures
    )
    found: dict[Family | None, tuple[Finding, ...]] = {None: (*findings_of_host(observed[0]), *unread)}
    for one in observed:
        times = {name: downs[name].total() for name in one.ports.keys() & downs.keys()}
        own = findings_in_family(
            replace(one, is_first=one is observed[0], set_down=times, link_setters=setters)
        )
        found[one.family] = (*own, *coverage(one))
    return found


async def _link_setters(
    observed: Iterable[Observed], downs: Mapping[str, Counter[int]]
) -> dict[str, tuple[LinkSetter, ...]]:
    """Return the programs that may set bridges of containers down, for each that is down or was set down."""
    bridges = {name: one.interfaces.named(name) for one in observed for name in one.ports}
    found: dict[str, tuple[LinkSetter, ...]] = {}
    for name, bridge in bridges.items():
        if name in downs or (bridge is not None and not bridge.is_up):
            found[name] = await in_thread(find_link_setters, name, downs.get(name, Counter()))
    return found


async def fix(found: Sequence[Finding]) -> list[str]:
    """Run the repair commands of the safe findings, and return the commands that succeeded."""
    fixes = [one.fix for one in found if one.code in SAFE]
    done = []
    for command in (command for one in fixes for command in one.split("; ")):
        with contextlib.suppress(TargetError):
            ran = await run_program(*shlex.split(command))
            done += [] if ran.status else [command]
    return done


async def _store_times(places: Places, status: Status) -> StoreTimes | None:
    """Return how long requests of the daemon to its store take now; None if the daemon does not respond."""
    if not status.is_live:
        return None
    with contextlib.suppress(NotReadyError, WireError):
        return await ControlClient(places.control_socket).store_times()
    return None


async def _reach(status: Status, leases: list[LeaseEntry]) -> list[PeerReach]:
    """Return the answers of the peers; empty if this process has no permission to send probes."""
    with contextlib.suppress(TargetError):
        return list((await probe_peers(status, leases)).values())
    return []


async def _bad_neighbours() -> list[BadNeighbour]:
    """Return the neighbour entries of this host that may stop packets."""
    entries = []
    with contextlib.suppress(TargetError):
        for name, one in await neighbours_of_host():
            if one.is_unresolved or one.is_permanent:
                state = f"lladdr {one.mac} PERMANENT" if one.is_permanent else "FAILED or INCOMPLETE"
                text = f"ip neighbour show {one.address} dev {name}: {state}"
                entries.append(
                    BadNeighbour(address=one.address, link=name, text=text, is_set=one.is_permanent)
                )
    return entries


async def _host_answers(silent: Iterable[IpAddress], status: Status) -> dict[IpAddress, RouteAnswer]:
    """Return the routes of packets of this host to the first of some silent addresses."""
    source = status.underlay.address if status.underlay is not None else None
    asked = (
        ask_route("host out", one, source=source if source and source.version == one.version else None)
        for one in islice(silent, _ROUTES_ASKED)
    )
    answers = await asyncio.gather(*asked)
    return {one.destination: one for one in answers if one is not None}


def _on_the_way(
    silent: Iterable[IpAddress],
    answers: Mapping[IpAddress, RouteAnswer],
    status: Status,
    known: Iterable[BadNeighbour],
) -> dict[IpAddress, BadNeighbour]:
    """Return the neighbour entries on the underlay that may stop packets to silent addresses: those of the
    gateways to them, or of the addresses themselves.
    """
    link = status.underlay.link if status.underlay is not None else None
    entries = {one.address: one for one in known if one.link == link}
    hops = {one: answers[one].gateway if one in answers else None for one in silent}
    return {one: entries[hop or one] for one, hop in hops.items() if (hop or one) in entries}


async def _detours(
    answers: Mapping[IpAddress, RouteAnswer], status: Status, deaf: Collection[IpAddress]
) -> dict[IpAddress, Detour]:
    """Return the routes and policy rules by which this host does not send directly to silent peers.

    `deaf`: the peers whose next hop has no MAC address.
    """
    underlay, found = status.underlay, dict[IpAddress, Detour]()
    unusual = {
        address: one for address, one in answers.items() if one.gateway or one.link is None or one.is_local
    }
    if underlay is None or not unusual:
        return found
    rules = await policy_rules(next(iter(unusual)).version)
    for address, answer in unusual.items():
        source = underlay.address
        names = [*selected_tables(rules, source, address)[:_TABLES_READ], "local", "main"]
        tables = await asyncio.gather(*(routes_in_table(name, address) for name in names))
        read = dict(zip(names, tables, strict=True))
        routes = HostRoutes(source, underlay.link, answer, rules, read, is_silent=address in deaf)
        if (one := detour(routes)) is not None:
            found[address] = one
    return found


_ROUTES_ASKED = 8
"""Maximum number of silent addresses whose routes are determined."""

_TABLES_READ = 4
"""Maximum number of tables of policy rules that are read for each of them."""


_CLOCKS = 16
"""Maximum number of peers whose clocks are compared with the clock of this host."""

_CLOCK_DEADLINE_S = 0.7
"""Deadline in seconds for the answers to timestamp requests. Many firewalls drop timestamp requests, and
doctor must not wait for them."""


async def _clock_offsets(status: Status, leases: list[LeaseEntry]) -> dict[IPv4Address, float]:
    """Return the clock offsets of some peers in seconds; empty if no peer can be asked. ICMPv6 has no
    message that contains a time.
    """
    ends = (underlay for peer in peers_of(status, leases) for underlay, _ in (ends_of(peer),))
    with contextlib.suppress(TargetError):
        some_ends = list(islice((end for end in ends if isinstance(end, IPv4Address)), _CLOCKS))
        return await clock_offsets(some_ends, deadline_s=_CLOCK_DEADLINE_S)
    return {}
