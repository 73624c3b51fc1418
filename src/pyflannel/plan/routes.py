"""Routes that several backends plan, and the routes that no plan may contain.

Regardless of the content of the store, no planned route redirects packets for an address that the host needs
to reach the store: the store itself, a default gateway, and the addresses that the underlay reaches without a
gateway. A plan never replaces or removes a route of another program. The kernel uses the route with the
longest prefix. Therefore a network that contains the underlay does not redirect packets for which the
underlay has routes with longer prefixes.
"""

from collections.abc import Collection, Container, Iterable
from ipaddress import IPv6Address, ip_network
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.host import Host, Surroundings, Underlay
from pyflannel.model.item import Key
from pyflannel.model.lease import LeasePart
from pyflannel.model.network_config import IpAddress, IpNetwork, is_part
from pyflannel.model.route import Route, usual_metric
from pyflannel.model.state import State
from pyflannel.plan.leftovers import is_on_originals_device

Effect = Literal["replaces", "captures", "contains"]
"""Effects of a route on a prefix: it replaces the route to the prefix; it is longer and has precedence for
a part of the prefix; or it is shorter, and the route to the prefix has precedence."""

Routed = Literal["network", "peers", "nothing"]
"""Destinations of a backend's routes: the whole network, the subnet of each peer, or none."""


class HostPrefix(Struct, frozen=True):
    """A prefix that the host must reach without the overlay; `role` is its name in messages."""

    prefix: IpNetwork
    role: str


class RouteConflict(Struct, frozen=True, kw_only=True):
    """A route to `destination` through the overlay, and the prefix of the host that it overlaps."""

    destination: IpNetwork
    other: HostPrefix
    effect: Effect

    @property
    def text(self) -> str:
        """The text of the conflict, in one sentence without its full stop."""
        match self.effect:
            case "replaces":
                return (
                    f"{self.destination} is {self.other.role} itself: it is not routed to the overlay,"
                    " because this host would lose the underlay"
                )
            case "captures":
                return (
                    f"{self.destination} is a part of {self.other.prefix}, {self.other.role}: it is not"
                    " routed to the overlay, because this host would lose hosts and gateways of the underlay"
                )
            case "contains":
                return (
                    f"{self.destination} contains {self.other.prefix}, {self.other.role}: leases there are"
                    " refused, because this host would lose hosts and gateways of the underlay"
                )


def on_link_prefixes(link: str, on_link: Iterable[IpNetwork]) -> tuple[HostPrefix, ...]:
    """Return the prefixes that the host reaches without a gateway through the link that carries the
    tunnel.
    """
    return tuple(HostPrefix(prefix, f"the prefix of {link}") for prefix in on_link)


def conflicts(destinations: Iterable[IpNetwork], prefixes: Iterable[HostPrefix]) -> tuple[RouteConflict, ...]:
    """Return all conflicts of routes to `destinations` with the host's prefixes, in the order of the
    destinations.
    """
    of_host = tuple(prefixes)
    return tuple(
        RouteConflict(destination=destination, other=other, effect=_effect(destination, other.prefix))
        for destination in destinations
        for other in of_host
        if destination.overlaps(other.prefix)
    )


def _effect(destination: IpNetwork, prefix: IpNetwork) -> Effect:
    if destination == prefix:
        return "replaces"
    return "captures" if destination.prefixlen > prefix.prefixlen else "contains"


def foreign(
    found: Surroundings, network: IpNetwork, links: Collection[str], planned: Container[Key]
) -> Surroundings:
    """Return the surroundings that can conflict with a plan for this network.

    A route at a key of the plan in force does not count as a route of another program, because it is damage,
    and is repaired. A route on a link of the plan, or on another device of an original flannel, is taken
    over.

    Args:
        found: the observed surroundings.
        network: range of the network in the plan.
        links: names of the plan's own links.
        planned: keys of the plan in force.
    """
    return replace(
        found,
        networks=frozenset(),
        routes=tuple(
            route
            for route in found.routes
            if route.link not in links
            and not is_on_originals_device(route)
            and route.key not in planned
            and route.destination.overlaps(network)
        ),
        gateways=_within(found.gateways, network),
        stores=_within(found.stores, network),
        resolvers=_within(found.resolvers, network),
    )


def outside(found: Surroundings, subnet: IpNetwork) -> Surroundings:
    """Return the surroundings without the routes to containers of this host."""
    return replace(
        found,
        routes=tuple(route for route in found.routes if not is_part(route.destination, subnet)),
    )


def _within(addresses: Iterable[IpAddress], network: IpNetwork) -> tuple[IpAddress, ...]:
    return tuple(address for address in addresses if address in network)


def route_objection(
    destination: IpNetwork,
    underlay: Underlay,
    surroundings: Surroundings,
    *,
    adopted: LeasePart | None = None,
) -> str | None:
    """Return the reason why a route with the usual metric to `destination` may not be planned; None if it may
    be planned.

    A blackhole has the greatest metric and may be planned.

    Args:
        destination: destination of the route into the overlay.
        underlay: the underlay, whose prefixes must remain reachable.
        surroundings: the other routes of the host, and the addresses that it needs.
        adopted: a peer. A route of any program to the peer's subnet, with the peer's address as gateway,
            counts as the planned route.
    """
    if (loss := _loss(destination, underlay, surroundings)) is not None:
        return loss
    for route in surroundings.routes:
        if (
            route.destination == destination
            and route.metric == usual_metric(destination)
            and not _leads_to(route, adopted, underlay)
        ):
            return f"{destination} has a route of another program ({shown(route)}), which is not replaced"
    return None


def peer_objection(peer: LeasePart, host: Host) -> str | None:
    """Return the reason why the peer's address or the route itself prevents a route to a peer's subnet; None
    if the route is planned.
    """
    return address_objection(peer.address, host) or route_objection(
        peer.subnet, host.underlay, host.surroundings, adopted=peer
    )


def network_objection(
    network: IpNetwork | None, routed: Routed, underlay: Underlay, surroundings: Surroundings
) -> str | None:
    """Return the reason why this host cannot use a config with this network, in one sentence; None if it
    can use it.
    """
    if network is None or routed == "nothing":
        return None
    if routed == "network":
        return route_objection(network, underlay, surroundings)
    return _loss_of_underlay(network, underlay)  # the same is true for each part of the prefix


def subnet_objection(subnet: IpNetwork, underlay: Underlay, surroundings: Surroundings) -> str | None:
    """Return the reason why containers of this host cannot have this subnet, in one sentence; None if they
    can have it.

    The bridge of the containers has a route to the subnet. If this route exists already, it does not redirect
    additional packets. The first address becomes the address of the tunnel device.
    """
    has_bridge = any(route.destination == subnet for route in surroundings.routes)
    if not has_bridge and (loss := _loss(subnet, underlay, surroundings)) is not None:
        return loss
    base = subnet.network_address
    if underlay.reaches(base) or base in (*surroundings.stores, *surroundings.gateways):
        return f"{subnet} begins with {base}, an address that this host must reach"
    return None


def avoided(network: IpNetwork, underlay: Underlay, surroundings: Surroundings) -> tuple[IpNetwork, ...]:
    """Return the prefixes in a network that no new subnet of this host should overlap, in ascending order."""
    addresses = (*surroundings.stores, *surroundings.gateways, *surroundings.resolvers)
    found = {*underlay.on_link, *_destinations(surroundings.routes), *map(_alone, addresses)}
    inside = (one for one in found if one != network and is_part(one, network))
    return tuple(sorted(inside, key=lambda one: (int(one.network_address), one.prefixlen)))


def _alone(address: IpAddress) -> IpNetwork:
    return ip_network((address, address.max_prefixlen))


def has_precedence(destination: IpNetwork, address: IpAddress, others: Iterable[IpNetwork]) -> bool:
    """Return whether a route to `destination` has precedence over these routes for an address."""
    return address in destination and not any(
        other.prefixlen > destination.prefixlen and address in other for other in others
    )


def _loss(destination: IpNetwork, underlay: Underlay, surroundings: Surroundings) -> str | None:
    loss = _loss_of_underlay(destination, underlay)
    if loss is not None or not (surroundings.stores or surroundings.gateways):
        return loss
    others = [*underlay.on_link, *_destinations(surroundings.routes)]
    for role, addresses in (
        ("an address of the store", surroundings.stores),
        ("the default gateway", surroundings.gateways),
    ):
        for address in addresses:
            if address not in surroundings.addresses and has_precedence(destination, address, others):
                return f"{destination} contains {address}, {role}, which this host would lose"
    return None


def _loss_of_underlay(destination: IpNetwork, underlay: Underlay) -> str | None:
    base, length, width = int(destination.network_address), destination.prefixlen, destination.max_prefixlen
    for prefix in underlay.on_link:  # for speed: the methods of ipaddress take ten times as long
        if (
            length >= prefix.prefixlen
            and not (base ^ int(prefix.network_address)) >> (width - prefix.prefixlen)
            and prefix.max_prefixlen == width
        ):
            return conflicts([destination], on_link_prefixes(underlay.link, [prefix]))[0].text
    return None


def _leads_to(route: Route, peer: LeasePart | None, underlay: Underlay) -> bool:
    return (
        peer is not None
        and route.kind == "unicast"
        and (route.link, route.gateway) == (underlay.link, peer.address)
    )


def _destinations(routes: Iterable[Route]) -> list[IpNetwork]:
    return [route.destination for route in routes]


def shown(route: Route) -> str:
    """Return a route in the format of `ip route`."""
    gateway = f" via {route.gateway}" if route.gateway is not None else ""
    link = f" dev {route.link}" if route.link else ""
    kind = "" if route.kind == "unicast" else f"{route.kind} "
    return f"{kind}{route.title}{gateway}{link} proto {route.protocol}"


_DEFAULT_IN_HALVES = 1
"""A VPN routes all packets to itself with two prefixes of this length."""

_NAMED = 8
"""Maximum number of routes of other programs that the notes name."""


def network_notes(
    network: IpNetwork | None, underlay: Underlay, surroundings: Surroundings
) -> tuple[str, ...]:
    """Return the overlaps of a network with the host that cause no refusal, one line each."""
    if network is None:
        return ()
    found = conflicts([network], on_link_prefixes(underlay.link, underlay.on_link))
    routes = [
        route
        for route in surroundings.routes
        if route.destination not in underlay.on_link and route.destination.prefixlen > _DEFAULT_IN_HALVES
    ]
    notes = [overlap_note(network, route) for route in routes[:_NAMED]]
    if len(routes) > _NAMED:
        notes.append(f"Network {network} overlaps {len(routes) - _NAMED} more routes of this host")
    others = [*underlay.on_link, *_destinations(surroundings.routes)]
    names = [
        f"Network {network} contains {address}, a DNS server of this host: a lease that contains this "
        "address hides the server"
        for address in surroundings.resolvers
        if address not in surroundings.addresses and has_precedence(network, address, others)
    ]
    return (*(f"Network {one.text}" for one in found), *notes, *names)


def overlap_note(network: IpNetwork, route: Route) -> str:
    """Return the effect of the overlap between the network and a route of another program, in one line."""
    destination = route.destination
    if destination.prefixlen < network.prefixlen:
        return f"Network {network} is a part of {destination} ({shown(route)}): its packets enter the overlay"
    if destination == network:
        return f"Network {network} has a route of another program too ({shown(route)})"
    return (
        f"Network {network} contains {destination}, routed by another program ({shown(route)}): packets to it"
        " do not enter the overlay"
    )


# Addresses of peers.

NO_IPV6 = "its lease has no IPv6 subnet or no PublicIPv6, so that only IPv4 reaches it"
"""The reason to refuse a peer that publishes no IPv6 part."""

_EVERY_ADDRESS = 31
"""Prefix length from which on a prefix has no broadcast address (RFC 3021)."""

_NO_HOST = frozenset({0, 127})
"""First bytes of addresses that are never a destination, and that mean the host itself (RFC 1122 section
3.2.1.3)."""

_MULTICAST = 0xE
_LINK_LOCAL = 0xA9FE
_BROADCAST = 0xFFFFFFFF
"""224.0.0.0/4 (RFC 5771), 169.254.0.0/16 (RFC 3927), 255.255.255.255."""


def address_objection(address: IpAddress, host: Host) -> str | None:
    """Return the reason why no backend can send to a peer's address; None if a backend can."""
    underlay = host.underlay
    if isinstance(address, IPv6Address):
        return _ipv6_address_objection(address, host)
    value = int(address)
    if value >> 24 in _NO_HOST or value >> 28 == _MULTICAST or value == _BROADCAST:
        return f"{address} is not the address of a host"
    if address == underlay.address or address in host.surroundings.addresses:
        return f"{address} is an address of this host"
    if value >> 16 == _LINK_LOCAL and not underlay.reaches(address):
        return f"{address} is a link-local address, and {underlay.link} has no route to it without a gateway"
    for prefix in underlay.on_link:
        ends = prefix.network_address, prefix.broadcast_address
        if prefix.prefixlen < _EVERY_ADDRESS and address in ends:
            return f"{address} is not the address of a host: it is reserved in {prefix}"
    return None


def _ipv6_address_objection(address: IPv6Address, host: Host) -> str | None:
    if address.is_multicast or address.is_unspecified or address.is_loopback or address.ipv4_mapped:
        return f"{address} is not the address of a host"
    if address.is_link_local:
        return f"{address} is a link-local address, which is ambiguous on a host with several interfaces"
    if address == host.underlay.ipv6_address or address in host.surroundings.addresses:
        return f"{address} is an address of this host"
    return None


def overlay_objection(address: IpAddress, routed: Iterable[IpNetwork], host: Host) -> str | None:
    """Return the conflict if a peer's address is routed into the overlay; None if it is not routed there.

    Tunnel packets to the peer would enter the tunnel again, in a loop.

    Args:
        address: address of the peer on the underlay.
        routed: destinations of routes into the overlay, and this host's subnet.
        host: the host with its other routes, which have precedence if they are longer.
    """
    others = [*host.underlay.on_link, *_destinations(host.surroundings.routes)]
    for destination in routed:
        if has_precedence(destination, address, others):
            return f"{address} is in {destination}, which is routed into the overlay: packets would loop"
    return None


def direct_route(peer: LeasePart, host: Host) -> Route:
    """Return the route to a peer's subnet with the peer as gateway, which must be on the underlay's link."""
    return Route(
        destination=peer.subnet,
        gateway=peer.address,
        link=host.underlay.link,
        metric=usual_metric(peer.subnet),
        protocol=host.protocol,
    )


# The blackhole for this host's subnet, which drops packets that no bridge of containers accepts.
#
# Without this blackhole, a packet that no bridge accepts leaves the host by another route, returns, because
# the subnet belongs to this host, and loops until its TTL ends.

METRIC = 2**32 - 1
"""The greatest metric, so that the route of a bridge to the same subnet has precedence."""


def plan_fence(network: IpNetwork, protocol: int) -> Route:
    """Return the route that drops packets to a network without a device, so that no packet leaves
    unencrypted.
    """
    return Route(destination=network, link="", kind="blackhole", metric=METRIC, protocol=protocol)


def fences_in_use(routes: Collection[Route], links: Container[str]) -> list[Route]:
    """Return the routes of `plan_fence` that still drop packets of containers of this host.

    Args:
        routes: the routes of the host.
        links: links of pyflannel; any other link with a part of the network leads to containers.
    """
    return [
        fence
        for fence in routes
        if (fence.kind, fence.metric) == ("blackhole", METRIC)
        and any(
            route.kind == "unicast" and route.link not in links and _is_part(route.destination, fence)
            for route in routes
        )
    ]


def _is_part(destination: IpNetwork, fence: Route) -> bool:
    return destination != fence.destination and is_part(destination, fence.destination)


def plan_blackhole(host: Host) -> State:
    """Return the route that drops packets to this host's subnet that no bridge accepts."""
    return State.of(
        Route(destination=host.subnet, link="", kind="blackhole", metric=METRIC, protocol=host.protocol)
    )
