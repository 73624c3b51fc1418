"""The observations of this host that the checks of doctor need."""

import asyncio
import contextlib
import time
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.assembly.stores import EtcdAddress, parse_store_url
from pyflannel.commands.host_links import (
    bridges_of_containers,
    interfaces_of_host,
    on_link,
    routes_of_network,
)
from pyflannel.commands.local_daemon import daemon_process, last_known, may_ask
from pyflannel.commands.membership import addresses_of, known_networks, membership_in
from pyflannel.commands.reach import neighbours_of_host, peers_of
from pyflannel.errors import TargetError, UsageError, WireError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.iptables import IptablesTarget, read_rules
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.ruleset import ReadRules, read_ruleset
from pyflannel.kernel.host.machine import (
    ask_route,
    closed_ports,
    docker_table,
    forwards,
    ignores_arp,
    ignores_echoes,
    is_ethernet,
    is_strict,
    lacks_arp,
    policy_rules,
    port_mtus,
    shapers,
    silent_ports,
    taking_filters,
    unforwarded,
)
from pyflannel.kernel.network.ipsec import security_associations
from pyflannel.kernel.network.namespaces import far_ends, learned_by, read_namespace
from pyflannel.kernel.network.snapshot import survey
from pyflannel.model.fast_path import BpfPeer, BpfProgram
from pyflannel.model.host import Interfaces, TakingFilter
from pyflannel.model.item import Item
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.packet_filter import SavedRules
from pyflannel.model.route import RouteAnswer
from pyflannel.model.state import State
from pyflannel.model.status import Membership, Status
from pyflannel.plan.doctor.docker import docker_drops
from pyflannel.plan.doctor.observed import (
    Certificate,
    ContainerLink,
    ContainerNamespace,
    Observed,
    SetNeighbour,
    SilentPort,
)
from pyflannel.plan.doctor.packets import mark_of
from pyflannel.plan.leftovers import rules_left
from pyflannel.ports import in_thread
from pyflannel.processes.found import find_containers, find_original
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
    taking_filters: tuple[TakingFilter, ...]


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
    containers, taken = await asyncio.gather(
        in_thread(find_containers),
        taking_filters({one.name: one.kind for one in interfaces.interfaces}),
    )
    return HostObservations(
        items=(*items, *rules),
        saved=saved,
        read=read,
        interfaces=interfaces,
        programs=programs[0],
        containers=containers,
        taking_filters=taken,
    )


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
    interfaces = host.interfaces
    bridges = bridges_of_containers(interfaces, membership, family, is_alone=is_alone)
    names = [one.name for one in interfaces.interfaces]
    permanent = await _set_neighbours()
    return Observed(
        status=status,
        membership=membership,
        family=family,
        may_ask=may_ask(places.control_socket),
        daemon=daemon_process(places.lock),
        claimed=places.device(),
        original=find_original(),
        items=host.items,
        left_rules=rules_left(host.saved, known_networks(places, membership)),
        forwards=forwards(family),
        unforwarded=unforwarded(names, family),
        strict=frozenset(name for name in names if family == 4 and is_strict(name)),
        ruleset=host.read.ruleset,
        answers=await _route_answers(status, membership, next(iter(bridges), None), family),
        marked_answers=await _marked_answers(status, membership, next(iter(bridges), None), family),
        interfaces=interfaces,
        programs=host.programs,
        on_link=on_link(interfaces, membership),
        ports={name: port_mtus(name) for name in bridges},
        silent_ports=await _silent_ports(interfaces, bridges),
        closed_ports={port: state for name in bridges for port, state in closed_ports(name).items()},
        lacks_arp=lacks_arp(membership.underlay or ""),
        ignores_arp=family == 4 and ignores_arp(membership.underlay or ""),
        ignores_echoes=ignores_echoes(family),
        is_ethernet=is_ethernet(membership.underlay or ""),
        set_neighbours=frozenset(one.address for one in permanent if one.link == membership.underlay),
        bridge_neighbours=tuple(one for one in permanent if one.link in bridges),
        shapers=await shapers(membership.underlay or ""),
        taking_filters=host.taking_filters,
        underlay_ports=tuple(port_mtus(membership.underlay or "")),
        associations=await security_associations() if interfaces.policies else None,
        docker0_ports=len(port_mtus("docker0")),
        docker_drops=docker_drops(host.saved, await docker_table(family), family),
        mark=places.mark,
        published_mac=_published_mac(places, family),
        containers=await _with_links(host.containers, membership.subnet, _indexes(interfaces, bridges)),
        certificates=() if status.store is None else certificates_for(status.store.url),
        now=time.time(),
        has_unit=has_unit("flanneld.service"),
    )


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


_CONTAINERS_ASKED = 512
"""Maximum number of containers whose links are read, which takes less than a second."""


def _indexes(interfaces: Interfaces, bridges: Iterable[str]) -> frozenset[int]:
    """Return the indexes of the ports of the bridges."""
    ports = {port for bridge in bridges for port in port_mtus(bridge)}
    return frozenset(one.index for one in interfaces.interfaces if one.name in ports)


async def _with_links(
    found: tuple[ContainerNamespace, ...], subnet: IpNetwork | None, ports: frozenset[int]
) -> tuple[ContainerNamespace, ...]:
    """Return the containers. For the containers in the subnet of this host, and for those at the `ports` of
    its bridges, add their links and permanent neighbour entries.

    The host sees only its own end of the link of a container, which may have another MTU.
    """
    if subnet is None:
        return found
    own = [one for one in found if any(address in subnet for address in one.addresses)]
    known = {one.pid: await _with_links_of(one, subnet) for one in own[:_CONTAINERS_ASKED]}
    if ports - {link.peer for one in known.values() for link in one.links}:
        # A port leads to a container that has lost its address, or whose link is down.
        ends = await far_ends(one.pid for one in found if one.pid not in known)
        for one in found:
            inside = frozenset(link for link, port in ends.get(one.pid, {}).items() if port in ports)
            if inside and len(known) < _CONTAINERS_ASKED:
                known[one.pid] = await _with_links_of(one, subnet, inside)
    return tuple(known.get(one.pid, one) for one in found)


async def _with_links_of(
    container: ContainerNamespace, subnet: IpNetwork, inside: frozenset[int] = frozenset()
) -> ContainerNamespace:
    """Return the container with its links in the subnet, and with its links whose index is in `inside`."""
    if (read := await read_namespace(container.pid)) is None:
        return container
    held: dict[int, set[IpAddress]] = {}
    for one in read.addresses:
        held.setdefault(one.index, set()).add(one.address.ip)
    links = tuple(
        ContainerLink(
            name=link.name,
            mtu=link.mtu,
            mac=link.mac,
            peer=link.peer if link.kind == "veth" else 0,
            is_up=link.is_up,
            addresses=frozenset(held.get(index, ())),
        )
        for index, link in read.links.items()
        if any(address in subnet for address in held.get(index, ())) or index in inside
    )
    permanent = tuple(
        SetNeighbour(address=one.address, link=read.links[one.index].name, mac=one.mac)
        for one in read.neighbours
        if one.is_permanent and one.mac and one.index in read.links
    )
    return replace(container, links=links, set_neighbours=permanent)


async def _silent_ports(interfaces: Interfaces, bridges: Iterable[str]) -> tuple[SilentPort, ...]:
    """Return the ports of the bridges that learn no MAC addresses; there are nearly always none."""
    found = []
    for bridge in bridges:
        ports, here = silent_ports(bridge), interfaces.named(bridge)
        entries = await learned_by(here.index) if ports and here is not None else []
        for name, floods in ports.items():
            if (port := interfaces.named(name)) is not None:
                macs = frozenset(mac for index, mac in entries if index == port.index)
                found.append(SilentPort(bridge=bridge, name=name, index=port.index, floods=floods, macs=macs))
    return tuple(found)


_ASKED, _ASKED_OUT = 2, 16
"""Maximum number of peers for which the kernel is asked for the routes in all directions, and for the route
of packets to them. A policy rule may divert the packets to a single peer."""


async def _route_answers(
    status: Status, membership: Membership, bridge: str | None, family: Family
) -> tuple[RouteAnswer, ...]:
    """Return the routes that the kernel chooses for packets between this host and some of its peers."""
    own, underlay = membership.subnet, status.underlay
    local = None if underlay is None else underlay.address
    tunnel = status.backend.link if status.backend is not None else None
    if own is None or not status.is_live:
        return ()
    rules = await policy_rules(family)
    here = own.network_address + 2
    refused = {peer.subnet for peer in status.refused_peers}
    peers = ((subnet, address) for subnet, address in membership.peers.items() if subnet not in refused)
    asked = []
    for number, (subnet, address) in enumerate(islice(peers, _ASKED_OUT)):
        there = subnet.network_address + 2
        source = here if bridge is not None else None
        asked.append(ask_route("container out", there, source=source, arrives_at=bridge, rules=rules))
        if number >= _ASKED:
            continue
        if tunnel is not None:
            asked.append(ask_route("container in", here, source=there, arrives_at=tunnel))
        if underlay is not None and local is not None and local.version == address.version:
            asked.append(ask_route("tunnel in", local, source=address, arrives_at=underlay.link))
    return tuple(filter(None, await asyncio.gather(*asked)))


_MARKS_ASKED = 4
"""Maximum number of policy rules with a mark for which the kernel is asked."""


async def _marked_answers(
    status: Status, membership: Membership, bridge: str | None, family: Family
) -> tuple[RouteAnswer, ...]:
    """Return the routes of a packet to the first peer, once for each mark that a policy rule selects."""
    own, peer = membership.subnet, next(iter(membership.peers), None)
    if own is None or peer is None or bridge is None or not status.is_live:
        return ()
    rules = [rule for rule in await policy_rules(family) if mark_of(rule)][:_MARKS_ASKED]
    here, there = own.network_address + 2, peer.network_address + 2
    asked = (
        ask_route("container out", there, source=here, arrives_at=bridge, rules=(rule,), mark=mark_of(rule))
        for rule in rules
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
