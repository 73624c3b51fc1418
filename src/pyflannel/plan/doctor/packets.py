"""Faults of this host that stop packets of the overlay: forwarding, routes, interfaces, IPsec policies."""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from shlex import quote

from pyflannel.model.host import Interfaces, IpsecPolicy
from pyflannel.model.link import Link
from pyflannel.model.netfilter import UDP, Packet
from pyflannel.model.route import Route
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.filters import Flow, container_flows, tunnel_flows
from pyflannel.plan.doctor.observed import NAMED, Observed, main_route, shown, some
from pyflannel.plan.leftovers import is_within
from pyflannel.plan.netfilter import IN, OUT, THROUGH

_DOCKER0 = "docker0"
_DOCKER_FIX = "mk-docker-opts -c -d /etc/default/docker  # restart Docker with it, recreate containers"


def forwarding(seen: Observed) -> Iterator[Finding]:
    """Yield the settings by which the host does not forward packets of the overlay."""
    if seen.forwards is False:
        yield Finding(
            code="forwarding-off",
            severity="error",
            cause="the host forwards no packets, so its containers cannot reach other hosts",
            evidence=("net.ipv4.ip_forward = 0",),
            fix="sysctl -w net.ipv4.ip_forward=1",
        )
        return
    backend = seen.status.backend
    tunnel = backend.link if backend is not None else None
    on_the_way = (*seen.ports, tunnel or seen.membership.underlay or "")
    if links := [link for link in on_the_way if link in seen.unforwarded]:
        yield Finding(
            code="forwarding-off",
            severity="error",
            cause=f"the host does not forward the packets that arrive at {' and '.join(links)}",
            evidence=tuple(f"net.ipv4.conf.{link}.forwarding = 0" for link in links),
            fix=forwarded(*links),
        )


def forwarded(*links: str) -> str:
    """Return the command that makes the host forward the packets that arrive at these links."""
    return f"sysctl -w {' '.join(quote(f'net/ipv4/conf/{link}/forwarding=1') for link in links)}"


def _reverse_path(seen: Observed) -> Iterator[Finding]:
    """Yield a finding for a strict filter that drops tunnel packets of peers to which this host sends
    through another link.
    """
    backend = seen.status.backend
    tunnel = backend.link if backend is not None else None
    if tunnel is None or tunnel not in seen.strict or any(one.refused_at == tunnel for one in seen.answers):
        return
    elsewhere = [
        item
        for item in seen.items
        if isinstance(item, Route)
        and item.kind == "unicast"
        and item.link != tunnel
        and is_within(item, seen.membership)
    ]
    if elsewhere:
        yield Finding(
            code="strict-reverse-path",
            severity="warning",
            cause=f"packets of these peers from the tunnel are dropped, because the route to these peers "
            f"does not use {tunnel}",
            evidence=(f"rp_filter of {tunnel} is 1, strict", *some([shown(route) for route in elsewhere])),
            fix=loosened(tunnel),
        )


def loosened(link: str) -> str:
    """Return the command that makes the reverse path filter of a link loose."""
    return f"sysctl -w net/ipv4/conf/all/rp_filter=2 {quote(f'net/ipv4/conf/{link}/rp_filter=2')}"


def _source_refused(seen: Observed) -> Iterator[Finding]:
    """Yield findings for packets whose source the kernel refuses, because it would send replies through
    another interface.
    """
    by_link: dict[str, list[str]] = {}
    for one in seen.answers:
        if one.refused_at is not None:
            by_link.setdefault(one.refused_at, []).append(one.text)
    for link, lines in by_link.items():
        yield Finding(
            code="source-refused",
            severity="error",
            cause=f"rp_filter drops packets of peers that arrive at {link}, because the route to their "
            f"source uses another interface",
            evidence=some(lines),
            fix=loosened(link),
        )


def _diverted(seen: Observed) -> Iterator[Finding]:
    """Yield findings for packets to other hosts for which the kernel does not use the route of the main
    table.
    """
    wrong = [
        one
        for one in seen.answers
        if one.way == "container out"
        and one.refused_at is None
        and one.link != _link_of(main_route(seen, one.destination))
    ]
    rules = list(dict.fromkeys(rule for one in wrong for rule in one.rules))
    if rules:
        yield Finding(
            code="policy-rule",
            severity="error",
            cause="a policy rule diverts packets of containers to other hosts",
            evidence=some([*(f"ip rule: {rule}" for rule in rules), *(one.text for one in wrong)]),
            fix=f"ip rule add to {seen.membership.network} lookup main priority 1",
        )


def _link_of(route: Route | None) -> str | None:
    return None if route is None else route.link


def _port_mtus(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers send too large packets: by the ports of a bridge, or if these are
    right, by the ends of the links in the containers.
    """
    backend = seen.status.backend
    mtu = backend.mtu if backend is not None else None
    inside = {
        f"{name} of {one.process} has MTU {size}": (one.pid, name)
        for one in seen.containers
        for name, size in one.mtus.items()
        if mtu is not None and size > mtu
    }
    if inside and not any(size > (mtu or 0) for ports in seen.ports.values() for size in ports.values()):
        pid, name = next(iter(inside.values()))
        yield Finding(
            code="container-mtu",
            severity="warning",
            cause=f"containers send packets larger than the MTU of the network, {mtu} bytes",
            evidence=some([*inside]),
            fix=f"nsenter --net --target {pid} ip link set {quote(name)} mtu {mtu}",
        )
    for bridge, ports in seen.ports.items():
        large = {port: size for port, size in ports.items() if mtu is not None and size > mtu}
        if large:
            yield Finding(
                code="container-mtu",
                severity="warning",
                cause=f"containers on {bridge} send packets larger than the MTU of the network, {mtu} bytes",
                evidence=some([f"{port} has MTU {size}" for port, size in large.items()]),
                fix=_DOCKER_FIX,
            )


def _container_routes(seen: Observed) -> Iterator[Finding]:
    """Yield findings for containers that cannot send to other hosts. This may be intended, for example in an
    internal network.
    """
    own, peer = seen.membership.subnet, next(iter(seen.membership.peers), None)
    if own is None or peer is None:
        return
    lost = [
        f"{address}, {one.process}"
        for one in seen.containers
        for address in sorted(one.addresses)
        if address in own and not one.has_route_to(peer.network_address + 2)
    ]
    if lost:
        yield Finding(
            code="container-route",
            severity="info",
            cause="these containers have no route to other hosts",
            evidence=some(lost),
            fix="nsenter --net --target PID ip route  # the default route must lead to the bridge",
        )


def bridge_down(seen: Observed) -> Iterator[Finding]:
    """Yield the bridges of containers that are down."""
    for name in seen.ports:
        link = seen.interfaces.named(name)
        if link is not None and not link.is_up:
            yield Finding(
                code="bridge-down",
                severity="error",
                cause=f"the bridge {name} of the containers of this host is down",
                evidence=(f"ip link show {name}: state DOWN",),
                fix=f"ip link set {quote(name)} up",
            )


def _arp(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the underlay cannot send to peers on the same link."""
    lost = [
        address
        for address in dict.fromkeys(seen.membership.peers.values())
        if any(address in prefix for prefix in seen.on_link) and address not in seen.set_neighbours
    ]
    link = seen.membership.underlay
    if seen.lacks_arp and lost and link is not None:
        yield Finding(
            code="arp-off",
            severity="error",
            cause=f"ARP is off on {link}, so this host reaches no peer on the same link",
            evidence=(
                f"ip link show {link}: NOARP",
                *some([f"{one}: no MAC address" for one in lost]),
            ),
            fix=f"ip link set {quote(link)} arp on",
        )


def _bridge_subnet(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the containers of Docker have addresses outside this host's subnet."""
    own, docker0 = seen.membership.subnet, seen.interfaces.named(_DOCKER0)
    if own is None or docker0 is None or seen.ports or not seen.docker0_ports:
        return
    held = ", ".join(str(one.address) for one in docker0.addresses if one.address.version == own.version)
    yield Finding(
        code="bridge-subnet",
        severity="warning",
        cause=f"the containers at {_DOCKER0} have no address of the subnet of this host, {own}",
        evidence=(f"{_DOCKER0} has {held or 'no address'}, and {seen.docker0_ports} containers",),
        fix=_DOCKER_FIX,
    )


def _addresses(seen: Observed) -> Iterator[Finding]:
    """Yield findings for interfaces with addresses of other hosts' subnets, because this host then
    receives the packets for them.
    """
    membership, status = seen.membership, seen.status
    network, own = membership.network, membership.subnet
    tunnel = status.backend.link if status.backend is not None else None
    if network is None or own is None:
        return
    held = [
        (one.name, address)
        for one in seen.interfaces.interfaces
        if one.name not in (tunnel, membership.underlay) and not one.name.startswith("flannel")
        for address in (held.address for held in one.addresses)
        if isinstance(address.ip, IPv4Address) and address.ip in network and address.ip not in own
    ]
    if held:
        yield Finding(
            code="overlay-address",
            severity="error",
            cause="this host has addresses of subnets of other hosts, so it receives the packets for "
            "these addresses itself",
            evidence=some([f"{address} on {name}" for name, address in held]),
            fix=_DOCKER_FIX
            if held[0][0] == _DOCKER0
            else "; ".join(
                f"ip address delete {address} dev {quote(name)}" for name, address in held[:NAMED]
            ),
        )


def _vtep(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that peers send to a MAC address which the vxlan device does not have.

    A running flanneld restores the address within a second.
    """
    if seen.status.is_live or seen.published_mac is None:
        return
    devices = [item for item in seen.items if isinstance(item, Link) and item.vxlan is not None]
    own = [item for item in devices if item.alias == seen.mark]
    if len(own) == 1 and own[0].mac != seen.published_mac:
        yield Finding(
            code="vtep-mac",
            severity="error",
            cause=f"{own[0].name} drops the packets of peers, because its MAC address differs from the "
            f"published one",
            evidence=(f"{own[0].name} has {own[0].mac}, the lease contains {seen.published_mac}",),
            fix=f"ip link set {quote(own[0].name)} address {seen.published_mac}",
        )


_VIRTUALBOX = IPv4Address("10.0.2.15")


def _public_address(seen: Observed) -> Iterator[Finding]:
    """Yield a finding for a public address at which peers cannot reach this host."""
    underlay = seen.status.underlay
    if underlay is None:
        return
    link = seen.interfaces.named(underlay.link)
    if underlay.public_ip == _VIRTUALBOX:
        yield Finding(
            code="nat-address",
            severity="error",
            cause="peers cannot reach 10.0.2.15, the address that VirtualBox gives to every guest",
            evidence=(f"{underlay.link} has {underlay.address}, published as {underlay.public_ip}",),
            fix="flanneld --iface=eth1  # the interface that reaches the other hosts",
        )
    elif link is not None and not link.holds(underlay.address):
        yield Finding(
            code="address-gone",
            severity="error",
            cause=f"{underlay.link} has lost {underlay.address}, the address of the tunnel",
            evidence=(f"ip address show {underlay.link}: no {underlay.address}",),
            fix=f"ip address add {underlay.address}/PREFIX dev {quote(underlay.link)}",
        )
    elif (
        underlay.public_ip != underlay.address
        and seen.interfaces.holder(underlay.public_ip) is None
        and any(underlay.public_ip in prefix for prefix in seen.on_link)
    ):
        yield Finding(
            code="public-address",
            severity="error",
            cause=f"peers send to {underlay.public_ip}, which no interface of this host has",
            evidence=(f"{underlay.link} has {underlay.address}, published as {underlay.public_ip}",),
            fix="flanneld --public-ip=ADDRESS  # an address at which other hosts can reach this host",
        )


def blocking_policy(flow: Flow, interfaces: Interfaces) -> IpsecPolicy | None:
    """Return the IPsec policy that drops the packets of a flow; None if none does.

    The matching policy with the lowest priority number decides. If several policies have this number, the
    oldest policy decides, which the kernel lists last. A forwarded packet is also checked when it leaves.

    Source: net/xfrm/xfrm_policy.c, xfrm_policy_match, xfrm_policy_insert_list, xfrm_policy_walk.
    """
    packet = flow.packet
    directions = {IN: ("in",), OUT: ("out",), THROUGH: ("forward", "out")}.get(flow.hooks, ())
    for direction in directions:
        name = packet.oif if direction == "out" else packet.iif
        link = interfaces.named(name)
        index = 0 if link is None else link.index
        matching = [
            one
            for one in reversed(interfaces.policies)
            if one.direction == direction and _selects(one, packet, index)
        ]
        first = min(matching, key=lambda one: one.priority, default=None)
        if first is not None and first.is_block:
            return first
    return None


def _selects(policy: IpsecPolicy, packet: Packet, link: int) -> bool:
    return (
        packet.source in policy.source
        and packet.destination in policy.destination
        and policy.protocol in (0, packet.protocol)
        and ((packet.destination_port or 0) ^ policy.port) & policy.port_mask == 0
        and ((packet.source_port or 0) ^ policy.source_port) & policy.source_port_mask == 0
        and policy.link in (0, link)
        and (packet.mark or 0) & policy.mark_mask == policy.mark
    )


def policy_text(policy: IpsecPolicy) -> str:
    """Return a policy as `ip xfrm policy` shows it."""
    if policy.priority > _LEAST_PRIORITY:
        return f"ip xfrm policy getdefault: {_DIRECTION[policy.direction]}: block"
    return f"ip xfrm policy: {_selector(policy)} action block priority {policy.priority}"


_LEAST_PRIORITY = 0xFFFFFFFF
"""The greatest priority number of a policy. The default action of the host has an even greater number."""

_DIRECTION = {"in": "in", "out": "out", "forward": "fwd"}


def _selector(policy: IpsecPolicy) -> str:
    """Return the selector of a policy in the syntax of `ip xfrm policy`."""
    protocol = "" if not policy.protocol else f" proto {_PROTOCOLS.get(policy.protocol, policy.protocol)}"
    ports = [("sport", policy.source_port, policy.source_port_mask), ("dport", policy.port, policy.port_mask)]
    shown = "".join(f" {name} {number}" for name, number, mask in ports if mask)
    mark = f" mark {policy.mark:#x} mask {policy.mark_mask:#x}" if policy.mark_mask else ""
    ends = f"src {policy.source} dst {policy.destination}"
    return f"{ends}{protocol}{shown} dir {_DIRECTION[policy.direction]}{mark}"


_PROTOCOLS = {6: "tcp", UDP: "udp"}


def policy_removal(policy: IpsecPolicy) -> str:
    """Return the command that removes a policy, or the default action of the host."""
    if policy.priority > _LEAST_PRIORITY:
        return f"ip xfrm policy setdefault {_DIRECTION[policy.direction]} accept"
    return f"ip xfrm policy delete {_selector(policy)}"


def _blocked_by_ipsec(seen: Observed) -> Iterator[Finding]:
    """Yield the IPsec policies that drop packets of the overlay."""
    found: dict[IpsecPolicy, str] = {}
    for flow in (*tunnel_flows(seen), *container_flows(seen)):
        if (policy := blocking_policy(flow, seen.interfaces)) is not None:
            found.setdefault(policy, flow.noun)
    if found:
        nouns = " and ".join(dict.fromkeys(found.values()))
        yield Finding(
            code="ipsec-block",
            severity="error",
            cause=f"IPsec policies drop {nouns}",
            evidence=some([policy_text(policy) for policy in found]),
            fix=f"{'; '.join(policy_removal(one) for one in list(found)[:NAMED])}"
            "  # or change the connection of the IPsec daemon that installs it",
        )


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    forwarding,
    _source_refused,
    _diverted,
    _arp,
    bridge_down,
    _container_routes,
    _bridge_subnet,
    _addresses,
    _public_address,
    _vtep,
    _reverse_path,
    _port_mtus,
    _blocked_by_ipsec,
)
