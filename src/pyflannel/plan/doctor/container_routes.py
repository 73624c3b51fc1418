"""Faults of the routes inside containers: packets for other hosts are refused, or have a wrong next hop or a
wrong source.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from shlex import quote

from msgspec.structs import replace

from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.route import RouteAnswer
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.host_routes import Detour, HostRoutes, deciding_route
from pyflannel.plan.doctor.observed import (
    DOCKER_FIX,
    NAMED,
    ContainerNamespace,
    InnerAnswer,
    Observed,
    main_route,
    some,
)

PEERS_ASKED = 16
"""Maximum number of peers for which the kernel is asked for the routes in a container."""


def unusual_answer(one: ContainerNamespace) -> InnerAnswer | None:
    """Return the first answer that refuses a packet although packets to other peers are sent, or that names
    another gateway than most answers; None if there is no such answer.

    If all packets are refused, return an answer that refuses a packet with a source. A policy rule may select
    only this source.
    """
    gateways = Counter(answer.gateway for answer in one.answers if not answer.error)
    usual = max(gateways, key=lambda gateway: gateways[gateway], default=None)
    found = [answer for answer in one.answers if answer.error or answer.gateway != usual]
    return next((answer for answer in found if answer.asked_source), next(iter(found), None))


def _in_namespace(one: ContainerNamespace, command: str) -> str:
    return f"nsenter --net --target {one.pid} {command}"


def _decision(one: ContainerNamespace, answer: InnerAnswer, own: IpNetwork) -> Detour | None:
    """Return the route or the policy rule in a container that decides about a packet; None if it was not
    read.
    """
    known = next((each for each in one.route_tables if each.destination == answer.destination), None)
    source = next((held for held in one.addresses if held in own), None)
    if known is None or source is None:
        return None
    question = f"ip -{answer.destination.version} route get {answer.destination}"
    question += "" if answer.asked_source is None else f" from {answer.asked_source}"
    route = RouteAnswer(
        way="host out",
        destination=answer.destination,
        text=f"{question}: {answer.error or f'via {answer.gateway} dev {answer.link}'}",
        link=None if answer.error else answer.link,
        gateway=answer.gateway,
    )
    return deciding_route(
        HostRoutes(
            source=answer.asked_source or source,
            link=answer.link,
            answer=route,
            rules=known.rules,
            tables=known.tables,
        )
    )


def _refusal(one: ContainerNamespace, there: Iterable[IpAddress], own: IpNetwork) -> Detour | None:
    """Return the first route or policy rule in a container that refuses packets to other hosts; None if none
    is known, or if the default route refuses them, which may be intended.
    """
    for answer in (each for each in one.answers if each.error and each.destination.version == own.version):
        decision = _decision(one, answer, own)
        if decision is not None and " default" not in decision.fix and "::/0" not in decision.fix:
            return decision
    refusing = dict.fromkeys(
        route.destination
        for address in there
        if (route := one.route_to(address)) is not None and route.is_refused and route.destination.prefixlen
    )
    command = f"ip -{own.version} route"
    lines = tuple(f"{command} show {destination}: refuses packets" for destination in refusing)
    fix = "; ".join(f"{command} delete {destination}" for destination in refusing)
    return Detour(lines, fix) if lines else None


def _refused(seen: Observed) -> Iterator[Finding]:
    """Yield findings for containers that cannot send to other hosts, as a warning if a route or a policy rule
    in the container refuses the packets. Containers without a route may be intended, for example in an
    internal network.
    """
    own, there = seen.membership.subnet, _addresses_of_peers(seen)
    if own is None or not there:
        return
    lines, commands, lost, pids = list[str](), list[str](), list[str](), list[int]()
    for one in seen.containers:
        held = sorted((held for held in one.addresses if held in own), key=int)
        refusal = _refusal(one, there, own) if held else None
        if refusal is not None:
            lines += [f"{one.process}: {text}" for text in refusal.lines]
            commands += [_in_namespace(one, command) for command in refusal.fix.split("; ")]
        elif held and not one.has_route_to(there[0]):
            route = one.route_to(there[0])
            refused = "" if route is None else f", refuses packets to {route.destination}"
            lost += [f"{address}, {one.process}{refused}" for address in held]
            pids.append(one.pid)
    if lines:
        yield Finding(
            code="container-route",
            severity="warning",
            cause="routes or policy rules inside containers refuse their packets to other hosts",
            evidence=some(lines),
            fix="; ".join(commands[:NAMED]),
        )
    if lost:
        yield Finding(
            code="container-route",
            severity="info",
            cause="these containers have no route to other hosts",
            evidence=some(lost),
            fix=f"nsenter --net --target {pids[0]} ip -{seen.family} route"
            "  # the default route must lead to the bridge, and no route may refuse the packets",
        )


def _addresses_of_peers(seen: Observed) -> list[IpAddress]:
    """Return an address of a container of each of some peers."""
    return [peer.network_address + 2 for peer in islice(seen.membership.peers, PEERS_ASKED)]


def _gateways(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers send packets for other hosts to a gateway that is neither this host
    nor a container of this host.
    """
    own, peers = seen.membership.subnet, _addresses_of_peers(seen)
    if own is None or not peers:
        return
    bridges = [(name, seen.interfaces.named(name)) for name in seen.ports]
    here = [
        held.address.ip
        for _, bridge in bridges
        if bridge is not None
        for held in bridge.addresses
        if held.address.ip in own
    ]
    known = {*here, *(address for one in seen.containers for address in one.addresses)}
    wrong, lost = dict[str, str](), dict[str, str]()
    for one in seen.containers if here else ():
        if not any(held in own for held in one.addresses):
            continue
        for there in peers:
            route = one.route_to(there)
            if route is None or route.is_refused or route.gateway is None:
                continue
            if route.gateway == own[1] and route.gateway not in known:
                bridge = _bridge_of(seen, one)
                again = f"ip address add {own[1]}/{own.prefixlen} dev {quote(bridge)}"
                lost[f"{one.process}: {route.destination} via {route.gateway}"] = again
            elif route.gateway in own and route.gateway not in known:
                rest = replace(one, routes=tuple(each for each in one.routes if each != route)).route_to(
                    there
                )
                is_spare = rest is not None and rest.gateway in here
                command = (
                    f"ip -{seen.family} route delete {route.destination} via {route.gateway}"
                    if is_spare
                    else f"ip -{seen.family} route replace {route.destination} via {here[0]}"
                )
                line = f"{one.process}: {route.destination} via {route.gateway}"
                wrong[line] = _in_namespace(one, command)
        for answer in one.answers:
            gateway, main = answer.gateway, one.route_to(answer.destination)
            if gateway is None or gateway not in own or gateway in known:
                continue
            decision = _decision(one, answer, own)
            if decision is not None and (main is None or main.gateway != gateway):
                wrong[f"{one.process}: {'; '.join(decision.lines)}"] = _in_namespace(one, decision.fix)
    if lost:
        held = ", ".join(map(str, here))
        yield Finding(
            code="container-gateway",
            severity="error",
            cause=f"the bridge of the containers has lost {own[1]}, the gateway of its containers",
            evidence=(f"{' and '.join(seen.ports)}: {held}, without {own[1]}", *some([*lost])),
            fix="; ".join([*dict.fromkeys(lost.values())][:NAMED]),
        )
    if wrong:
        yield Finding(
            code="container-gateway",
            severity="warning",
            cause="containers send packets for other hosts to an address that neither this host nor a"
            " container has",
            evidence=some([*wrong]),
            fix="; ".join([*dict.fromkeys(wrong.values())][:NAMED]),
        )


def _bridge_of(seen: Observed, one: ContainerNamespace) -> str:
    """Return the bridge of a container; the first bridge of this host if it is unknown."""
    names = {interface.index: interface.name for interface in seen.interfaces.interfaces}
    ports = {names.get(link.peer) for link in one.links}
    return next((name for name, held in seen.ports.items() if ports & held.keys()), next(iter(seen.ports)))


def _sources(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that packets of containers to other hosts have a source outside of the subnet of this
    host, although they leave by a link in this subnet. The replies do not return to this host.
    """
    own, wrong = seen.membership.subnet, dict[str, str]()
    if own is None:
        return
    for one in seen.containers:
        links = {link.name: min(held, key=int) for link in one.links if (held := link.addresses_in(own))}
        for answer in one.answers:
            source = answer.source
            if answer.error or source is None or source.version != seen.family or source in own:
                continue
            if answer.link not in links or _is_known_here(seen, source):
                continue
            route = one.route_to(answer.destination)
            if route is None or route.gateway != answer.gateway:
                continue
            line = f"{one.process}: {route.destination} by {answer.link} has the source {source}"
            wrong[line] = _in_namespace(one, _replacement(route.destination, answer, links[answer.link]))
    if wrong:
        yield Finding(
            code="container-source",
            severity="warning",
            cause="packets of containers to other hosts have a wrong source address, which is not in the"
            f" subnet of this host, {own}, so no reply returns",
            evidence=some([*wrong]),
            fix="; ".join([*dict.fromkeys(wrong.values())][:NAMED]),
        )


def _replacement(destination: IpNetwork, answer: InnerAnswer, source: IpAddress) -> str:
    via = "" if answer.gateway is None else f" via {answer.gateway}"
    return f"ip -{source.version} route replace {destination}{via} dev {quote(answer.link)} src {source}"


def _is_known_here(seen: Observed, address: IpAddress) -> bool:
    """Return whether this host sends packets for an address to a bridge of its containers."""
    route = main_route(seen, address)
    return route is not None and route.link in seen.ports


def _prefixes(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers expect the containers of other hosts on their own link."""
    own, peer = seen.membership.subnet, next(iter(seen.membership.peers), None)
    if own is None or peer is None:
        return
    wide = {
        f"{one.process}: {prefix} is on the link": one.pid
        for one in seen.containers
        if (prefix := one.expects_on_link(peer.network_address + 2, own)) is not None
    }
    if wide:
        yield Finding(
            code="container-prefix",
            severity="warning",
            cause="containers do not send packets for other hosts to their gateway, because the prefix of"
            f" their address is wider than the subnet of this host, {own}",
            evidence=some([*wide]),
            fix=DOCKER_FIX,
        )


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    _refused,
    _prefixes,
    _gateways,
    _sources,
)
