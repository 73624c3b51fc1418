"""Routes that several backends plan, and their conflicts with the routes of the underlay."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Literal

from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease
from pyflannel.model.route import Route
from pyflannel.model.state import State

Effect = Literal["replaces", "captures", "contains"]
"""The route to the destination takes the place of that to the prefix; it wins for a part of the prefix, as it
is longer; or it is shorter, and loses where the prefix is routed."""


@dataclass(frozen=True, slots=True)
class HostPrefix:
    """A prefix that the host must reach without the overlay; `role` names it in messages."""

    prefix: IPv4Network
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteConflict:
    """A route to `destination` through the overlay, and the prefix of the host that it overlaps."""

    destination: IPv4Network
    other: HostPrefix
    effect: Effect

    @property
    def text(self) -> str:
        """What is wrong, in one sentence without its full stop."""
        match self.effect:
            case "replaces":
                return (
                    f"{self.destination} is {self.other.role} itself: it is not routed to the overlay,"
                    " as this host would lose the underlay"
                )
            case "captures":
                return (
                    f"{self.destination} is a part of {self.other.prefix}, {self.other.role}: hosts and"
                    " gateways there with such addresses may become unreachable"
                )
            case "contains":
                return (
                    f"{self.destination} contains {self.other.prefix}, {self.other.role}: a lease there may"
                    " make hosts of the underlay unreachable"
                )


def on_link_prefixes(link: str, on_link: Iterable[IPv4Network]) -> tuple[HostPrefix, ...]:
    """Return the prefixes that the host reaches without a gateway by the link that carries the tunnel."""
    return tuple(HostPrefix(prefix, f"the prefix of {link}") for prefix in on_link)


def conflicts(
    destinations: Iterable[IPv4Network], prefixes: Iterable[HostPrefix]
) -> tuple[RouteConflict, ...]:
    """Return every conflict of routes to `destinations` with the host's prefixes, in this order."""
    of_host = tuple(prefixes)
    return tuple(
        RouteConflict(destination=destination, other=other, effect=_effect(destination, other.prefix))
        for destination in destinations
        for other in of_host
        if destination.overlaps(other.prefix)
    )


def route_objection(destination: IPv4Network, underlay: Underlay) -> str | None:
    """Return why no route of the overlay may lead to `destination`, in one sentence; None when one may.

    It would replace the connected route of the underlay where both have the same metric, and win where that
    has a greater one, as a DHCP client writes it. A blackhole, which has the greatest metric, may be planned.
    """
    if destination not in underlay.on_link:
        return None
    (found,) = conflicts([destination], on_link_prefixes(underlay.link, [destination]))
    return found.text


def network_notes(network: IPv4Network | None, underlay: Underlay) -> tuple[str, ...]:
    """Return what is wrong with a network that overlaps the underlay, in a line each."""
    if network is None:
        return ()
    found = conflicts([network], on_link_prefixes(underlay.link, underlay.on_link))
    return tuple(f"Network {one.text}" for one in found)


def _effect(destination: IPv4Network, prefix: IPv4Network) -> Effect:
    if destination == prefix:
        return "replaces"
    return "captures" if destination.prefixlen > prefix.prefixlen else "contains"


_EVERY_ADDRESS = 31
"""From this prefix length on no address of a prefix is its broadcast (RFC 3021)."""


def address_objection(peer: Lease, host: Host) -> str | None:
    """Return why nothing can be sent to a peer's address, whatever the backend; None when it can."""
    address = peer.attributes.public_ip
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_reserved:
        return f"{address} is no address of a host"
    if address == host.underlay.address:
        return f"{address} is our own address"
    for prefix in host.underlay.on_link:
        ends = prefix.network_address, prefix.broadcast_address
        if prefix.prefixlen < _EVERY_ADDRESS and address in ends:
            return f"{address} is no address of a host, but one of {prefix} itself"
    return None


def direct_route(peer: Lease, host: Host) -> Route:
    """Return the route to a peer's subnet by way of the peer, which must be on our link."""
    return Route(
        destination=peer.subnet,
        gateway=peer.attributes.public_ip,
        link=host.underlay.link,
        protocol=host.protocol,
    )


# The blackhole for our own subnet: what takes packets to it where no bridge of containers does.
#
# Without it such a packet leaves the host by another route, comes back, as the subnet is ours, and goes round
# until its TTL ends.

METRIC = 2**32 - 1
"""The last of all: the route of a bridge with this very subnet comes before it, whenever it is made."""


def plan_blackhole(host: Host) -> State:
    """Return the route that drops what nobody on this host takes; IPv6 will be a second one."""
    return State.of(
        Route(destination=host.lease.subnet, link="", kind="blackhole", metric=METRIC, protocol=host.protocol)
    )
