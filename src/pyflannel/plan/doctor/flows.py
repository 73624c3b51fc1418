"""The packets of the overlay for which doctor evaluates filter rules and IPsec policies."""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import NamedTuple

from msgspec.structs import replace

from pyflannel.model.netfilter import ARP_OPERATIONS, ICMPV6, TCP, TCP_FLAGS, UDP, Hook, Packet
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.status import Severity
from pyflannel.plan.doctor.observed import DOCKER0, Observed, main_route
from pyflannel.plan.netfilter import IN, OUT, THROUGH

_FEWEST_PEERS, _MOST_PEERS = 4, 256
"""Limits of the number of peers for whose packets the rules are evaluated."""

_MOST_EVALUATED = 30_000
"""Maximum number of evaluated rules, unless _FEWEST_PEERS need more. They take about 0.3 s."""

_FLOWS_OF_PEER = 4

_ANY_PORT, _SERVICE = 40000, 29123

_SMALL, _LARGE = 100, 1500
"""Lengths of packets in bytes. _LARGE is used if the MTU is unknown."""

_SYN = TCP_FLAGS["syn"]
_SYN_ACK, _PSH_ACK = _SYN | TCP_FLAGS["ack"], TCP_FLAGS["psh"] | TCP_FLAGS["ack"]

_NO_BRIDGE, _NO_PORT = DOCKER0, "veth0"
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
    kind: str = ""
    """The kind of packets, if rules may drop single kinds of the flow; "" for packets that represent all."""


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
    """Return a small outer packet of a tunnel; vxlan computes the source port from the inner packet."""
    return Packet(
        source=source,
        destination=destination,
        protocol=UDP,
        length=_SMALL,
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
        tcp_flags=_SYN,
        length=_SMALL,
        source_port=_ANY_PORT,
        destination_port=_SERVICE,
        iif=iif,
        oif=oif,
        in_port=in_port,
        out_port=out_port,
    )


_ICMP: Mapping[Family, tuple[int, int, int]] = {4: (1, 8, 0), 6: (ICMPV6, 128, 129)}
"""The protocol and the types of an ICMP echo request and its reply, by family. Source: RFC 792, RFC 4443."""

NEW_TCP, NEW_UDP, PINGS = "new TCP connections", "UDP packets", "pings"
PING_REPLIES = "replies to pings"

ALL_NEW = frozenset({NEW_TCP, NEW_UDP, PINGS})
"""Kinds of packets between containers. A rule that drops all of them lets no container communicate."""

ONLY_PINGS = frozenset({PINGS, PING_REPLIES})


def kinds_of(flow: Flow, mtu: int | None) -> Iterator[Flow]:
    """Yield the kinds of packets of a flow in the tunnel, or between containers.

    `mtu`: MTU of the device by which the packets leave.
    """
    packet, large = flow.packet, mtu or _LARGE
    if flow.code != "forward-dropped":
        yield flow._replace(kind="large", noun=f"large {flow.noun}", packet=replace(packet, length=large))
        return
    kinds: list[tuple[str, Packet]] = [
        (NEW_TCP, packet),
        ("replies to new TCP connections", as_reply(packet)),
        (
            "TCP data of clients",
            replace(packet, tcp_flags=_PSH_ACK, length=large, state="established"),
        ),
        ("TCP data of servers", replace(as_reply(packet), tcp_flags=_PSH_ACK, length=large)),
    ]
    datagram = replace(packet, protocol=UDP, tcp_flags=None)
    kinds += [(NEW_UDP, datagram), ("replies to UDP packets", replace(as_reply(datagram), length=large))]
    protocol, request, reply = _ICMP[packet.source.version]
    ping = replace(datagram, protocol=protocol, icmp_type=request, source_port=None, destination_port=None)
    kinds += [(PINGS, ping), (PING_REPLIES, replace(as_reply(ping), icmp_type=reply))]
    for kind, one in kinds:
        yield flow._replace(kind=kind, noun=f"{kind} of {flow.accepted}", packet=one)


def as_reply(packet: Packet) -> Packet:
    """Return the first reply to a connection that the destination of the packet has opened."""
    return replace(
        packet,
        source_port=packet.destination_port,
        destination_port=packet.source_port,
        tcp_flags=_SYN_ACK if packet.protocol == TCP else None,
        state="established",
        is_reply=True,
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


def store_flows(seen: Observed) -> Iterator[Flow]:
    """Yield the packets to and from the members of a store that does not respond."""
    underlay = seen.status.underlay
    for address, port in seen.lost_stores:
        if underlay is None or underlay.address.version != address.version:
            continue
        route = main_route(seen, address)
        link = (
            "lo" if address.is_loopback else underlay.link if route is None else route.link or underlay.link
        )
        here = address if address.is_loopback else underlay.address
        packet = Packet(
            source=here,
            destination=address,
            protocol=TCP,
            source_port=_ANY_PORT,
            destination_port=port,
            tcp_flags=_SYN,
            length=_SMALL,
            oif=link,
        )
        answer = as_reply(replace(packet, source=address, destination=here, iif=link, oif=""))
        for one, hooks, noun in ((packet, OUT, "packets to"), (answer, IN, "replies of")):
            yield Flow(
                code="store-dropped",
                noun=f"{noun} the store at {address} port {port}",
                accepted=f"TCP port {port}",
                packet=one,
                hooks=hooks,
                accepts=(
                    (f"-p tcp --dport {port}", f"tcp dport {port}")
                    if hooks == OUT
                    else (f"-p tcp --sport {port}", f"tcp sport {port}"),
                ),
                firewalld=f"firewall-cmd --permanent --add-port={port}/tcp; firewall-cmd --reload",
                ufw=f"ufw allow out {port}/tcp",
            )


_SOLICITATION, _ADVERTISEMENT = 135, 136

_SOLICITED_NODE = int(IPv6Address("ff02::1:ff00:0"))

_HOP_LIMIT = 255

_ROUTERS: Mapping[Family, IpAddress] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("fe80::1")}
"""Addresses of a neighbour, used while none is known. Source: RFC 5737, RFC 4291."""


NEIGHBOUR_CODE = "neighbour-dropped"


def arp_flow(packet: Packet, hooks: tuple[Hook, ...]) -> Flow:
    """Return the flow of an ARP packet that arrives (hooks IN) or leaves (hooks OUT)."""
    condition = "arp operation { request, reply }"
    return Flow(
        code=NEIGHBOUR_CODE,
        noun=f"ARP packets on {packet.iif or packet.oif}, so that MAC addresses are not found there",
        accepted="ARP",
        packet=packet,
        hooks=hooks,
        accepts=((condition, condition),),
        firewalld="firewall-cmd --reload",
        ufw="ufw reload",
    )


def neighbour_flow(packet: Packet, hooks: tuple[Hook, ...]) -> Flow:
    """Return the flow of a packet of neighbour discovery that arrives (hooks IN) or leaves (hooks OUT)."""
    return Flow(
        code=NEIGHBOUR_CODE,
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
    """Yield the packets by which this host and a neighbour on a link find MAC addresses: ARP, or neighbour
    discovery with IPv6. Source: RFC 826, RFC 4861.
    """
    for source, destination, hooks in ((there, here, IN), (here, there, OUT)):
        into, out_of = ((link, port), ("", "")) if hooks == IN else (("", ""), (link, port))
        packet = Packet(
            source=source,
            destination=destination,
            protocol=0 if here.version == 4 else ICMPV6,
            state="untracked",
            iif=into[0],
            in_port=into[1],
            oif=out_of[0],
            out_port=out_of[1],
        )
        if here.version == 4:
            for name in ("request", "reply"):
                yield arp_flow(replace(packet, operation=ARP_OPERATIONS[name]), hooks)
            continue
        asked = IPv6Address(_SOLICITED_NODE | int(destination) & 0xFFFFFF)
        for to, kind in ((asked, _SOLICITATION), (destination, _ADVERTISEMENT)):
            sent = replace(packet, destination=to, icmp_type=kind, hop_limit=_HOP_LIMIT)
            yield neighbour_flow(sent, hooks)


def every_neighbour_flow(seen: Observed) -> Iterator[Flow]:
    """Yield neighbour discovery on the underlay and on the bridges of containers."""
    underlay, own = seen.status.underlay, seen.membership.subnet
    if underlay is not None and seen.is_ethernet:
        near = (one for one in seen.membership.peers.values() if any(one in net for net in seen.on_link))
        yield from neighbour_flows(
            underlay.address, next(near, _ROUTERS[seen.family]), underlay.link, _uplink(seen)
        )
    for bridge, ports in seen.ports.items() if own is not None else ():
        held = seen.interfaces.named(bridge)
        addresses = () if held is None else (one.address.ip for one in held.addresses)
        gateway = next((one for one in addresses if own is not None and one in own), None)
        if gateway is not None:
            yield from neighbour_flows(gateway, gateway + 1, bridge, next(iter(ports), ""))


_REQUESTS, _REPLIES = "echo-ignored", "probe-dropped"

OF_PROBES = frozenset({_REQUESTS, _REPLIES})
"""Codes of the flows of probes. A rule that also drops other packets is not named for them."""

_PROBING_PEERS = 4
"""Maximum number of peers for whose probes the rules are evaluated."""


def probe_flows(seen: Observed) -> Iterator[Flow]:
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
