"""Faults of the containers of this host: their links, addresses and neighbour entries, and the ports of their
bridges.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from shlex import quote

from msgspec.structs import replace

from pyflannel.model.host import Interfaces
from pyflannel.model.netfilter import TCP_FLAGS
from pyflannel.model.network_config import Family, IpAddress, is_part
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.filters import listed, removal_of
from pyflannel.plan.doctor.flows import container_packet
from pyflannel.plan.doctor.inside import may_stop
from pyflannel.plan.doctor.ipsec import blocking_policies, policy_removal, policy_text
from pyflannel.plan.doctor.observed import (
    NAMED,
    ContainerLink,
    ContainerNamespace,
    Observed,
    SetNeighbour,
    main_route,
    removal,
    shown,
    some,
)
from pyflannel.plan.netfilter import IN, OUT, judge


def _neighbours(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers have permanent neighbour entries with wrong MAC addresses for their
    gateway, or for other containers of this host.
    """
    right = _macs(seen)
    wrong = {
        f"{one.process}: {text}": (one.pid, entry)
        for one in seen.containers
        for text, entry in _wrong(one.set_neighbours, right, seen.family)
    }
    if wrong:
        yield Finding(
            code="container-neighbour",
            severity="error",
            cause="containers send packets to wrong MAC addresses, which were set manually",
            evidence=some([*wrong]),
            fix="; ".join(
                f"nsenter --net --target {pid} ip neighbour delete {entry.address} dev {quote(entry.link)}"
                for pid, entry in [*wrong.values()][:NAMED]
            ),
        )


def _neighbours_of_host(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that this host has permanent neighbour entries with wrong MAC addresses for its
    containers.
    """
    wrong = dict(_wrong(seen.bridge_neighbours, _macs(seen), seen.family))
    if wrong:
        yield Finding(
            code="container-neighbour",
            severity="error",
            cause="this host sends packets for containers to wrong MAC addresses, which were set manually",
            evidence=some([*wrong]),
            fix="; ".join(
                f"ip neighbour delete {one.address} dev {quote(one.link)}"
                for one in [*wrong.values()][:NAMED]
            ),
        )


def _wrong(
    entries: Iterable[SetNeighbour], right: Mapping[IpAddress, set[str]], family: Family
) -> Iterator[tuple[str, SetNeighbour]]:
    """Yield the evidence and the entry for each permanent neighbour entry with a wrong MAC address."""
    for one in entries:
        if one.address.version == family and one.mac not in right.get(one.address, {one.mac}):
            shown = f"ip neighbour show {one.address} dev {one.link}: lladdr {one.mac} PERMANENT"
            yield f"{shown}, but {one.address} has {' or '.join(sorted(right[one.address]))}", one


def _macs(seen: Observed) -> dict[IpAddress, set[str]]:
    """Return the MAC addresses of the bridges and of the containers of this host, by their addresses."""
    found: dict[IpAddress, set[str]] = {}
    for bridge in filter(None, map(seen.interfaces.named, seen.ports)):
        for held in bridge.addresses if bridge.mac else ():
            found.setdefault(held.address.ip, set()).add(bridge.mac)
    for link in (link for one in seen.containers for link in one.links if link.mac):
        for address in link.addresses:
            found.setdefault(address, set()).add(link.mac)
    return found


def _ports(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that ports of a bridge learn no MAC addresses, and the FDB has no entries for their
    containers.

    If such a port also does not flood, its container receives no packets.
    """
    for floods in (False, True):
        silent = {one.index: one for one in seen.silent_ports if one.floods is floods}
        ports = {
            silent[link.peer]: (one.process, link.mac)
            for one in seen.containers
            for link in one.links
            if link.peer in silent and link.mac and link.mac not in silent[link.peer].macs
        }
        if ports:
            yield Finding(
                code="port-not-learning",
                severity="warning" if floods else "error",
                cause="ports learn no MAC addresses, so bridges flood the packets for their containers"
                if floods
                else "ports neither learn MAC addresses nor flood, so their containers receive no packets",
                evidence=some(
                    [
                        f"bridge -details link show dev {port.name}: learning off"
                        f"{'' if floods else ' flood off'}; bridge fdb show br {port.bridge}: no entry for"
                        f" {mac} of {process}"
                        for port, (process, mac) in ports.items()
                    ]
                ),
                fix="; ".join(
                    f"bridge link set dev {quote(port.name)} learning on" for port in [*ports][:NAMED]
                ),
            )


def _cut_off(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that links between containers and their bridges carry no frames: a port is closed, or
    the other end of a link is down, or no port of the bridge.
    """
    ports = {one.index: one.name for one in seen.interfaces.interfaces}
    found = [
        stop
        for one in seen.containers
        for link in one.links
        if (port := ports.get(link.peer)) is not None
        if (stop := _closed(seen, one, link, port) or _at_no_bridge(seen, one, link, port)) is not None
    ]
    if found:
        lines, commands = zip(*found, strict=True)
        is_inside = any(one.startswith("nsenter") for one in commands)
        yield Finding(
            code="port-closed",
            severity="error",
            cause="containers are cut off from their bridge",
            evidence=some(lines),
            fix="; ".join(commands[:NAMED])
            + ("  # then restart these containers, which have lost their routes" if is_inside else ""),
        )


_Stop = tuple[str, str]
"""The evidence that a container is cut off, and the command that connects it again."""


def _closed(seen: Observed, one: ContainerNamespace, link: ContainerLink, port: str) -> _Stop | None:
    state = seen.closed_ports.get(port)
    if state is None:
        return None
    if state == "NO-CARRIER" and not link.is_up:
        command = f"nsenter --net --target {one.pid} ip link set {quote(link.name)} up"
        return f"{link.name} of {one.process} is down, and {port} has NO-CARRIER", command
    return f"ip link show {port}: {state}, the port of {one.process}", f"ip link set {quote(port)} up"


def _at_no_bridge(seen: Observed, one: ContainerNamespace, link: ContainerLink, port: str) -> _Stop | None:
    """Return the stop if the link is not a port of the bridge to which the route leads."""
    if any(port in ports for ports in seen.ports.values()):
        return None
    for address in (held for held in link.addresses if held.version == seen.family):
        route = main_route(seen, address)
        if route is not None and route.link in seen.ports:
            shown = f"bridge link show dev {port}: no port, but the route to {address} leads to {route.link}"
            command = f"ip link set {quote(port)} master {quote(route.link)} up"
            return f"{shown}; {port} is the link of {one.process}", command
    return None


def _beside_bridge(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that this host does not send the packets for its containers to their bridge.

    The kernel removes the routes of a bridge that is set down. This is a consequence of another finding.
    """
    own, lines, commands = seen.membership.subnet, list[str](), list[str]()
    down = {one.name for one in seen.interfaces.interfaces if not one.is_up} | seen.set_down.keys()
    bridges = {port: one for one, ports in seen.ports.items() if one not in down for port in ports}
    ports = {one.index: bridges[one.name] for one in seen.interfaces.interfaces if one.name in bridges}
    at_bridge = (
        (address, ports[link.peer])
        for one in seen.containers
        for link in one.links
        if link.peer in ports
        for address in sorted(link.addresses, key=int)
        if own is not None and address in own
    )
    for address, bridge in at_bridge if seen.items else ():
        route = main_route(seen, address)
        if route is not None and route.link == bridge:
            continue
        lines.append(f"{address} is at {bridge}, but {'no route' if route is None else shown(route)}")
        is_inside = route is not None and own is not None and is_part(route.destination, own)
        commands.append(
            removal(route) if route is not None and is_inside else f"ip route add {own} dev {bridge}"
        )
    if lines:
        yield Finding(
            code="unplanned-route",
            severity="error",
            cause="the routes of this host do not send packets for its containers to their bridge",
            evidence=some(lines),
            fix="; ".join([*dict.fromkeys(commands)][:NAMED]),
        )


def _unconnected(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers have no network, which may be intended."""
    alone = [
        one
        for one in seen.containers
        if one.container_id and not one.links and all(held.is_loopback for held in one.addresses)
    ]
    if alone and seen.is_first:
        yield Finding(
            code="container-unconnected",
            severity="info",
            cause="containers have no network: their only interface is lo",
            evidence=some([f"container {one.container_id}, {one.process}" for one in alone]),
            fix=f"docker network connect bridge {alone[0].container_id}"
            "  # unless the container was started without a network",
        )


def _without_address(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers at a bridge have no address."""
    ports = {port for names in seen.ports.values() for port in names}
    known = {held.index for held in seen.interfaces.interfaces if held.name in ports}
    bare = {
        f"{link.name} of {one.process}": (one.pid, link.name)
        for one in seen.containers
        for link in one.links
        if link.is_up and link.peer in known and (link.has_ipv6 or seen.family == 4)
        if all(held.is_link_local for held in link.addresses)
    }
    if bare:
        pid, name = next(iter(bare.values()))
        yield Finding(
            code="container-address",
            severity="warning",
            cause="containers at a bridge of this host have no address",
            evidence=some([*bare]),
            fix=f"nsenter --net --target {pid} ip address show dev {quote(name)}"
            "  # restart the container: its engine then assigns the address again",
        )


def _silent(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that filter rules or IPsec policies inside containers drop packets, and the finding
    that containers are silent for an unknown reason.
    """
    peer = next(iter(seen.membership.peers), None)
    yield from _blocked(seen)
    lines, commands, unknown = list[str](), list[str](), dict[IpAddress, str]()
    for one in seen.containers:
        for address in sorted((held for held in one.silent if held.version == seen.family), key=int):
            there = address + 1 if peer is None else peer.network_address + 2
            stops = [*_stops_inside(one, address, there)]
            lines += [f"{address}, {one.process}: {text}" for text, _ in stops]
            commands += [f"nsenter --net --target {one.pid} {command}" for _, command in stops]
            if not stops and not may_stop(one):
                unknown[address] = f"{address}, {one.process}"
    if lines:
        yield Finding(
            code="container-filter",
            severity="warning",
            cause="containers answer no ICMP echo requests, and rules inside them drop packets",
            evidence=some([*dict.fromkeys(lines)]),
            fix="; ".join([*dict.fromkeys(commands)][:NAMED])
            + "  # or change the program in the container that sets the rules",
        )
    if unknown:
        yield Finding(
            code="container-silent",
            severity="info",
            cause="containers answer no ICMP echo requests of this host, for an unknown reason",
            evidence=some([*unknown.values()]),
            fix=f"flannelctl trace {next(iter(unknown))}  # some programs ignore these requests",
        )


def _blocked(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that rules inside containers that answer ICMP echo requests drop TCP.

    IPsec policies are evaluated for new connections. Filter rules are evaluated for established connections,
    because a container may refuse new connections as intended.
    """
    own, peer = seen.membership.subnet, next(iter(seen.membership.peers), None)
    if own is None or peer is None:
        return
    found: dict[str, str] = {}
    for one in seen.containers:
        answering = (held for held in one.addresses - one.silent if held in own)
        for address in sorted(answering, key=int):
            for text, command in _stops_inside(one, address, peer.network_address + 2, is_established=True):
                found[f"{address}, {one.process}: {text}"] = f"nsenter --net --target {one.pid} {command}"
    if found:
        yield Finding(
            code="container-filter",
            severity="warning",
            cause="rules inside containers drop packets of TCP connections to other hosts",
            evidence=some([*found]),
            fix="; ".join([*dict.fromkeys(found.values())][:NAMED])
            + "  # or change the program in the container that sets the rules",
        )


def _stops_inside(
    one: ContainerNamespace, address: IpAddress, there: IpAddress, *, is_established: bool = False
) -> Iterator[tuple[str, str]]:
    """Yield the rules and policies inside a container that drop packets between it and another container, and
    the commands that remove them.

    `is_established`: True to evaluate filter rules for a packet of an established connection.
    """
    link = next((link.name for link in one.links if address in link.addresses), "eth0")
    inside = Interfaces(policies=one.policies)
    for packet, hooks in (
        (container_packet(there, address, iif=link), IN),
        (container_packet(address, there, oif=link), OUT),
    ):
        for policy in blocking_policies(packet, hooks, inside):
            yield policy_text(policy), policy_removal(policy)
        if is_established:
            packet = replace(packet, state="established", tcp_flags=TCP_FLAGS["ack"])
        judgement = judge(packet, one.ruleset, hooks)
        if judgement.chain is not None and judgement.kind in ("drop", "reject"):
            chain, rule = judgement.chain, judgement.rule
            yield listed(chain, rule), removal_of(chain, rule)


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    _neighbours,
    _neighbours_of_host,
    _ports,
    _cut_off,
    _beside_bridge,
    _without_address,
    _unconnected,
    _silent,
)
