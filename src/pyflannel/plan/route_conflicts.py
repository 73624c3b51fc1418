"""Routes of the overlay that conflict with prefixes that the host must reach without it."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Literal

from pyflannel.model.host import Underlay

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
