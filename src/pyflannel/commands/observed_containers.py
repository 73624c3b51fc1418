"""The containers of this host, and the ports of their bridges, for the checks of doctor."""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice

from msgspec.structs import replace

from pyflannel.errors import TargetError
from pyflannel.kernel.filters.presence import has_filters
from pyflannel.kernel.filters.programs import programs_in_namespace_of
from pyflannel.kernel.filters.ruleset import read_ruleset
from pyflannel.kernel.host.packet_path import (
    policy_rules,
    port_mtus,
    queueing_disciplines,
    routes_in_table,
    silent_ports,
    taking_filters,
)
from pyflannel.kernel.network.echo import send_echoes
from pyflannel.kernel.network.ipsec import policies_in
from pyflannel.kernel.network.namespaces import Question, far_ends, learned_by, read_namespace
from pyflannel.model.host import Interfaces
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.probe import Echo
from pyflannel.model.status import Membership
from pyflannel.plan.doctor.container_routes import PEERS_ASKED, unusual_answer
from pyflannel.plan.doctor.host_routes import selected_tables
from pyflannel.plan.doctor.observed import (
    PROBED,
    ContainerLink,
    ContainerNamespace,
    InnerAnswer,
    RouteTables,
    SetNeighbour,
    SilentPort,
)

_CONTAINERS_ASKED = 512
"""Maximum number of containers whose links are read, which takes less than a second."""


def indexes_of(interfaces: Interfaces, bridges: Iterable[str]) -> frozenset[int]:
    """Return the indexes of the ports of the bridges."""
    ports = {port for bridge in bridges for port in port_mtus(bridge)}
    return frozenset(one.index for one in interfaces.interfaces if one.name in ports)


async def examined_containers(
    found: tuple[ContainerNamespace, ...], membership: Membership, ports: frozenset[int]
) -> tuple[ContainerNamespace, ...]:
    """Return the containers with everything that doctor examines in their namespaces.

    `ports`: indexes of the ports of the bridges in the subnet of this host.
    """
    subnet = membership.subnet
    linked = await with_links(found, subnet, ports, [*islice(membership.peers, PEERS_ASKED)])
    answered = await with_rules(await with_answers(linked, subnet))
    return await with_route_tables(await with_filters(answered))


async def with_links(
    found: tuple[ContainerNamespace, ...],
    subnet: IpNetwork | None,
    ports: frozenset[int],
    peers: Sequence[IpNetwork] = (),
) -> tuple[ContainerNamespace, ...]:
    """Return the containers. For the containers in the subnet of this host, and for those at the `ports` of
    its bridges, add their links and permanent neighbour entries. For some, add the routes to the `peers`.

    The host sees only its own end of the link of a container, which may have another MTU.
    """
    if subnet is None:
        return found
    own = [one for one in found if any(address in subnet for address in one.addresses)]
    known = {
        one.pid: await _with_links_of(one, subnet, questions=_questions(one, subnet, peers, len(own)))
        for one in own[:_CONTAINERS_ASKED]
    }
    if ports - {link.peer for one in known.values() for link in one.links}:
        # A port leads to a container that has lost its address, or whose link is down.
        ends = await far_ends(one.pid for one in found if one.pid not in known)
        for one in found:
            inside = frozenset(link for link, port in ends.get(one.pid, {}).items() if port in ports)
            if inside and len(known) < _CONTAINERS_ASKED:
                known[one.pid] = await _with_links_of(one, subnet, inside)
    return tuple(known.get(one.pid, one) for one in found)


_ROUTES_ASKED = 1024
"""Maximum number of routes for which the kernel is asked in all containers together, about 0.1 s."""


def _questions(
    container: ContainerNamespace, subnet: IpNetwork, peers: Sequence[IpNetwork], containers: int
) -> list[Question]:
    """Return the packets of a container to some peers: with the address of the container as the source, as
    its replies, and with the source that the kernel chooses.
    """
    own = min((held for held in container.addresses if held in subnet), key=int, default=None)
    each = max(2, _ROUTES_ASKED // containers // 2)
    there = [peer.network_address + 2 for peer in peers[:each]]
    return [(one, source) for one in there for source in (None, own) if own is not None]


async def _with_links_of(
    container: ContainerNamespace,
    subnet: IpNetwork,
    inside: frozenset[int] = frozenset(),
    questions: Sequence[Question] = (),
) -> ContainerNamespace:
    """Return the container with its links in the subnet, and with its links whose index is in `inside`."""
    if (read := await read_namespace(container.pid, questions)) is None:
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
            has_ipv6=link.has_ipv6,
            hop_limit=link.hop_limit,
            xdp=link.xdp,
            programs=tuple(direction for at, direction in read.programs if at == index),
            has_filters=index in read.filtered,
        )
        for index, link in read.links.items()
        if any(address in subnet for address in held.get(index, ())) or index in inside
    )
    permanent = tuple(
        SetNeighbour(address=one.address, link=read.links[one.index].name, mac=one.mac)
        for one in read.neighbours
        if one.is_permanent and one.mac and one.index in read.links
    )
    return replace(
        container,
        links=links,
        set_neighbours=permanent,
        settings=read.settings,
        answers=tuple(read.answers),
    )


_CONTAINERS_READ = 4
"""Maximum number of containers whose filter rules are read, and of containers whose filters of traffic
control are read, which takes about 0.1 s for each."""

_CONTAINER_DEADLINE_S = 0.5
"""Deadline in seconds for the answers of the containers of this host."""


async def with_answers(
    found: tuple[ContainerNamespace, ...], subnet: IpNetwork | None
) -> tuple[ContainerNamespace, ...]:
    """Return the containers. Add the addresses that do not answer this host."""
    own = {
        one.pid: [held for held in one.addresses if subnet is not None and held in subnet] for one in found
    }
    asked = [address for addresses in own.values() for address in addresses][:PROBED]
    try:
        echoes = [Echo(destination=address) for address in asked]
        results = await send_echoes(echoes, deadline_s=_CONTAINER_DEADLINE_S) if echoes else []
    except TargetError:
        return found  # this process has no permission to send probes
    silent = {one for one, result in zip(asked, results, strict=True) if result.state != "reached"}
    quiet = {
        one.pid: replace(one, silent=silent.intersection(own[one.pid]))
        for one in found
        if silent.intersection(own[one.pid])
    }
    return tuple(quiet.get(one.pid, one) for one in found)


async def with_rules(found: tuple[ContainerNamespace, ...]) -> tuple[ContainerNamespace, ...]:
    """Return the containers. Add the IPsec policies of those whose links were read, and for some the filter
    rules, first for those that do not answer.
    """
    known = {
        one.pid: replace(one, policies=await policies_in(one.pid))
        for one in [one for one in found if one.links][:PROBED]
    }
    read = 0
    for one in sorted(known.values(), key=lambda one: not one.silent):
        if read < _CONTAINERS_READ and (one.silent or await has_filters(one.pid)):
            read += 1
            families: list[Family] = sorted({address.version for address in one.addresses})
            with programs_in_namespace_of(one.pid):
                known[one.pid] = replace(one, ruleset=(await read_ruleset(families)).ruleset)
    return tuple(known.get(one.pid, one) for one in found)


async def with_filters(found: tuple[ContainerNamespace, ...]) -> tuple[ContainerNamespace, ...]:
    """Return the containers. For some with filters of traffic control at their links, add the filters that
    took packets, for example packets of the probes.
    """
    filtered = [one for one in found if any(link.has_filters for link in one.links)]
    known: dict[int, ContainerNamespace] = {}
    for one in filtered[:_CONTAINERS_READ]:
        with programs_in_namespace_of(one.pid):
            taken = await taking_filters({link.name: "" for link in one.links}, await queueing_disciplines())
        known[one.pid] = replace(one, taking_filters=taken)
    return tuple(known.get(one.pid, one) for one in found)


_TABLES_READ = 4
"""Maximum number of containers whose policy rules and routes are read, and of tables of policy rules that are
read for one packet."""


async def with_route_tables(found: tuple[ContainerNamespace, ...]) -> tuple[ContainerNamespace, ...]:
    """Return the containers. For some whose packets to some peers are refused, or have another gateway than
    the packets to the other peers, add the policy rules and the routes of the first such packet.
    """
    unusual = {one.pid: (one, answer) for one in found if (answer := unusual_answer(one)) is not None}
    known: dict[int, ContainerNamespace] = {}
    for pid, (one, answer) in [*unusual.items()][:_TABLES_READ]:
        with programs_in_namespace_of(pid):
            tables = await _route_tables(answer)
        known[pid] = replace(one, route_tables=(tables,))
    return tuple(known.get(one.pid, one) for one in found)


async def _route_tables(answer: InnerAnswer) -> RouteTables:
    there = answer.destination
    rules = await policy_rules(there.version)
    selected = [] if answer.asked_source is None else selected_tables(rules, answer.asked_source, there)
    names = [*selected[:_TABLES_READ], "local", "main"]
    read = await asyncio.gather(*(routes_in_table(name, there) for name in names))
    return RouteTables(destination=there, rules=rules, tables=dict(zip(names, read, strict=True)))


async def silent_ports_of(interfaces: Interfaces, bridges: Iterable[str]) -> tuple[SilentPort, ...]:
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
