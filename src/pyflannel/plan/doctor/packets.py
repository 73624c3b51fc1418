"""Faults of this host that stop packets of the overlay: forwarding, routes, interfaces."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from shlex import quote

from pyflannel.model.link import Link
from pyflannel.model.network_config import Family
from pyflannel.model.route import Route
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.families import items_in
from pyflannel.plan.doctor.observed import NAMED, Observed, main_route, resolution, shown, some
from pyflannel.plan.leftovers import is_within

_DOCKER0 = "docker0"
_DOCKER_FIX = "mk-docker-opts -c -d /etc/default/docker  # restart Docker with it, recreate containers"


def forwarding(seen: Observed) -> Iterator[Finding]:
    """Yield findings for settings because of which the host does not forward packets of the overlay."""
    backend = seen.status.backend
    tunnel = backend.link if backend is not None else None
    on_the_way = (*seen.ports, tunnel or seen.membership.underlay or "")
    is_forced = seen.family == 6 and not seen.unforwarded.intersection(on_the_way)
    if seen.forwards is False and not is_forced:
        yield Finding(
            code="forwarding-off",
            severity="error",
            cause=_UNFORWARDED[seen.family],
            evidence=(f"{FORWARDING[seen.family]} = 0",),
            fix=forwarding_on(seen.family, _routers_on(seen)),
        )
        return
    if seen.family == 6:
        return
    if links := [link for link in on_the_way if link in seen.unforwarded]:
        yield Finding(
            code="forwarding-off",
            severity="error",
            cause=f"the host does not forward the packets that arrive at {' and '.join(links)}",
            evidence=tuple(f"net.ipv4.conf.{link}.forwarding = 0" for link in links),
            fix=forwarded(*links),
        )


FORWARDING: Mapping[Family, str] = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
"""The setting that makes the host forward packets of a family."""

_UNFORWARDED: Mapping[Family, str] = {
    4: "the host forwards no packets, so its containers cannot reach other hosts",
    6: "the host forwards no IPv6 packets, so its containers cannot reach other hosts by IPv6",
}
_FROM_ROUTER = 9
"""rtm_protocol of routes from router advertisements (linux/rtnetlink.h, RTPROT_RA)."""


def forwarding_on(family: Family, routers: Iterable[str] = ()) -> str:
    """Return the command that makes the host forward packets of a family.

    `routers`: links with routes from router advertisements. A host that forwards IPv6 packets loses these
    routes, unless accept_ra of the link is 2.
    """
    kept = [quote(f"net/ipv6/conf/{link}/accept_ra=2") for link in routers if family == 6]
    return " ".join(["sysctl -w", *kept, f"{FORWARDING[family]}=1"])


def _routers_on(seen: Observed) -> list[str]:
    routes = (item for item in seen.items if isinstance(item, Route) and item.protocol == _FROM_ROUTER)
    return sorted({route.link for route in routes if route.link})


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
            evidence=some(
                [*(f"{_IP_RULE[seen.family]}: {rule}" for rule in rules), *(one.text for one in wrong)]
            ),
            fix=f"{_IP_RULE[seen.family]} add to {seen.membership.network} lookup main priority 1",
        )


def _diverted_by_mark(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that policy rules divert marked packets, and that filter rules set the mark.

    The conditions of these filter rules are not evaluated.
    """
    lines = []
    for one in seen.marked_answers:
        (rule,) = one.rules
        setters = _setters(seen, mark_of(rule))
        if setters and one.link != _link_of(main_route(seen, one.destination)):
            lines += [f"{_IP_RULE[seen.family]}: {rule}", *setters, one.text]
    if lines:
        yield Finding(
            code="policy-rule",
            severity="warning",
            cause="a policy rule diverts marked packets, and filter rules mark packets, perhaps those of"
            " containers to other hosts",
            evidence=some(lines),
            fix=f"{_IP_RULE[seen.family]} add to {seen.membership.network} lookup main priority 1",
        )


_FIREWALL_MARK = re.compile(r"^\d+:(?! not ).* fwmark (0x[\da-f]+|\d+)")
_SET_MARK = re.compile(r"(?:\bmark set|--set-x?mark) (0x[\da-f]+|\d+)")


def mark_of(rule: str) -> int:
    """Return the mark that a policy rule selects; 0 if it selects no mark."""
    found = _FIREWALL_MARK.search(rule)
    return 0 if found is None else int(found[1], 0)


def _setters(seen: Observed, mark: int) -> list[str]:
    """Return the filter rules that set a mark."""
    return [
        *dict.fromkeys(
            f"{chain.program} rule in {chain.table} {name}: {rule.text}"
            for chain in seen.ruleset
            for name, rules in chain.chains.items()
            for rule in rules
            if any(int(value, 0) == mark for value in _SET_MARK.findall(rule.text))
        )
    ]


_IP_RULE: Mapping[Family, str] = {4: "ip rule", 6: "ip -6 rule"}


def _link_of(route: Route | None) -> str | None:
    return None if route is None else route.link


def _port_mtus(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers send too large packets: by the ports of a bridge or, if the ports are
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
    """Yield findings for containers that cannot send to other hosts. Containers without a route may be
    intended, for example in an internal network.
    """
    own, peer = seen.membership.subnet, next(iter(seen.membership.peers), None)
    if own is None or peer is None:
        return
    there, pids = peer.network_address + 2, list[int]()
    lost = []
    for one in seen.containers:
        held = sorted((held for held in one.addresses if held in own), key=int)
        if held and not one.has_route_to(there):
            route = one.route_to(there)
            refused = "" if route is None else f", refuses packets to {route.destination}"
            lost += [f"{address}, {one.process}{refused}" for address in held]
            pids.append(one.pid)
    if lost:
        yield Finding(
            code="container-route",
            severity="info",
            cause="these containers have no route to other hosts",
            evidence=some(lost),
            fix=f"nsenter --net --target {pids[0]} ip -{seen.family} route"
            "  # the default route must lead to the bridge, and no route may refuse the packets",
        )


def _container_gateways(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers send packets for other hosts to a gateway that is neither this host
    nor a container of this host.
    """
    own, peer = seen.membership.subnet, next(iter(seen.membership.peers), None)
    if own is None or peer is None:
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
    wrong = {
        f"{one.process}: {route.destination} via {route.gateway}": (one.pid, route)
        for one in seen.containers
        if any(held in own for held in one.addresses)
        if (route := one.route_to(peer.network_address + 2)) is not None and not route.is_refused
        if route.gateway is not None and route.gateway in own and route.gateway not in known
    }
    if wrong and here:
        yield Finding(
            code="container-gateway",
            severity="warning",
            cause="containers send packets for other hosts to an address that neither this host nor a"
            " container has",
            evidence=some([*wrong]),
            fix="; ".join(
                f"nsenter --net --target {pid} ip -{seen.family} route replace {route.destination}"
                f" via {here[0]}"
                for pid, route in [*wrong.values()][:NAMED]
            ),
        )


def _container_prefixes(seen: Observed) -> Iterator[Finding]:
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
            fix=_DOCKER_FIX,
        )


def bridge_down(seen: Observed) -> Iterator[Finding]:
    """Yield findings for bridges that are down, or on which IPv6 is off.

    The kernel then removes the IPv6 addresses of the link.
    """
    for name in seen.ports:
        link = seen.interfaces.named(name)
        own, again = seen.membership.subnet, ""
        if link is None or own is None:
            continue
        if seen.family == 6 and not any(held.address.ip in own for held in link.addresses):
            again = f"; ip address add {own[1]}/{own.prefixlen} dev {quote(name)}"
        if not link.is_up:
            yield Finding(
                code="bridge-down",
                severity="error",
                cause=f"the bridge {name} of the containers of this host is down",
                evidence=(f"ip link show {name}: state DOWN",),
                fix=f"ip link set {quote(name)} up{again}",
            )
        elif seen.family == 6 and not link.has_ipv6:
            yield Finding(
                code="ipv6-off",
                severity="error",
                cause=f"IPv6 is off on the bridge {name} of the containers of this host",
                evidence=(f"net.ipv6.conf.{name}.disable_ipv6 = 1",),
                fix=f"sysctl -w {quote(f'net/ipv6/conf/{name}/disable_ipv6=0')}{again}",
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
            cause=f"{resolution(lost[0])} is off on {link}, so this host reaches no peer on the same link",
            evidence=(
                f"ip link show {link}: NOARP",
                *some([f"{one}: no MAC address" for one in lost]),
            ),
            fix=f"ip link set {quote(link)} arp on",
        )


def _unanswered(seen: Observed) -> Iterator[Finding]:
    """Yield the settings by which the host does not answer requests of its peers."""
    link = seen.membership.underlay
    if seen.ignores_arp and link is not None:
        yield Finding(
            code="arp-ignored",
            severity="warning",
            cause=f"this host answers no ARP requests on {link}, so peers on the same link may not find it",
            evidence=(f"arp_ignore of {link} is 8",),
            fix=f"sysctl -w net/ipv4/conf/all/arp_ignore=0 {quote(f'net/ipv4/conf/{link}/arp_ignore=0')}",
        )
    if seen.ignores_echoes:
        setting = _ECHO_IGNORED[seen.family]
        yield Finding(
            code="echo-ignored",
            severity="warning",
            cause="this host answers no ICMP echo requests, so peers report it as unreachable, even if"
            " packets of containers arrive",
            evidence=(f"{setting} = 1",),
            fix=f"sysctl -w {setting}=0",
        )


_ECHO_IGNORED: Mapping[Family, str] = {
    4: "net.ipv4.icmp_echo_ignore_all",
    6: "net.ipv6.icmp.echo_ignore_all",
}


def _shaped(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the underlay has a queueing discipline of an operator that dropped packets."""
    link = seen.membership.underlay
    if seen.shapers and link is not None:
        yield Finding(
            code="underlay-shaped",
            severity="info",
            cause=f"traffic control at {link} drops packets, for example because it limits the rate",
            evidence=seen.shapers,
            fix=f"tc -statistics qdisc show dev {quote(link)}",
        )


def _taken(seen: Observed) -> Iterator[Finding]:
    """Yield the filters of traffic control that drop or redirect packets at links of the overlay."""
    tunnel = seen.status.backend.link if seen.status.backend is not None else None
    on_the_way = {
        seen.membership.underlay,
        tunnel,
        *seen.ports,
        *(one for ports in seen.ports.values() for one in ports),
    }
    found = [one for one in seen.taking_filters if one.link in on_the_way]
    if found:
        lines = [
            f"tc filter show dev {one.link} {one.direction}: pref {one.priority} {one.text},"
            f" {one.packets} packets"
            for one in found
        ]
        commands = dict.fromkeys(
            f"tc filter delete dev {quote(one.link)} {one.direction} pref {one.priority}" for one in found
        )
        yield Finding(
            code="filter-takes",
            severity="warning",
            cause="filters of traffic control drop or redirect packets, perhaps those of the overlay",
            evidence=some(lines),
            fix="; ".join([*commands][:NAMED]),
        )


def _bridge_subnet(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the containers of Docker have addresses outside this host's subnet."""
    own, docker0 = seen.membership.subnet, seen.interfaces.named(_DOCKER0)
    if own is None or docker0 is None or seen.ports or not seen.docker0_ports:
        return
    held = ", ".join(
        str(one.address)
        for one in docker0.addresses
        if one.address.version == own.version and not one.address.is_link_local
    )
    if not held and not seen.is_first:
        return  # Docker may use IPv4 alone
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
        if address.ip in network and address.ip not in own
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


def _local_routes(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the kernel takes packets for other hosts itself, although no interface has the
    address: the table local contains a route to it.
    """
    own = seen.membership.subnet
    taken = [
        one
        for one in seen.answers
        if one.way == "container out" and one.is_local and seen.interfaces.holder(one.destination) is None
        if own is not None and one.destination not in own
    ]
    if taken:
        first = taken[0].destination
        yield Finding(
            code="overlay-address",
            severity="error",
            cause="the table local of this host has routes to addresses of other hosts, so this host receives"
            " the packets for these addresses itself",
            evidence=some([one.text for one in taken]),
            fix="; ".join(
                f"ip -{seen.family} route delete local {one.destination} table local" for one in taken[:NAMED]
            )
            + f"  # for a longer range: ip -{seen.family} route show table local match {first}",
        )


def _vtep(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that peers send to a MAC address which the vxlan device does not have.

    A running flanneld restores the address within a second.
    """
    if seen.status.is_live or seen.published_mac is None:
        return
    items = items_in(seen.items, seen.family, is_first=seen.is_first)
    devices = [item for item in items if isinstance(item, Link) and item.vxlan is not None]
    own = [item for item in devices if item.alias == seen.mark]
    if len(own) == 1 and own[0].mac != seen.published_mac:
        yield Finding(
            code="vtep-mac",
            severity="error",
            cause=f"{own[0].name} drops the packets of peers, because its MAC address differs from the"
            " published address",
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


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    forwarding,
    _source_refused,
    _diverted,
    _diverted_by_mark,
    _arp,
    _unanswered,
    _shaped,
    _taken,
    bridge_down,
    _container_routes,
    _container_prefixes,
    _container_gateways,
    _bridge_subnet,
    _addresses,
    _local_routes,
    _public_address,
    _vtep,
    _reverse_path,
    _port_mtus,
)
