"""Routes of the main table."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from pyflannel.model.item_map import Key

PROTOCOL_KERNEL = 2
"""rtm_protocol of what the kernel adds with an address (linux/rtnetlink.h, RTPROT_KERNEL)."""

PROTOCOL_FLANNEL = 80
"""rtm_protocol of the routes that we add."""

SCOPE_GLOBAL = 0
SCOPE_LINK = 253
"""rtm_scope (linux/rtnetlink.h)."""


def route_key(version: int, base: int, length: int, metric: int) -> Key:
    """Return the key of the route to the prefix of this length that begins at the address `base`."""
    return ("route", version, length, metric), base


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Packets to `destination` leave by `link`, towards `gateway` when there is one.

    Attributes:
        metric: the kernel's priority; two routes to one destination differ by it.
        source: preferred source address of the host's own packets.
        is_onlink: the gateway is reached on the link although no route says so.
        kind: `unicast`, `blackhole`, `unreachable`, `prohibit`, …, or `multipath`, which we never plan.
    """

    destination: IPv4Network | IPv6Network
    link: str
    gateway: IPv4Address | IPv6Address | None = None
    source: IPv4Address | IPv6Address | None = None
    metric: int = 0
    protocol: int = PROTOCOL_FLANNEL
    scope: int = SCOPE_GLOBAL
    is_onlink: bool = False
    kind: str = "unicast"

    @property
    def key(self) -> Key:
        """What makes two values one kernel object: link and gateway may be replaced."""
        base = self.destination.network_address
        return route_key(base.version, int(base), self.destination.prefixlen, self.metric)
