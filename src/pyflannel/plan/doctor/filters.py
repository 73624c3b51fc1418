"""Filter rules that drop or change packets of the overlay. To find these rules, all rules are evaluated for
packets of the overlay.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from ipaddress import IPv6Address, ip_address
from itertools import islice
from typing import Literal, NamedTuple

from msgspec.structs import replace

from pyflannel.model.netfilter import (
    ICMPV6,
    TCP,
    UDP,
    BaseChain,
    Hook,
    Judgement,
    Match,
    Packet,
    Rule,
    Ruleset,
)
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.status import Finding, Severity
from pyflannel.plan.doctor.observed import NAMED, Observed, some
from pyflannel.plan.netfilter import IN, OUT, THROUGH, judge, why

_FEWEST_PEERS, _MOST_PEERS = 4, 256
"""Limits of the number of peers for whose packets the rules are evaluated."""

_MOST_EVALUATED = 30_000
"""Maximum number of evaluated rules, unless _FEWEST_PEERS need more. They take about 0.3 s."""

_FLOWS_OF_PEER = 4

_DROPS = 4
"""Maximum number of chains that are named for one flow."""

_ANY_PORT, _SERVICE = 40000, 29123
_NO_BRIDGE, _NO_PORT = "docker0", "veth0"
"""Names of the bridge and of the port that the first container will have, used while none exists."""

PORTS = 8
"""Maximum number of ports of a bridge for which the rules of the family bridge are evaluated."""


TUNNEL_PACKETS = "tunnel packets"
"""The beginning of the noun of a flow in the tunnel."""


class Flow(NamedTuple):
    """Packets of one kind, with the name that a finding uses for them, and the conditions by which a rule
    accepts them.
    """

    code: str
    noun: str
    accepted: str
    packet: Packet
    hooks: tuple[Hook, ...]
    accepts: tuple[tuple[str, str], ...]
    """Pairs of conditions, of iptables and of nft, that match all packets of the kind."""

    firewalld: str
    ufw: str
    severity: Severity = "error"


def tunnel_flow(packet: Packet, port: int, hooks: tuple[Hook, ...], *, severity: Severity = "error") -> Flow:
    """Return the flow of a tunnel packet that arrives (hooks IN) or leaves (hooks OUT)."""
    noun = f"UDP port {port}"
    is_in = hooks == IN
    return Flow(
        code="tunnel-dropped" if is_in else "tunnel-not-sent",
        noun=f"{TUNNEL_PACKETS} of peers to {noun}" if is_in else f"{TUNNEL_PACKETS} to {noun} of peers",
        accepted=noun,
        packet=packet,
        hooks=hooks,
        accepts=((f"-p udp --dport {port}", f"udp dport {port}"),),
        firewalld=f"firewall-cmd --permanent --add-port={port}/udp; firewall-cmd --reload",
        ufw=f"ufw allow {port}/udp" if is_in else f"ufw allow out {port}/udp",
        severity=severity,
    )


def overlay_flow(packet: Packet, network: IpNetwork, hooks: tuple[Hook, ...] = THROUGH) -> Flow:
    """Return the flow of a packet between containers of different hosts."""
    protocol = "ip" if network.version == 4 else "ip6"
    return Flow(
        code="forward-dropped",
        noun=f"packets of {network}",
        accepted=str(network),
        packet=packet,
        hooks=hooks,
        accepts=(
            (f"-s {network}", f"{protocol} saddr {network}"),
            (f"-d {network}", f"{protocol} daddr {network}"),
        ),
        firewalld=f"firewall-cmd --permanent --zone=trusted --add-source={network}; firewall-cmd --reload",
        ufw=f"ufw route allow from {network}; ufw route allow to {network}",
    )


def tunnel_packet(
    source: IpAddress,
    destination: IpAddress,
    backend: str,
    port: int,
    *,
    iif: str = "",
    oif: str = "",
    in_port: str = "",
    out_port: str = "",
) -> Packet:
    """Return the outer packet of a tunnel; vxlan computes the source port from the inner packet."""
    return Packet(
        source=source,
        destination=destination,
        protocol=UDP,
        source_port=_ANY_PORT if backend == "vxlan" else port,
        destination_port=port,
        iif=iif,
        oif=oif,
        in_port=in_port,
        out_port=out_port,
    )


def container_packet(
    source: IpAddress,
    destination: IpAddress,
    *,
    iif: str = "",
    oif: str = "",
    in_port: str = "",
    out_port: str = "",
) -> Packet:
    """Return the first packet of a TCP connection of a container."""
    return Packet(
        source=source,
        destination=destination,
        protocol=TCP,
        source_port=_ANY_PORT,
        destination_port=_SERVICE,
        iif=iif,
        oif=oif,
        in_port=in_port,
        out_port=out_port,
    )


def evaluated_peers(seen: Observed) -> int:
    """Return the number of peers for whose packets the rules are evaluated, if there are so many peers. With
    fewer rules, it is larger.
    """
    rules = sum(len(some) for chain in seen.ruleset for some in chain.chains.values())
    return min(_MOST_PEERS, max(_FEWEST_PEERS, _MOST_EVALUATED // (_FLOWS_OF_PEER * max(rules, 1))))


def tunnel_flows(seen: Observed) -> Iterator[Flow]:
    """Yield tunnel packets from and to peers."""
    status = seen.status
    backend, underlay, path = status.backend, status.underlay, status.fast_path
    here = None if underlay is None else underlay.address
    if backend is None or backend.port is None or underlay is None or here is None:
        return
    # The programs of the udp backend let most packets bypass netfilter at the underlay.
    has_programs = backend.type == "udp" and path is not None and path.mode in ("safe", "flow")
    severity: Severity = "warning" if has_programs else "error"
    port, uplink = backend.port, _uplink(seen)
    for there in islice(dict.fromkeys(seen.membership.peers.values()), evaluated_peers(seen)):
        if there.version != here.version:
            continue
        arriving = tunnel_packet(there, here, backend.type, port, iif=underlay.link, in_port=uplink)
        leaving = tunnel_packet(here, there, backend.type, port, oif=underlay.link, out_port=uplink)
        yield tunnel_flow(arriving, port, IN, severity=severity)
        yield tunnel_flow(leaving, port, OUT, severity=severity)


def _uplink(seen: Observed) -> str:
    """Return the port of the underlay to other hosts if the underlay is a bridge; "" if there is none."""
    ports = seen.underlay_ports
    if len(ports) > 1:
        links = (seen.interfaces.named(port) for port in ports)
        ports = tuple(link.name for link in links if link is not None and not link.kind)
    return ports[0] if len(ports) == 1 else ""


def container_flows(seen: Observed) -> Iterator[Flow]:
    """Yield packets between a container of this host and a container of another host, in both directions.

    For the ports of other containers, only the rules at the bridge are evaluated.
    """
    status, membership = seen.status, seen.membership
    network, own = membership.network, membership.subnet
    backend = status.backend
    device = backend.link if backend is not None and backend.link else membership.underlay
    if network is None or own is None or device is None:
        return
    bridge = next(iter(seen.ports), _NO_BRIDGE)
    here = own.network_address + 2
    port, *others = list(seen.ports.get(bridge, ()))[:PORTS] or [_NO_PORT]
    for there in islice(_containers_elsewhere(seen, network, own), evaluated_peers(seen)):
        yield overlay_flow(container_packet(here, there, iif=bridge, oif=device, in_port=port), network)
        yield overlay_flow(container_packet(there, here, iif=device, oif=bridge, out_port=port), network)
    there = next(_containers_elsewhere(seen, network, own))
    for other in others:
        yield overlay_flow(container_packet(here, there, iif=bridge, in_port=other), network, ())
        yield overlay_flow(container_packet(there, here, oif=bridge, out_port=other), network, ())
        near = container_packet(here, here + 1, iif=bridge, oif=bridge, in_port=port, out_port=other)
        yield overlay_flow(near, network, ())


def _containers_elsewhere(seen: Observed, network: IpNetwork, own: IpNetwork) -> Iterator[IpAddress]:
    for subnet in seen.membership.peers:
        yield subnet.network_address + 2
    if not seen.membership.peers:
        last = network.broadcast_address - 1
        yield last if last not in own else network.network_address + 2


_SOLICITATION, _ADVERTISEMENT = 135, 136
_SOLICITED_NODE = int(IPv6Address("ff02::1:ff00:0"))
_HOP_LIMIT = 255
_ROUTER = IPv6Address("fe80::1")
"""A link-local address, as a router has it."""


def neighbour_flow(packet: Packet, hooks: tuple[Hook, ...]) -> Flow:
    """Return the flow of a packet of neighbour discovery that arrives (hooks IN) or leaves (hooks OUT)."""
    return Flow(
        code="neighbour-dropped",
        noun=f"neighbour discovery on {packet.iif or packet.oif}, so that IPv6 finds no MAC address there",
        accepted="neighbour discovery",
        packet=packet,
        hooks=hooks,
        accepts=(
            (f"-p ipv6-icmp --icmpv6-type {_SOLICITATION}", "icmpv6 type nd-neighbor-solicit"),
            (f"-p ipv6-icmp --icmpv6-type {_ADVERTISEMENT}", "icmpv6 type nd-neighbor-advert"),
        ),
        firewalld="firewall-cmd --permanent --add-protocol=ipv6-icmp; firewall-cmd --reload",
        ufw="cp /usr/share/ufw/iptables/before6.rules /etc/ufw/before6.rules; ufw reload",
    )


def neighbour_flows(here: IpAddress, there: IpAddress, link: str, port: str = "") -> Iterator[Flow]:
    """Yield the packets of neighbour discovery between this host and a neighbour on a link: IPv6 sends them
    instead of ARP. Source: RFC 4861.
    """
    if here.version == 4:
        return
    for source, destination, hooks in ((there, here, IN), (here, there, OUT)):
        into, out_of = (link, port), ("", "")
        if hooks == OUT:
            into, out_of = out_of, into
        asked = IPv6Address(_SOLICITED_NODE | int(destination) & 0xFFFFFF)
        for to, kind in ((asked, _SOLICITATION), (destination, _ADVERTISEMENT)):
            packet = Packet(
                source=source,
                destination=to,
                protocol=ICMPV6,
                icmp_type=kind,
                hop_limit=_HOP_LIMIT,
                state="untracked",
                iif=into[0],
                in_port=into[1],
                oif=out_of[0],
                out_port=out_of[1],
            )
            yield neighbour_flow(packet, hooks)


def _neighbour_flows(seen: Observed) -> Iterator[Flow]:
    """Yield neighbour discovery on the underlay and on the bridges of containers."""
    underlay, own = seen.status.underlay, seen.membership.subnet
    if underlay is not None and seen.is_ethernet:
        near = (one for one in seen.membership.peers.values() if any(one in net for net in seen.on_link))
        yield from neighbour_flows(underlay.address, next(near, _ROUTER), underlay.link, _uplink(seen))
    for bridge, ports in seen.ports.items() if own is not None else ():
        held = seen.interfaces.named(bridge)
        addresses = () if held is None else (one.address.ip for one in held.addresses)
        gateway = next((one for one in addresses if own is not None and one in own), None)
        if gateway is not None:
            yield from neighbour_flows(gateway, gateway + 1, bridge, next(iter(ports), ""))


_PORT_CODE = "port-redirected"
_MOST_PORTS = 16
"""Maximum number of ports of translation rules for which the rules are evaluated."""


def _port_flows(seen: Observed) -> Iterator[Flow]:
    """Yield packets of containers to the ports that rules with a translation of the destination name."""
    usual = next(container_flows(seen), None)
    if usual is None:
        return
    ports = {
        (protocol, value[0])
        for chain in seen.ruleset
        if chain.is_nat
        for rules in chain.chains.values()
        for rule in rules
        if rule.action.translates == "destination"
        for match in rule.matches
        if isinstance(match, Match) and match.field == "dport" and not match.is_negated
        for value in match.values
        if isinstance(value, tuple)
        for protocol in (TCP, UDP)
    }
    for protocol, port in sorted(ports)[:_MOST_PORTS]:
        packet = replace(usual.packet, protocol=protocol, destination_port=port)
        yield usual._replace(code=_PORT_CODE, packet=packet)


_ICMP: Mapping[Family, tuple[int, int, int]] = {4: (1, 8, 0), 6: (ICMPV6, 128, 129)}
"""The protocol and the types of an ICMP echo request and its reply, by family. Source: RFC 792, RFC 4443."""

_REQUESTS, _REPLIES = "echo-ignored", "probe-dropped"
_OF_PROBES = frozenset({_REQUESTS, _REPLIES})
"""Codes of the flows of probes. A rule that also drops other packets is not named for them."""

_PROBING_PEERS = 4
"""Maximum number of peers for whose probes the rules are evaluated."""


def _probe_flows(seen: Observed) -> Iterator[Flow]:
    """Yield the replies to the probes of this host, and the probes of peers, on the underlay and through the
    tunnel.
    """
    status, own = seen.status, seen.membership.subnet
    underlay, backend = status.underlay, status.backend
    protocol, request, reply = _ICMP[seen.family]
    ends = []
    for subnet, public_ip in islice(seen.membership.peers.items(), _PROBING_PEERS):
        if underlay is not None and underlay.address.version == public_ip.version:
            ends.append((public_ip, underlay.address, underlay.link, _uplink(seen)))
        if own is not None and backend is not None and backend.link:
            ends.append((subnet.network_address, own.network_address, backend.link, ""))
    for code, kind, noun in (
        (_REPLIES, reply, "the replies to the probes of this host, so silent peers may be reachable"),
        (_REQUESTS, request, "ICMP echo requests, so peers report this host as unreachable"),
    ):
        name = "echo-reply" if kind == reply else "echo-request"
        for there, here, link, port in ends:
            yield Flow(
                code=code,
                noun=noun,
                accepted=f"ICMP {name}",
                packet=Packet(
                    source=there,
                    destination=here,
                    protocol=protocol,
                    icmp_type=kind,
                    iif=link,
                    in_port=port,
                    state="established" if kind == reply else "new",
                ),
                hooks=IN,
                accepts=(
                    (f"-p icmp --icmp-type {name}", f"icmp type {name}")
                    if seen.family == 4
                    else (f"-p ipv6-icmp --icmpv6-type {name}", f"icmpv6 type {name}"),
                ),
                firewalld=f"firewall-cmd --permanent --remove-icmp-block={name}; firewall-cmd --reload",
                ufw="cp /usr/share/ufw/iptables/before*.rules /etc/ufw/; ufw reload",
                severity="warning",
            )


def _judgements(seen: Observed) -> Iterator[tuple[Flow, Judgement]]:
    """Yield the judgement of the rules on each flow. If a chain drops the flow, also yield the judgement of
    the rules without this chain.
    """
    if not seen.ruleset:
        return
    for flow in (
        *tunnel_flows(seen),
        *container_flows(seen),
        *_neighbour_flows(seen),
        *_probe_flows(seen),
        *_port_flows(seen),
    ):
        left: Ruleset = seen.ruleset
        for _ in range(_DROPS):
            judgement = judge(flow.packet, left, flow.hooks)
            yield flow, judgement
            if judgement.kind not in ("drop", "reject", "expire"):
                break
            left = tuple(chain for chain in left if chain is not judgement.chain)


_Rules = dict[str, tuple[BaseChain, Rule]]
"""Rules with their chains, by their texts."""


def _filters(seen: Observed) -> Iterator[Finding]:
    """Yield the chains that drop packets of the overlay, and rules whose effect is unknown."""
    dropped: dict[tuple[str, str], Finding] = {}
    named: set[tuple[str, Rule | None]] = set()
    unknown: dict[str, str] = {}
    changes: _Rules = {}
    spoofs: _Rules = {}
    diversions: _Rules = {}
    redirected: dict[str, Finding] = {}
    for flow, judgement in _judgements(seen):
        chain, rule = judgement.chain, judgement.rule
        if judgement.translation is not None and flow.code == "forward-dropped":
            changes[listed(*judgement.translation)] = judgement.translation
        elif judgement.translation is not None and is_of_tunnel(flow):
            new = _new_source(judgement.translation[1])
            if new not in (None, flow.packet.source):
                spoofs[listed(*judgement.translation)] = judgement.translation
        if judgement.redirection is not None and is_of_tunnel(flow):
            text = listed(*judgement.redirection)
            redirected[text] = redirected_by(*judgement.redirection, flow)
        elif judgement.redirection is not None and flow.code in ("forward-dropped", _PORT_CODE):
            diversions[listed(*judgement.redirection)] = judgement.redirection
        if chain is None or _is_of_docker(rule, seen) or flow.code == _PORT_CODE:
            continue
        text = listed(chain, rule, flow)
        if flow.code in _OF_PROBES and (judgement.kind == "unknown" or (chain.place, rule) in named):
            continue
        if judgement.kind == "unknown":
            unknown[text] = "" if rule is None else why(rule, flow.packet)
        elif (flow.code, text) not in dropped:
            dropped[flow.code, text] = dropped_by(chain, rule, flow, judgement.kind)
            named.add((chain.place, rule))
    yield from dropped.values()
    yield from redirected.values()
    if spoofs:
        yield _translated(
            "source",
            spoofs,
            f"of {TUNNEL_PACKETS}, and peers then drop them",
            "if the rules are also for other packets, exclude these",
            "error",
        )
    if changes:
        sources = (_new_source(rule) for _, rule in changes.values())
        is_lost = any(one is not None and seen.interfaces.holder(one) is None for one in sources)
        yield _translated(
            "source",
            changes,
            _BETWEEN + (", and replies do not return" if is_lost else ""),
            "Docker also needs --ip-masq=false, see mk-docker-opts",
            "error" if is_lost else "warning",
        )
    diversions = {text: place for text, place in diversions.items() if text not in redirected}
    if diversions:
        yield _translated(
            "destination", diversions, _BETWEEN, "if no program needs the rules, for example a proxy"
        )
    if unknown:
        yield Finding(
            code="rules-unknown",
            severity="info",
            cause="doctor cannot evaluate these filter rules, which may drop packets of the overlay",
            evidence=some([f"{text} ({reason})" if reason else text for text, reason in unknown.items()]),
            fix=f"flannelctl ping {_example(seen)}  # run it on another host: shows whether packets arrive",
        )


_BETWEEN = "of packets between containers of different hosts"

_NEW_SOURCE = re.compile(
    r"(?:--to-source|snat(?: ip6?)? to) \[?(?P<address>\d+(?:\.\d+){3}|[\da-f]*:[\da-f:]+)", re.IGNORECASE
)


def _new_source(rule: Rule) -> IpAddress | None:
    """Return the address to which a rule changes the source; None if the kernel chooses it, as for
    MASQUERADE, or if the rule names several.
    """
    found = _NEW_SOURCE.search(rule.text)
    with contextlib.suppress(ValueError):
        return None if found is None else ip_address(found["address"])
    return None


def _example(seen: Observed) -> str:
    """Return the address of a container of this host, for a command of another host."""
    own = seen.membership.subnet
    held = (
        address
        for one in seen.containers
        for address in sorted(one.addresses, key=str)
        if own is not None and address in own
    )
    return str(next(held, "CONTAINER-ADDRESS"))


def _is_of_docker(rule: Rule | None, seen: Observed) -> bool:
    """Return whether another finding names this rule of Docker."""
    lines = (line for lines in seen.docker_drops.values() for line in lines)
    return rule is not None and any(line.endswith(rule.text) for line in lines)


def dropped_by(chain: BaseChain, rule: Rule | None, flow: Flow, kind: str) -> Finding:
    """Return the finding about a rule, or the policy of a chain, that drops or rejects packets."""
    other = ", even if another chain accepts them" if flow.code == "forward-dropped" else ""
    effect = f"{'rejects' if kind == 'reject' else 'drops'} {flow.noun}{other}"
    if kind == "expire":
        effect = f"sets the TTL of {flow.noun} so low that the next router drops them"
    return Finding(
        code=flow.code,
        severity=flow.severity,
        cause=f"{chain.place} {effect}",
        evidence=(listed(chain, rule, flow),),
        fix=_repair(flow, chain),
    )


def listed(chain: BaseChain, rule: Rule | None, flow: Flow | None = None) -> str:
    """Return the rule as its program lists it, or the policy."""
    if rule is None:
        accepted = "it" if flow is None else flow.accepted
        command = (
            f"nft list chain {chain.family} {chain.table} {chain.name}"
            if chain.program == "nft"
            else f"{chain.program} -S {chain.name}"
        )
        return f"{command}: policy {chain.policy}, and no rule that accepts {accepted}"
    name = next((name for name, rules in chain.chains.items() if rule in rules), chain.name)
    if chain.program == "nft":
        return f"nft rule in {chain.family} {chain.table} {name}: {rule.text}"
    return f"{chain.program} rule in {chain.table} {name}: {rule.text}"


def _repair(flow: Flow, chain: BaseChain) -> str:
    """Return the command that makes the chain accept the packets, in the form for the program that owns
    the chain.
    """
    if chain.program == "nft":
        if chain.table == "firewalld":
            return flow.firewalld
        place = f"{chain.family} {chain.table} {chain.name}"
        return "; ".join(f"nft insert rule {place} {condition} accept" for _, condition in flow.accepts)
    if any(name.startswith("ufw-") for name in chain.chains):
        return flow.ufw
    table = "" if chain.table == "filter" else f" -t {chain.table}"
    return "; ".join(
        f"{chain.program}{table} -I {chain.name} {condition} -j ACCEPT" for condition, _ in flow.accepts
    )


def is_of_tunnel(flow: Flow) -> bool:
    """Return whether the packets of a flow are tunnel packets."""
    return flow.code in ("tunnel-dropped", "tunnel-not-sent")


def redirected_by(chain: BaseChain, rule: Rule, flow: Flow) -> Finding:
    """Return the finding that a rule changes the destination of tunnel packets."""
    return Finding(
        code="tunnel-redirected",
        severity=flow.severity,
        cause=f"{chain.place} changes the destination of {flow.noun}",
        evidence=(listed(chain, rule),),
        fix=f"{removal_of(chain, rule)}  # known flows keep the changed destination until the command"
        f" 'conntrack -D -p udp --orig-port-dst {flow.packet.destination_port}' removes them",
    )


def removal_of(chain: BaseChain, rule: Rule | None) -> str:
    """Return the command that deletes a rule of a base chain, or of a chain to which it jumps. Without a
    rule, it changes the policy of the base chain.
    """
    if rule is None and chain.program == "nft":
        return f"nft 'chain {chain.family} {chain.table} {chain.name} {{ policy accept; }}'"
    if rule is None:
        return f"{chain.program} -t {chain.table} -P {chain.name} ACCEPT"
    name = next((name for name, rules in chain.chains.items() if rule in rules), chain.name)
    if chain.program == "nft":
        return f"nft delete rule {chain.family} {chain.table} {name} handle {rule.number}"
    return f"{chain.program} -t {chain.table} -D {name} {rule.text}"


def _translated(
    end: Literal["source", "destination"],
    found: _Rules,
    packets: str,
    advice: str,
    severity: Severity = "warning",
) -> Finding:
    """Return the finding that rules change the source or the destination of packets."""
    commands = [removal_of(chain, rule) for chain, rule in found.values()]
    return Finding(
        code=f"{end}-changed",
        severity=severity,
        cause=f"these rules change the {end} address {packets}",
        evidence=some(list(found)),
        fix=f"{'; '.join(commands[:NAMED])}  # {advice}",
    )


CHECKS = (_filters,)
