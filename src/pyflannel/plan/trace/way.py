"""Follows one packet between containers. The packet leaves this host, arrives at this host, or passes between
two containers of this host.

A generator of steps may continue after a step that fails; `follow` stops at that step.
"""

from collections.abc import Iterator
from shlex import quote

from msgspec.structs import replace

from pyflannel.model.lease import LeaseEntry
from pyflannel.model.netfilter import Ruleset
from pyflannel.model.network_config import IpAddress
from pyflannel.model.probe import PacketEvent, TraceReport, TraceStep, TraceStepName
from pyflannel.model.route import RouteAnswer
from pyflannel.plan.doctor.flows import neighbour_flows
from pyflannel.plan.doctor.observed import resolution
from pyflannel.plan.doctor.packets import FORWARDING, forwarded, forwarding_on, loosened
from pyflannel.plan.trace.facts import (
    LOOK,
    REPAIR,
    Facts,
    Leg,
    RouteQuestion,
    TraceLink,
    UnansweredError,
    fails,
    host_of,
    link_down,
    passes,
    unknown,
)
from pyflannel.plan.trace.tunnel import from_wire, is_tunnel, rules, through


def follow(facts: Facts) -> TraceReport | RouteQuestion:
    """Return the path of the packet, or a query that the kernel must answer first.

    The source or the destination must be on this host.
    """
    leg = Leg(source=facts.source, destination=facts.destination)
    steps: list[TraceStep] = []
    try:
        for step in _outgoing(facts, leg) if facts.is_here(leg.source) else _incoming(facts, leg):
            steps.append(step)
            if step.state == "fails":
                break
    except UnansweredError as error:
        return error.question
    failed = steps[-1] if steps[-1].state == "fails" else None
    doubt = next((one for one in steps if one.state == "unknown" and one.name == "rule"), None)
    if failed is not None and doubt is not None and failed.name in ("peer", "container"):
        cause = f"{failed.cause}; or a rule of this host drops the packet: {doubt.found}"
        failed = replace(failed, cause=cause)
    return TraceReport(
        source=facts.source,
        destination=facts.destination,
        ok=failed is None,
        steps=tuple(steps),
        stops=None if failed is None else failed.name,
        cause=None if failed is None else failed.cause,
        fix=None if failed is None else failed.fix,
    )


def with_text(event: PacketEvent, ruleset: Ruleset) -> PacketEvent:
    """Return the decision with the text of its rule, if the rules of this host contain it."""
    for chain in ruleset:
        if chain.program == "nft" and (chain.family, chain.table) == (event.family, event.table):
            for rule in chain.chains.get(event.chain, ()):
                if rule.number == event.handle:
                    return replace(event, rule=rule.text)
    return event


def _outgoing(facts: Facts, leg: Leg) -> Iterator[TraceStep]:
    holder, arrives_at = facts.interfaces.holder(leg.source), ""
    if holder is not None:
        yield passes("host", f"{leg.source} is an address of this host, on {holder.name}")
    else:
        yield from _to_container(facts, leg.source)
        yield from _from_container(facts, leg)
        arrives_at = facts.route("host out", leg.source).link or ""
        yield from _forwarding(facts, arrives_at)
    answer = facts.route(
        "container out" if arrives_at else "host out", leg.destination, leg.source, arrives_at or None
    )
    yield from _routed(facts, leg, answer, arrives_at)
    link = facts.links.get(answer.link or "")
    if answer.is_local or link is None:
        return
    if facts.is_here(leg.destination):
        yield from _to_container(facts, leg.destination)
        return
    yield from through(facts, leg, link, answer.gateway or leg.destination)
    peer = facts.lease_of(leg.destination)
    if peer is not None and not leg.is_way_back:
        yield from _answer(facts, leg, peer)


def _from_container(facts: Facts, leg: Leg) -> Iterator[TraceStep]:
    """Yield a failed step if the source container has no route to the destination, refuses the packet, or
    sends it to a gateway that is not this host.
    """
    bridge = facts.bridge_of(leg.source)
    held = () if bridge is None else (held.address for held in bridge.addresses)
    here = next((one.ip for one in held if leg.source in one.network), None)
    for one in (one for one in facts.containers if leg.source in one.addresses):
        command = f"nsenter --net --target {one.pid} ip -{facts.family} route"
        route = one.route_to(leg.destination)
        known = [
            f"{known.destination}{'' if known.gateway is None else f' via {known.gateway}'}"
            for known in one.routes
            if known.destination.version == facts.family and not known.is_refused
        ]
        found = f"the routes in the namespace of {one.process}: {', '.join(known) or 'none'}"
        if route is None:
            cause = f"the container {leg.source} has no route to {leg.destination}"
            yield fails("container", found, cause, f"{command} add default via {here or 'ADDRESS'}")
        elif route.is_refused:
            cause = f"the container {leg.source} refuses packets to {route.destination}"
            is_default = not route.destination.prefixlen
            fix = f"add default via {here or 'ADDRESS'}" if is_default else f"delete {route.destination}"
            yield fails("container", found, cause, f"{command} {fix}")
        elif route.gateway is not None and here is not None and _is_unknown(facts, route.gateway, here):
            cause = (
                f"the container {leg.source} sends the packet to {route.gateway}, an address that neither"
                " this host nor a container has"
            )
            yield fails("container", found, cause, f"{command} replace {route.destination} via {here}")


def _is_unknown(facts: Facts, gateway: IpAddress, here: IpAddress) -> bool:
    """Return whether a gateway is on the bridge with the address `here`, but no container and no link of this
    host has it.
    """
    bridge = facts.bridge_of(here)
    if bridge is None or not any(gateway in held.address.network for held in bridge.addresses):
        return False
    return facts.interfaces.holder(gateway) is None and not any(
        gateway in one.addresses for one in facts.containers
    )


_NO_ROUTE = "flannelctl doctor  # names policy rules and routes of other programs; then flannelctl status"

_FORWARDING_OF_IPV6 = f"{forwarding_on(6)}  # 'flannelctl doctor' keeps routes from router advertisements"


def _forwarding(facts: Facts, link: str) -> Iterator[TraceStep]:
    is_forced = facts.family == 6 and link not in facts.unforwarded
    if facts.forwards is False and not is_forced:
        yield fails(
            "route",
            f"{FORWARDING[facts.family]} = 0",
            "the host forwards no packets",
            forwarding_on(facts.family) if facts.family == 4 else _FORWARDING_OF_IPV6,
        )
    elif facts.family == 4 and link in facts.unforwarded:
        yield fails(
            "route",
            f"net.ipv4.conf.{link}.forwarding = 0",
            f"the host does not forward the packets that arrive at {link}",
            forwarded(link),
        )


def _routed(facts: Facts, leg: Leg, answer: RouteAnswer, arrives_at: str) -> Iterator[TraceStep]:
    """Yield the route of the packet, and the filter rules on this route."""
    link = facts.links.get(answer.link or "")
    peer = facts.lease_of(leg.destination)
    hop = answer.gateway or leg.destination
    if answer.refused_at is not None:
        yield fails(
            "route",
            answer.text,
            f"rp_filter drops the packet at {answer.refused_at}: the route to its source uses another link",
            loosened(answer.refused_at),
        )
    elif answer.is_local:
        own = facts.own is not None and leg.destination in facts.own
        if facts.interfaces.holder(leg.destination) is None and peer is not None and not own:
            yield fails(
                "route",
                answer.text,
                f"this host takes the packets to {leg.destination} itself, by a route in its table local",
                f"ip -{facts.family} route delete local {leg.destination} table local",
            )
        yield passes("route", answer.text)
        yield from rules(facts, leg.flow(facts, arrives_at or "lo", ""))
        return
    elif link is None:
        yield fails("route", answer.text, f"the kernel has no route to {leg.destination}", _NO_ROUTE)
        return
    elif (
        peer is not None
        and not is_tunnel(link)
        and not facts.is_here(leg.destination)
        and peer.public_ip not in (hop, leg.destination)
    ):
        cause = (
            f"the packet leaves by {link.name} to {hop}, not to the holder of {peer.subnet}, {host_of(peer)}"
        )
        yield fails("route", answer.text, cause, _NO_ROUTE)
    yield passes("route", answer.text)
    if link is not None:
        yield from rules(facts, leg.flow(facts, arrives_at, link.name))


def _answer(facts: Facts, leg: Leg, peer: LeaseEntry) -> Iterator[TraceStep]:
    """Yield the answer of the other host. If there is no answer, the path of the reply on this host
    precedes this step.
    """
    probed = facts.probed
    if probed is None:
        yield unknown("peer", host_of(peer), "no probe could be sent: run flannelctl as root")
        return
    text = "; ".join(f"{one.name} {one.destination} {one.state}" for one in probed.steps)
    if probed.ok:
        yield passes("peer", f"{host_of(peer)}: {text}")
        return
    for step in (_outgoing if facts.is_here(leg.destination) else _incoming)(facts, leg.reply):
        yield replace(step, is_way_back=True)
    name: TraceStepName = "underlay" if probed.stops == "underlay" else "peer"
    yield fails(name, f"{host_of(peer)}: {text}", probed.cause or "no answer", probed.fix or LOOK)


def _incoming(facts: Facts, leg: Leg) -> Iterator[TraceStep]:
    peer = facts.lease_of(leg.source)
    if peer is None:
        yield fails("peer", "no lease", f"no host has a lease for {leg.source}", "flannelctl leases")
        return
    if not leg.is_way_back:
        yield passes("peer", f"{host_of(peer)} holds {peer.subnet}")
    back = facts.route("host out", leg.source)
    link = facts.links.get(back.link or "")
    is_direct = leg.source == peer.public_ip or (back.gateway or leg.source) == peer.public_ip
    if link is None or not (is_tunnel(link) or is_direct):
        cause = f"this host has no route back to {leg.source} through the overlay"
        yield fails("route", back.text, cause, REPAIR)
        return
    if not link.is_up:
        yield link_down("device", link)
    yield from from_wire(facts, leg, peer, link)
    yield from _forwarding(facts, link.name) if facts.interfaces.holder(leg.destination) is None else ()
    answer = facts.route("container in", leg.destination, leg.source, link.name)
    yield from _routed(facts, leg, answer, link.name)
    if not answer.is_local:
        yield from _to_container(facts, leg.destination)
        yield from _from_container(facts, leg.reply)
    if not leg.is_way_back:
        yield from _answer(facts, leg, peer)


def _to_container(facts: Facts, address: IpAddress) -> Iterator[TraceStep]:
    """Yield the steps of the bridge and of the container that has the address."""
    bridge = facts.bridge_of(address)
    if bridge is not None and not bridge.is_up:
        yield link_down("bridge", TraceLink(name=bridge.name))
        return
    near = facts.route("host out", address)
    link = facts.links.get(near.link or "")
    if near.is_local:
        return
    if link is None or near.gateway is not None or (bridge is not None and link.name != bridge.name):
        place = bridge.name if bridge is not None else "a bridge"
        yield fails(
            "bridge", near.text, f"packets to {address} do not leave through {place} of this host", LOOK
        )
        return
    if link.kind == "bridge" and not link.has_carrier:
        found = f"ip link show {link.name}: NO-CARRIER"
        cause = f"no port of {link.name} is up: no container is connected to it"
        yield fails("bridge", found, cause, _LOOK_INSIDE)
        return
    mac = facts.neighbours.get((link.name, address))
    if mac is None:
        found = f"ip neighbour show {address} dev {link.name}: no MAC address"
        yield from _discovery(facts, link, address)
        cause = f"no container at {link.name} has the address {address}: none answers {resolution(address)}"
        yield fails("container", found, cause, f"{_LOOK_INSIDE}; or docker inspect CONTAINER")
        return
    yield from _port(facts, link, address, mac)
    found = f"{address} is {mac} at {link.name}"
    if address in facts.silent:
        pid = next((str(one.pid) for one in facts.containers if address in one.addresses), "PID")
        cause = (
            "it does not answer ICMP echo, so its own rules, routes or IPsec policies may drop packets:"
            f" nsenter --net --target {pid} nft list ruleset"
        )
        yield unknown("container", found, cause)
    else:
        yield passes("container", found)


_LOOK_INSIDE = f"{LOOK}  # names ended containers, closed ports, lost addresses and wrong neighbour entries"


def _discovery(facts: Facts, link: TraceLink, address: IpAddress) -> Iterator[TraceStep]:
    """Yield the filter rule that drops neighbour discovery at the bridge of a container."""
    held = facts.interfaces.named(link.name)
    own = () if held is None else (one.address.ip for one in held.addresses if address in one.address.network)
    for here in own:
        for flow in neighbour_flows(here, address, link.name):
            yield from (step for step in rules(facts, flow) if step.state == "fails")


def _port(facts: Facts, link: TraceLink, address: IpAddress, mac: str) -> Iterator[TraceStep]:
    if link.kind != "bridge":
        return
    port = facts.links.get(facts.ports.get((link.name, mac), ""))
    if port is not None and port.is_forwarding and port.is_up:
        yield passes("bridge", f"{link.name}, port {port.name}")
    elif port is not None:
        found = f"bridge link show dev {port.name}: not forwarding"
        cause = f"the port {port.name} of {link.name} forwards no frames"
        yield fails("bridge", found, cause, f"ip link set {quote(port.name)} up")
    elif address in facts.silent:
        found = f"bridge fdb show br {link.name}: no port for {mac}"
        cause = f"no port of {link.name} leads to {address}: its veth is down, or the container has ended"
        yield fails("bridge", found, cause, _LOOK_INSIDE)
    else:
        yield passes("bridge", f"{link.name}, every port")
