"""The observations of this host that the checks of doctor need."""

import asyncio
import contextlib
import time
from collections.abc import Collection, Mapping, Sequence
from ipaddress import ip_address
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.assembly.stores import EtcdAddress, parse_store_url
from pyflannel.commands.docker_engine import docker_engine
from pyflannel.commands.host_links import (
    bridges_of_containers,
    interfaces_of_host,
    on_link,
    routes_of_network,
)
from pyflannel.commands.local_daemon import daemon_process, last_known, may_ask, open_files
from pyflannel.commands.membership import addresses_of, known_networks, membership_in
from pyflannel.commands.observed_containers import (
    examined_containers,
    indexes_of,
    silent_ports_of,
)
from pyflannel.commands.reach import bridge_address, neighbours_of_host, peers_of
from pyflannel.errors import TargetError, UsageError, WireError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget, read_rules
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.ruleset import ReadRules, read_ruleset
from pyflannel.kernel.host.packet_path import (
    ask_route,
    closed_ports,
    docker_table,
    forwards,
    fragment_memory,
    ignores_arp,
    ignores_echoes,
    is_ethernet,
    is_strict,
    lacks_arp,
    local_routes,
    own_ttl,
    passthru_links,
    policy_rules,
    port_mtus,
    queueing_disciplines,
    routes_in_table,
    taking_filters,
    tracked_connections,
    tunnel_ttl,
    unforwarded,
    xdp_links,
)
from pyflannel.kernel.network.echo import send_echoes
from pyflannel.kernel.network.ipsec import security_associations
from pyflannel.kernel.network.snapshot import survey
from pyflannel.model.fast_path import BpfPeer, BpfProgram
from pyflannel.model.host import Interfaces, QueueingDiscipline, TakingFilter
from pyflannel.model.item import Item
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.packet_filter import SavedRules
from pyflannel.model.probe import Echo, EchoResult
from pyflannel.model.route import RouteAnswer
from pyflannel.model.state import State
from pyflannel.model.status import Membership, Status
from pyflannel.plan.doctor.docker import docker_drops
from pyflannel.plan.doctor.masquerading import gateway_without_masquerading
from pyflannel.plan.doctor.observed import (
    DOCKER0,
    Certificate,
    ContainerNamespace,
    DockerEngine,
    Observed,
    OpenFiles,
    SetNeighbour,
)
from pyflannel.plan.doctor.policy_rules import PolicyRule, forwarded_packets, mark_of, selected_packet
from pyflannel.plan.leftovers import rules_left
from pyflannel.ports import in_thread
from pyflannel.processes.containers import find_containers
from pyflannel.processes.found import find_original
from pyflannel.processes.systemd import has_unit
from pyflannel.wire.certificate import validities_of, validity_of


class HostObservations(Struct, frozen=True, kw_only=True):
    """The observations of a host that do not depend on the family."""

    items: tuple[Item, ...]
    saved: tuple[SavedRules, ...]
    read: ReadRules
    interfaces: Interfaces
    programs: tuple[BpfProgram, ...]
    containers: tuple[ContainerNamespace, ...]
    docker: DockerEngine | None
    disciplines: tuple[QueueingDiscipline, ...]
    taking_filters: tuple[TakingFilter, ...]
    xdp_links: frozenset[str]
    passthru_links: Mapping[str, str]


async def observe_host(places: Places, status: Status, families: Sequence[Family]) -> HostObservations:
    """Return the observations of this host that do not depend on the family."""
    items, rules, saved, read, interfaces, programs = await asyncio.gather(
        survey(),
        _filter_rules(),
        read_rules(),
        read_ruleset(families),
        interfaces_of_host(routes_of_network(status)),
        programs_of(places),
    )
    containers, docker, (disciplines, taken), with_xdp, passthru = await asyncio.gather(
        in_thread(find_containers),
        docker_engine(),
        _traffic_control(interfaces),
        xdp_links(),
        passthru_links(one.kind for one in interfaces.interfaces),
    )
    return HostObservations(
        items=(*items, *rules),
        saved=saved,
        read=read,
        interfaces=interfaces,
        programs=programs[0],
        containers=containers,
        docker=docker,
        disciplines=disciplines,
        taking_filters=taken,
        xdp_links=with_xdp,
        passthru_links=passthru,
    )


async def _traffic_control(
    interfaces: Interfaces,
) -> tuple[tuple[QueueingDiscipline, ...], tuple[TakingFilter, ...]]:
    """Return the queueing disciplines of this host, and the filters that took packets."""
    found = await queueing_disciplines()
    return found, await taking_filters({one.name: one.kind for one in interfaces.interfaces}, found)


async def observe_family(
    places: Places,
    host: HostObservations,
    status: Status,
    leases: list[LeaseEntry],
    family: Family,
    *,
    is_alone: bool,
    early: Collection[IpNetwork],
) -> Observed:
    """Return the observations in one family.

    Args:
        places: the paths of the daemon.
        host: the observations of the host.
        status: the status as in a network with this family alone.
        leases: the leases with an address in this family.
        family: the family.
        is_alone: True if the host carries only this family.
        early: the subnets of the peers whose packets are evaluated first.
    """
    membership = await membership_in(family, places, status)
    peers = {**membership.peers, **addresses_of(peers_of(status, leases), family)}
    if membership.subnet is not None:
        peers.pop(membership.subnet, None)
    membership = replace(membership, peers=dict(sorted(peers.items(), key=lambda one: one[0] not in early)))
    interfaces, backend = host.interfaces, status.backend
    bridges = bridges_of_containers(interfaces, membership, family, is_alone=is_alone)
    names = [one.name for one in interfaces.interfaces]
    permanent, rules = await asyncio.gather(_set_neighbours(), policy_rules(family))
    observed = Observed(
        status=status,
        membership=membership,
        family=family,
        may_ask=may_ask(places.control_socket),
        daemon=daemon_process(places.lock),
        forwarder_files=_forwarder_files(status),
        claimed=places.device(),
        original=find_original(),
        items=host.items,
        left_rules=rules_left(host.saved, known_networks(places, membership)),
        forwards=forwards(family),
        unforwarded=unforwarded(names, family),
        strict=frozenset(name for name in names if family == 4 and is_strict(name)),
        ruleset=host.read.ruleset,
        answers=await _route_answers(status, membership, next(iter(bridges), None), rules),
        marked_answers=await _marked_answers(status, membership, next(iter(bridges), None), rules),
        local_routes=() if membership.network is None else await local_routes(membership.network),
        fragment_memory=fragment_memory(family),
        own_ttl=own_ttl(membership.underlay or "", family),
        tunnel_ttl=(
            await tunnel_ttl(backend.link)
            if backend is not None and backend.type == "vxlan" and backend.link
            else None
        ),
        interfaces=interfaces,
        programs=host.programs,
        on_link=on_link(interfaces, membership),
        ports={name: port_mtus(name) for name in bridges},
        silent_ports=await silent_ports_of(interfaces, bridges),
        closed_ports={port: state for name in bridges for port, state in closed_ports(name).items()},
        lacks_arp=lacks_arp(membership.underlay or ""),
        bridges_without_arp=frozenset(filter(lacks_arp, bridges)),
        ignores_arp=family == 4 and ignores_arp(membership.underlay or ""),
        ignores_echoes=ignores_echoes(family),
        is_ethernet=is_ethernet(membership.underlay or ""),
        set_neighbours=frozenset(one.address for one in permanent if one.link == membership.underlay),
        bridge_neighbours=tuple(one for one in permanent if one.link in bridges),
        disciplines=host.disciplines,
        tracked=tracked_connections(),
        xdp_links=host.xdp_links,
        passthru_links=host.passthru_links,
        taking_filters=host.taking_filters,
        underlay_ports=tuple(port_mtus(membership.underlay or "")),
        associations=await security_associations() if interfaces.policies else None,
        docker0_ports=len(port_mtus(DOCKER0)),
        docker=host.docker,
        docker_drops=docker_drops(host.saved, await docker_table(family), family),
        mark=places.mark,
        published_mac=_published_mac(places, family),
        containers=await examined_containers(host.containers, membership, indexes_of(interfaces, bridges)),
        lost_stores=lost_stores(status),
        certificates=() if status.store is None else certificates_for(status.store.url),
        now=time.time(),
        has_unit=has_unit("flanneld.service"),
    )
    kinds, routes, answers = await asyncio.gather(
        _kind_answers(observed), _rule_routes(observed), _gateway_answers(observed)
    )
    return replace(observed, kind_answers=kinds, rule_routes=routes, gateway_answers=answers)


async def _gateway_answers(seen: Observed) -> tuple[EchoResult, EchoResult] | None:
    """Return the results of echo requests to the gateway from the public address and from the bridge, if no
    rule masquerades the packets of containers.
    """
    underlay, own = seen.status.underlay, seen.membership.subnet
    gateway = gateway_without_masquerading(seen)
    if gateway is None or underlay is None or own is None:
        return None
    with contextlib.suppress(TargetError):
        if (source := await bridge_address(own)) is not None:
            senders = (underlay.address, source)
            echoes = [Echo(destination=gateway, source=one) for one in senders]
            usual, bare = await send_echoes(echoes, deadline_s=_GATEWAY_S)
            return usual, bare
    return None


_GATEWAY_S = 1.0
"""Deadline in seconds for the answers of the gateway."""


def _forwarder_files(status: Status) -> OpenFiles | None:
    pid = None if status.forwarder is None else status.forwarder.pid
    return None if pid is None else open_files(pid)


def lost_stores(status: Status) -> tuple[tuple[IpAddress, int], ...]:
    """Return addresses and ports of the store if it does not respond. Host names are not resolved."""
    if not status.is_live or status.store is None or status.store.is_connected:
        return ()
    found: list[tuple[IpAddress, int]] = []
    with contextlib.suppress(UsageError):
        address = parse_store_url(status.store.url).store
        for one in address.endpoints if isinstance(address, EtcdAddress) else ():
            with contextlib.suppress(ValueError):
                found.append((ip_address(one.host), one.port))
    return tuple(found)


async def _set_neighbours() -> tuple[SetNeighbour, ...]:
    """Return the neighbours of this host whose MAC address an operator set."""
    with contextlib.suppress(TargetError):
        return tuple(
            SetNeighbour(address=one.address, link=name, mac=one.mac)
            for name, one in await neighbours_of_host()
            if one.is_permanent
        )
    return ()


def _published_mac(places: Places, family: Family) -> str | None:
    known = last_known(places.last_known)
    part = None if known is None else known.own.part(family)
    return None if part is None or part.vtep is None else part.vtep.mac


def certificates_for(url: str) -> tuple[Certificate, ...]:
    """Return the readable certificates whose files the URL of a store names."""
    try:
        address = parse_store_url(url).store
    except UsageError:
        return ()
    if not isinstance(address, EtcdAddress):
        return ()
    found = []
    for name, noun in (("certfile", "client certificate"), ("cafile", "certificate of the authority")):
        with contextlib.suppress(OSError, WireError):
            if (path := address.path(name)) is None:
                continue
            text = path.read_text(errors="replace")
            valid = [validity_of(text)] if name == "certfile" else validities_of(text)
            last = max(valid, key=lambda one: one.not_after, default=None)
            if last is not None:
                times = last.not_before.timestamp(), last.not_after.timestamp()
                found.append(Certificate(path=str(path), noun=noun, not_before=times[0], not_after=times[1]))
    return tuple(found)


_ASKED, _ASKED_OUT = 2, 16
"""Maximum number of peers for which the kernel is asked for the routes in all directions, and for the route
of packets to them. A policy rule may divert the packets to a single peer."""


async def _route_answers(
    status: Status, membership: Membership, bridge: str | None, rules: tuple[str, ...]
) -> tuple[RouteAnswer, ...]:
    """Return the routes that the kernel chooses for packets between this host and some of its peers."""
    own, underlay = membership.subnet, status.underlay
    local = None if underlay is None else underlay.address
    backend = status.backend
    if own is None or not status.is_live:
        return ()
    arrives_at = backend.link if backend is not None else None
    if backend is not None and backend.type == "host-gw" and bridge is not None and underlay is not None:
        arrives_at = underlay.link
    here = own.network_address + 2
    peers = _planned_peers(status, membership).items()
    asked = []
    for number, (subnet, address) in enumerate(islice(peers, _ASKED_OUT)):
        there = subnet.network_address + 2
        source = here if bridge is not None else None
        asked.append(ask_route("container out", there, source=source, arrives_at=bridge, rules=rules))
        if number >= _ASKED:
            continue
        if arrives_at is not None:
            asked.append(ask_route("container in", here, source=there, arrives_at=arrives_at))
        if underlay is not None and local is not None and local.version == address.version:
            asked.append(ask_route("tunnel in", local, source=address, arrives_at=underlay.link))
    return tuple(filter(None, await asyncio.gather(*asked)))


def _planned_peers(status: Status, membership: Membership) -> dict[IpNetwork, IpAddress]:
    """Return the public addresses of the peers that are not refused, by subnet."""
    refused = {peer.subnet for peer in status.refused_peers}
    return {subnet: address for subnet, address in membership.peers.items() if subnet not in refused}


_TABLES_READ = 4
"""Maximum number of policy rules whose tables are read."""


async def _rule_routes(seen: Observed) -> dict[str, tuple[str, ...]]:
    """Return the routes in the tables of policy rules that select packets of containers, by the rule."""
    packets, asked = list(forwarded_packets(seen)), dict[str, tuple[str, IpAddress]]()
    for rule in dict.fromkeys(rule for one in seen.answers for rule in one.rules):
        parsed = PolicyRule.parse(rule)
        packet = next((one for one in packets if parsed.selects(*one)), selected_packet(rule, packets))
        if parsed.table is not None and packet is not None:
            asked[rule] = parsed.table, packet.destination
    some = dict(islice(asked.items(), _TABLES_READ))
    routes = await asyncio.gather(*(routes_in_table(*one) for one in some.values()))
    return dict(zip(some, routes, strict=True))


_KINDS_ASKED = 4
"""Maximum number of policy rules for kinds of packets for which the kernel is asked."""


async def _kind_answers(seen: Observed) -> tuple[RouteAnswer, ...]:
    """Return the routes of packets of the kinds that policy rules select, one packet for each rule."""
    packets, own = list(forwarded_packets(seen)), seen.membership.subnet
    rules = dict.fromkeys(rule for one in seen.answers for rule in one.rules if not mark_of(rule))
    selected = ((rule, packet) for rule in rules if (packet := selected_packet(rule, packets)) is not None)
    asked = (
        ask_route(
            "container in" if own is not None and packet.destination in own else "container out",
            packet.destination,
            source=packet.source,
            arrives_at=packet.link,
            rules=(rule,),
            kind=PolicyRule.parse(rule).kind,
        )
        for rule, packet in islice(selected, _KINDS_ASKED)
    )
    return tuple(filter(None, await asyncio.gather(*asked)))


_MARKS_ASKED = 4
"""Maximum number of policy rules with a mark for which the kernel is asked."""


async def _marked_answers(
    status: Status, membership: Membership, bridge: str | None, rules: tuple[str, ...]
) -> tuple[RouteAnswer, ...]:
    """Return the routes of a packet to the first planned peer, for each mark that a policy rule selects."""
    own, peer = membership.subnet, next(iter(_planned_peers(status, membership)), None)
    if own is None or peer is None or bridge is None or not status.is_live:
        return ()
    marking = [rule for rule in rules if mark_of(rule)][:_MARKS_ASKED]
    here, there = own.network_address + 2, peer.network_address + 2
    asked = (
        ask_route(
            "container out",
            there,
            source=here,
            arrives_at=bridge,
            rules=(rule,),
            mark=mark_of(rule),
            kind=PolicyRule.parse(rule).kind,
        )
        for rule in marking
    )
    return tuple(filter(None, await asyncio.gather(*asked)))


async def programs_of(places: Places) -> tuple[tuple[BpfProgram, ...], tuple[BpfPeer, ...]]:
    """Return the eBPF programs of the daemon's tunnel, and their peers; empty if they are unreadable."""
    device = places.device()
    async with BpfTarget(FastPath(str(places.bpf))) as fast_path:
        found = await fast_path.snapshot(State.EMPTY)
        own = [one for one in found.of_type(BpfProgram) if one.tunnel.device == device]
        # The maps of the programs are read only if the programs are planned.
        found = await fast_path.snapshot(State.collect(own)) if own else State.EMPTY
    programs = tuple(one for one in found.of_type(BpfProgram) if one.tunnel.device == device)
    return programs, tuple(found.of_type(BpfPeer))


async def _filter_rules() -> list[Item]:
    """Return the chains and tables with flannel's names; empty if they are unreadable."""
    async with IptablesTarget() as iptables, NftTarget() as nftables:
        found = await asyncio.gather(iptables.snapshot(State.EMPTY), nftables.snapshot(State.EMPTY))
        return [item for snapshot in found for item in snapshot]
