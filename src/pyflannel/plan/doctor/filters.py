"""Filter rules that drop or change packets of the overlay. To find them, the rules are evaluated for these
packets.
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import NamedTuple

from pyflannel.model.netfilter import UDP, BaseChain, Hook, Judgement, Packet, Rule, Ruleset
from pyflannel.model.packet_filter import SavedRules
from pyflannel.model.status import Finding, Severity
from pyflannel.plan.doctor.observed import NAMED, Observed, some
from pyflannel.plan.netfilter import IN, OUT, THROUGH, judge, why

_PEERS = 4
"""Maximum number of peers for which packets are evaluated, because a host may have tens of thousands of
rules."""

_DROPS = 4
"""Maximum number of chains that are named for one flow."""

_TCP, _ANY_PORT, _SERVICE = 6, 40000, 29123
_NO_BRIDGE, _NO_PORT = "docker0", "veth0"
"""Names of the bridge and of the port that the first container will have, used while none exists."""

_PORTS = 8
"""Maximum number of ports of a bridge for which the rules of the family bridge are evaluated."""


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
        noun=f"tunnel packets of peers to {noun}" if is_in else f"tunnel packets to {noun} of peers",
        accepted=noun,
        packet=packet,
        hooks=hooks,
        accepts=((f"-p udp --dport {port}", f"udp dport {port}"),),
        firewalld=f"firewall-cmd --permanent --add-port={port}/udp; firewall-cmd --reload",
        ufw=f"ufw allow {port}/udp" if is_in else f"ufw allow out {port}/udp",
        severity=severity,
    )


def overlay_flow(packet: Packet, network: IPv4Network, hooks: tuple[Hook, ...] = THROUGH) -> Flow:
    """Return the flow of a packet between containers of different hosts."""
    return Flow(
        code="forward-dropped",
        noun=f"packets of {network}",
        accepted=str(network),
        packet=packet,
        hooks=hooks,
        accepts=((f"-s {network}", f"ip saddr {network}"), (f"-d {network}", f"ip daddr {network}")),
        firewalld=f"firewall-cmd --permanent --zone=trusted --add-source={network}; firewall-cmd --reload",
        ufw=f"ufw route allow from {network}; ufw route allow to {network}",
    )


def tunnel_packet(
    source: IPv4Address,
    destination: IPv4Address,
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
    source: IPv4Address,
    destination: IPv4Address,
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
        protocol=_TCP,
        source_port=_ANY_PORT,
        destination_port=_SERVICE,
        iif=iif,
        oif=oif,
        in_port=in_port,
        out_port=out_port,
    )


def tunnel_flows(seen: Observed) -> Iterator[Flow]:
    """Yield tunnel packets from and to peers."""
    status = seen.status
    backend, underlay, path = status.backend, status.underlay, status.fast_path
    here = None if underlay is None else underlay.address
    if backend is None or backend.port is None or underlay is None or not isinstance(here, IPv4Address):
        return
    # The programs of the udp backend let most packets bypass netfilter at the underlay.
    has_programs = backend.type == "udp" and path is not None and path.mode in ("safe", "flow")
    severity: Severity = "warning" if has_programs else "error"
    port, uplink = backend.port, _uplink(seen)
    for there in islice(dict.fromkeys(seen.membership.peers.values()), _PEERS):
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
    port, *others = list(seen.ports.get(bridge, ()))[:_PORTS] or [_NO_PORT]
    for there in islice(_containers_elsewhere(seen, network, own), _PEERS):
        yield overlay_flow(container_packet(here, there, iif=bridge, oif=device, in_port=port), network)
        yield overlay_flow(container_packet(there, here, iif=device, oif=bridge, out_port=port), network)
    there = next(_containers_elsewhere(seen, network, own))
    for other in others:
        yield overlay_flow(container_packet(here, there, iif=bridge, in_port=other), network, ())
        yield overlay_flow(container_packet(there, here, oif=bridge, out_port=other), network, ())
        near = container_packet(here, here + 1, iif=bridge, oif=bridge, in_port=port, out_port=other)
        yield overlay_flow(near, network, ())


def _containers_elsewhere(seen: Observed, network: IPv4Network, own: IPv4Network) -> Iterator[IPv4Address]:
    for subnet in seen.membership.peers:
        yield subnet.network_address + 2
    if not seen.membership.peers:
        last = network.broadcast_address - 1
        yield last if last not in own else network.network_address + 2


def _judgements(seen: Observed) -> Iterator[tuple[Flow, Judgement]]:
    """Yield the judgement of the rules on each flow. If a chain drops the flow, also yield their judgement
    without this chain.
    """
    if not seen.ruleset:
        return
    for flow in (*tunnel_flows(seen), *container_flows(seen)):
        left: Ruleset = seen.ruleset
        for _ in range(_DROPS):
            judgement = judge(flow.packet, left, flow.hooks)
            yield flow, judgement
            if judgement.kind not in ("drop", "reject"):
                break
            left = tuple(chain for chain in left if chain is not judgement.chain)


def _filters(seen: Observed) -> Iterator[Finding]:
    """Yield the chains that drop packets of the overlay, and rules whose effect is unknown."""
    dropped: dict[tuple[str, str], Finding] = {}
    unknown: dict[str, str] = {}
    changes: dict[str, tuple[BaseChain, Rule]] = {}
    for flow, judgement in _judgements(seen):
        chain, rule = judgement.chain, judgement.rule
        if judgement.translation is not None and flow.code == "forward-dropped":
            changes[listed(*judgement.translation)] = judgement.translation
        if chain is None or _is_of_docker(rule, seen):
            continue
        text = listed(chain, rule, flow)
        if judgement.kind == "unknown":
            unknown[text] = "" if rule is None else why(rule, flow.packet)
        elif (flow.code, text) not in dropped:
            dropped[flow.code, text] = dropped_by(chain, rule, flow, judgement.kind)
    yield from dropped.values()
    if changes:
        yield _changed(changes)
    if unknown:
        yield Finding(
            code="rules-unknown",
            severity="info",
            cause="doctor cannot evaluate these filter rules, which may drop packets of the overlay",
            evidence=some([f"{text} ({reason})" if reason else text for text, reason in unknown.items()]),
            fix="flannelctl ping HOST  # shows whether packets arrive",
        )


def _is_of_docker(rule: Rule | None, seen: Observed) -> bool:
    """Return whether another finding names this rule of Docker."""
    lines = (line for lines in seen.docker_drops.values() for line in lines)
    return rule is not None and any(line.endswith(rule.text) for line in lines)


def dropped_by(chain: BaseChain, rule: Rule | None, flow: Flow, kind: str) -> Finding:
    """Return the finding about a rule, or the policy of a chain, that drops or rejects packets."""
    verb = "rejects" if kind == "reject" else "drops"
    other = ", even if another chain accepts them" if flow.code == "forward-dropped" else ""
    return Finding(
        code=flow.code,
        severity=flow.severity,
        cause=f"{chain.place} {verb} {flow.noun}{other}",
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


def _changed(changes: dict[str, tuple[BaseChain, Rule]]) -> Finding:
    commands = [
        f"nft delete rule {chain.family} {chain.table} {chain.name} handle {rule.number}"
        if chain.program == "nft"
        else f"{chain.program} -t {chain.table} -D {chain.name} {rule.text}"
        for chain, rule in changes.values()
    ]
    return Finding(
        code="source-changed",
        severity="warning",
        cause="these rules change the source address of packets between containers of different hosts",
        evidence=some(list(changes)),
        fix=f"{'; '.join(commands[:NAMED])}  # Docker also needs --ip-masq=false, see mk-docker-opts",
    )


_DROPS_ALL = " -j DROP"
"""The end of an iptables rule that drops the packets."""

_RAW_DROP = re.compile(r"-d \S+ ! -i (?P<bridge>\S+) ")
_FORWARD_DROP = re.compile(r"! -i (?P<bridge>\S+) -o (?P=bridge) -j")
_NFT_CHAIN = re.compile(r"\s*chain filter-forward-in__(?P<bridge>\S+) \{")
_NFT_RAW_DROP = 'drop comment "DROP DIRECT ACCESS"'
_NFT_LINKS = re.compile(r'iifname != (?P<links>"[^"]+"|\{[^{}]*\}) ')
"""The accepted links are the bridge and the interfaces that its option trusted_host_interfaces names."""

_NFT_FORWARD_DROP = 'drop comment "UNPUBLISHED PORT DROP"'


def docker_drops(saved: Iterable[SavedRules], table: str) -> dict[str, tuple[str, ...]]:
    """Return the rules by which Docker drops packets to addresses of its containers, by bridge.

    Docker 28 and newer write them in iptables or, if so configured, in nftables.

    Args:
        saved: the rules of iptables.
        table: Docker's table of nftables, as printed by `nft list table ip docker-bridges`; "" if the table
            does not exist.

    Source: moby 29, daemon/libnetwork/drivers/bridge/internal.
    """
    found: dict[str, list[str]] = {}
    for rules in saved:
        for place, chain, pattern in (("raw", "PREROUTING", _RAW_DROP), ("filter", "DOCKER", _FORWARD_DROP)):
            for rule in rules.chains.get(place, {}).get(chain, ()) if rules.family == 4 else ():
                if rule.endswith(_DROPS_ALL) and (drop := pattern.search(rule)) is not None:
                    text = f"{rules.program} -t {place} -A {chain} {rule}"
                    found.setdefault(drop["bridge"], []).append(text)
    bridge = ""
    for line in table.split("\n"):
        if (header := _NFT_CHAIN.match(line)) is not None:
            bridge = header["bridge"]
        elif line.strip() == "}":
            bridge = ""
        elif _NFT_RAW_DROP in line and (drop := _NFT_LINKS.search(line)) is not None:
            for name in re.findall(r'"([^"]+)"', drop["links"]):
                found.setdefault(name, []).append(line.strip())
        elif bridge and _NFT_FORWARD_DROP in line:
            found.setdefault(bridge, []).append(line.strip())
    return {name: tuple(lines) for name, lines in found.items()}


def _docker_drops(seen: Observed) -> Iterator[Finding]:
    for bridge in sorted(seen.docker_drops.keys() & seen.ports.keys()):
        yield Finding(
            code="docker-drops",
            severity="error",
            cause=f"Docker drops packets of other hosts to containers at {bridge}",
            evidence=some(list(seen.docker_drops[bridge])),
            fix="docker network create -d flannel --ipam-driver flannel NAME  # needs --docker-plugin."
            " Or use a bridge network with -o com.docker.network.bridge.gateway_mode_ipv4=nat-unprotected",
        )


CHECKS = (_filters, _docker_drops)
