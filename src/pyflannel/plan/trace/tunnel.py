"""The part of the path between the device of the tunnel and the underlay, in both directions."""

from collections.abc import Iterator
from ipaddress import ip_address
from shlex import quote
from typing import Literal

from pyflannel.model.fast_path import Role
from pyflannel.model.lease import LeaseEntry
from pyflannel.model.link import Vxlan
from pyflannel.model.network_config import Family, IpAddress
from pyflannel.model.probe import TraceStep
from pyflannel.model.wireguard import WireguardPeer
from pyflannel.plan.doctor.filters import dropped_by, is_of_tunnel, listed, redirected_by
from pyflannel.plan.doctor.flows import Flow, neighbour_flows, tunnel_flow, tunnel_packet
from pyflannel.plan.doctor.ipsec import blocking_policies, policy_removal, policy_text
from pyflannel.plan.doctor.observed import resolution
from pyflannel.plan.doctor.packets import loosened
from pyflannel.plan.netfilter import IN, OUT, judge, why
from pyflannel.plan.trace.facts import (
    LOOK,
    REPAIR,
    Facts,
    Leg,
    TraceLink,
    fails,
    host_of,
    link_down,
    passes,
    unknown,
)


def rules(facts: Facts, flow: Flow) -> Iterator[TraceStep]:
    """Yield the filter rule or the IPsec policy that drops or changes a packet, or one step if no rule
    does.
    """
    for policy in blocking_policies(flow.packet, flow.hooks, facts.interfaces)[:1]:
        text = policy_text(policy)
        yield fails("rule", text, f"an IPsec policy drops {flow.noun}", policy_removal(policy))
    judged = judge(flow.packet, facts.ruleset, flow.hooks)
    ports = sorted({flow.packet.in_port, flow.packet.out_port} - {""})
    place = f"hooks {', '.join(flow.hooks)}" + (
        f", and those of the bridge at {', '.join(ports)}" if ports else ""
    )
    if judged.chain is not None and judged.kind in ("drop", "reject", "expire", "sample"):
        finding = dropped_by(judged.chain, judged.rule, flow, judged.kind)
        yield fails("rule", listed(judged.chain, judged.rule, flow), finding.cause, finding.fix)
    elif judged.chain is not None:
        reason = "" if judged.rule is None else why(judged.rule, flow.packet)
        yield unknown(
            "rule",
            listed(judged.chain, judged.rule, flow),
            f"it may drop the packet: pyflannel cannot evaluate {reason or 'it'}",
        )
    elif judged.redirection is not None and is_of_tunnel(flow):
        finding = redirected_by(*judged.redirection, flow)
        yield fails("rule", finding.evidence[0], finding.cause, finding.fix)
    elif facts.rules_unread is not None:
        yield unknown("rule", place, f"rules could not be read: {facts.rules_unread}")
    elif judged.translation is not None:
        yield passes("rule", f"{listed(*judged.translation)}: changes the source address")
    else:
        yield passes("rule", f"{place}: no rule drops the packet")


def is_tunnel(link: TraceLink) -> bool:
    """Return whether packets are sent to other hosts encapsulated in other packets at this link."""
    return link.kind in ("vxlan", "tun", "wireguard")


def through(facts: Facts, leg: Leg, link: TraceLink, hop: IpAddress) -> Iterator[TraceStep]:
    """Yield the steps from the device of the route to the underlay."""
    if not link.is_up:
        yield link_down("device", link)
    elif link.vxlan is not None:
        yield from _by_vxlan(facts, leg, link, link.vxlan, hop)
    elif _is_encrypted(facts, link):
        yield from _by_wireguard(facts, leg, link)
    elif link.kind == "tun":
        yield from _by_udp(facts, leg, link)
    else:
        yield from _onto_wire(facts, link, hop)


def _is_encrypted(facts: Facts, link: TraceLink) -> bool:
    """Return whether WireGuard handles the link, either in the kernel, or by wireguard-go on a TUN device."""
    return link.kind == "wireguard" or any(one.link == link.name for one in facts.encryption)


def _by_vxlan(facts: Facts, leg: Leg, link: TraceLink, vxlan: Vxlan, hop: IpAddress) -> Iterator[TraceStep]:
    mac = facts.neighbours.get((link.name, hop))
    if mac is None:
        found = f"ip neighbour show {hop} dev {link.name}: no MAC address"
        yield fails("neighbour", found, f"{link.name} has no neighbour entry for {hop}", REPAIR)
        return
    yield passes("neighbour", f"{hop} is {mac} on {link.name}")
    entry, peer = facts.fdb.get((link.name, mac)), facts.lease_of(leg.destination)
    if entry is None:
        found = f"bridge fdb show dev {link.name}: no entry for {mac}"
        yield fails("fdb", found, f"{link.name} has no FDB entry for {mac}", REPAIR)
        return
    text = f"{mac} is behind {entry.destination} on {link.name}"
    if peer is not None and entry.destination != peer.public_ip:
        yield fails("fdb", text, f"{host_of(peer)} holds {peer.subnet}, not {entry.destination}", REPAIR)
    yield passes("fdb", text)
    yield from _outer(facts, entry.destination, vxlan.port, "vxlan", vxlan.local)


def _by_udp(facts: Facts, leg: Leg, link: TraceLink) -> Iterator[TraceStep]:
    """Yield the steps of the udp backend: a program of the fast path or, without a program, the forwarder."""
    peer = facts.lease_of(leg.destination)
    program = facts.program(Role.ENCAPSULATE, link.name)
    entries = [one for one in facts.program_peers if leg.destination in one.subnet and one.is_direct]
    if program is not None and entries:
        to = max(entries, key=lambda one: one.subnet.prefixlen)
        text = f"{program.title} sends to {to.address}:{to.port}"
        if peer is not None and to.address != peer.public_ip:
            yield fails("program", text, f"{host_of(peer)} holds {peer.subnet}, not {to.address}", REPAIR)
        yield passes("program", text)
        yield from _outer_route(facts, to.address, program.tunnel.address)
        return
    forwarder = facts.forwarder
    if forwarder is None or forwarder.link != link.name:
        found = f"no process serves {link.name}"
        yield fails("forwarder", found, f"no forwarder runs for {link.name}", REPAIR)
        return
    if not forwarder.is_attached:
        found = f"the forwarder is not attached to {link.name}"
        yield fails("forwarder", found, found, REPAIR)
    routes = [one for one in facts.forwarder_peers if leg.destination in one.subnet]
    if not routes:
        found = f"its table has no entry for {leg.destination}"
        yield fails("forwarder", found, f"the forwarder drops the packet: {found}", REPAIR)
        return
    chosen = max(routes, key=lambda one: one.subnet.prefixlen)
    text = f"the forwarder sends {chosen.subnet} to {chosen.address}:{chosen.port}"
    if peer is not None and chosen.address != peer.public_ip:
        yield fails("forwarder", text, f"{host_of(peer)} holds {peer.subnet}, not {chosen.address}", REPAIR)
    yield passes("forwarder", text)
    yield from _outer(facts, chosen.address, chosen.port, "udp", forwarder.listen_address)


def _by_wireguard(facts: Facts, leg: Leg, link: TraceLink) -> Iterator[TraceStep]:
    one = _wireguard_peer(facts, link, leg.destination)
    if one is None:
        found = f"wg show {link.name}: no peer has {leg.destination} in its allowed IPs"
        yield fails("encryption", found, f"{link.name} drops the packet: no peer accepts it", REPAIR)
        return
    if not one.endpoint:
        found = f"wg show {link.name}: peer {one.public_key} has no endpoint"
        yield fails("encryption", found, "the address of the peer is unknown until it sends", LOOK)
        return
    yield passes("encryption", f"peer {one.public_key} of {link.name} at {one.endpoint}")
    address, port = _endpoint(one.endpoint)
    if address is not None:
        yield from _outer(facts, address, port, "wireguard", None)


def _wireguard_peer(facts: Facts, link: TraceLink, address: IpAddress) -> WireguardPeer | None:
    return next(
        (
            one
            for one in facts.encryption
            if one.link == link.name and any(address in net for net in one.allowed)
        ),
        None,
    )


def _endpoint(text: str) -> tuple[IpAddress | None, int]:
    """Return the address and the port of an endpoint, for example `[fd00::1]:51820`."""
    address, _, port = text.rpartition(":")
    try:
        return ip_address(address.strip("[]")), int(port)
    except ValueError:
        return None, 0


def _outer(
    facts: Facts, to: IpAddress, port: int, backend: str, local: IpAddress | None
) -> Iterator[TraceStep]:
    """Yield the steps of the tunnel packet: filter rules, and the underlay."""
    answer = facts.route("host out", to, local)
    if answer.link is not None:
        sender = local or _address_on(facts, answer.link, to.version) or to
        uplink = facts.port_to(answer.link, answer.gateway or to)
        packet = tunnel_packet(sender, to, backend, port, oif=answer.link, out_port=uplink)
        yield from rules(facts, tunnel_flow(packet, port, OUT))
    yield from _outer_route(facts, to, local)


def _address_on(facts: Facts, link: str, family: Family) -> IpAddress | None:
    """Return the first address of a link in a family, which is not link-local."""
    found = facts.interfaces.named(link)
    addresses = (
        ()
        if found is None
        else (held.address.ip for held in found.addresses if family == 4 or held.is_global)
    )
    return next((one for one in addresses if one.version == family), None)


def _outer_route(facts: Facts, to: IpAddress, source: IpAddress | None) -> Iterator[TraceStep]:
    answer = facts.route("host out", to, source)
    link = facts.links.get(answer.link or "")
    if link is None or answer.is_local:
        fix = f"ip route get {to}"
        yield fails("underlay", answer.text, f"tunnel packets to {to} do not leave this host", fix)
        return
    yield from _onto_wire(facts, link, answer.gateway or to)


def _onto_wire(facts: Facts, link: TraceLink, hop: IpAddress) -> Iterator[TraceStep]:
    if not link.is_up:
        yield link_down("underlay", link)
    elif not link.has_carrier:
        found = f"ip link show {link.name}: NO-CARRIER"
        yield fails("underlay", found, f"{link.name} has no carrier", "connect the cable of the interface")
    mac = facts.neighbours.get((link.name, hop))
    if mac is not None:
        yield passes("underlay", f"{link.name}, to {hop} at {mac}")
    elif not link.resolves and link.is_ethernet:
        cause = f"{resolution(hop)} is off on {link.name}, so it sends no frame to {hop}"
        found = f"ip link show {link.name}: NOARP"
        yield fails("underlay", found, cause, f"ip link set {quote(link.name)} arp on")
    elif not link.resolves:
        yield passes("underlay", f"{link.name}, to {hop}")
    elif facts.probed is None:
        yield unknown(
            "underlay",
            f"{link.name}, to {hop}",
            "the kernel has not asked for its MAC address yet, because no packet was sent",
        )
    else:
        source = _address_on(facts, link.name, hop.version)
        for flow in () if source is None else neighbour_flows(source, hop, link.name):
            yield from (step for step in rules(facts, flow) if step.state == "fails")
        found = f"ip neighbour show {hop} dev {link.name}: no MAC address"
        cause = f"{hop} does not answer {resolution(hop)} on {link.name}"
        yield fails("underlay", found, cause, f"ping {hop}  # check that this host runs and has this address")


def from_wire(facts: Facts, leg: Leg, peer: LeaseEntry, link: TraceLink) -> Iterator[TraceStep]:
    """Yield the steps of the tunnel packet of the peer, until the inner packet is at the tunnel device."""
    if link.vxlan is not None:
        yield from _arrives(facts, peer.public_ip, link.vxlan.local, link.vxlan.port, "vxlan")
        yield passes("device", f"{link.name} has VNI {link.vxlan.vni} and port {link.vxlan.port}")
    elif _is_encrypted(facts, link):
        if port := facts.listen_ports.get(link.name):
            one = _wireguard_peer(facts, link, leg.source)
            sender, _ = _endpoint("" if one is None else one.endpoint)
            yield from _arrives(facts, sender or peer.public_ip, None, port, "wireguard")
        yield from _decrypted(facts, leg, link)
    elif link.kind == "tun":
        yield from _by_udp_in(facts, peer, link)


def _decrypted(facts: Facts, leg: Leg, link: TraceLink) -> Iterator[TraceStep]:
    one = _wireguard_peer(facts, link, leg.source)
    if one is None:
        found = f"wg show {link.name}: no peer has {leg.source} in its allowed IPs"
        yield fails("encryption", found, f"{link.name} drops packets from {leg.source}", REPAIR)
    else:
        yield passes("encryption", f"peer {one.public_key} of {link.name} may send from {leg.source}")


def _by_udp_in(facts: Facts, peer: LeaseEntry, link: TraceLink) -> Iterator[TraceStep]:
    forwarder = facts.forwarder
    decap = next((one for one in facts.programs if one.role is Role.DECAPSULATE and one.is_current), None)
    if decap is not None and decap.tunnel.device == link.name:
        yield from _reaches(facts, peer.public_ip, decap.tunnel.address)
        yield passes("program", f"{decap.title} unpacks the packet")
    elif forwarder is None or forwarder.link != link.name or not forwarder.is_attached:
        found = f"no process serves {link.name}"
        yield fails("forwarder", found, f"no forwarder receives packets for {link.name}", REPAIR)
    else:
        yield from _arrives(facts, peer.public_ip, forwarder.listen_address, forwarder.port, "udp")
        yield passes("forwarder", f"the forwarder unpacks the packet into {link.name}")


def _reaches(facts: Facts, sender: IpAddress, local: IpAddress | None) -> Iterator[TraceStep]:
    """Yield the interface at which tunnel packets of a peer with this address arrive."""
    answer = facts.route("host out", sender, local)
    link = facts.links.get(answer.link or "")
    if link is None:
        cause = f"this host has no route to {sender}"
        yield fails("underlay", answer.text, cause, f"ip route get {sender}")
        return
    if local is not None:
        checked = facts.route("tunnel in", local, sender, link.name)
        if checked.refused_at is not None:
            cause = f"rp_filter drops tunnel packets of {sender} at {link.name}"
            yield fails("underlay", checked.text, cause, loosened(link.name))
    yield passes("underlay", f"tunnel packets of {sender} arrive at {link.name}")


def _arrives(
    facts: Facts,
    sender: IpAddress,
    local: IpAddress | None,
    port: int,
    backend: Literal["vxlan", "udp", "wireguard"],
) -> Iterator[TraceStep]:
    """Yield the underlay and the filter rules for a tunnel packet of a peer with this address."""
    yield from _reaches(facts, sender, local)
    back = facts.route("host out", sender, local)
    link = back.link or ""
    target = local or _address_on(facts, link, sender.version)
    if target is not None:
        uplink = facts.port_to(link, back.gateway or sender)
        packet = tunnel_packet(sender, target, backend, port, iif=link, in_port=uplink)
        yield from rules(facts, tunnel_flow(packet, port, IN))
