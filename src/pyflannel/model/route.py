"""Routes, neighbours and FDB entries: the objects that direct packets to a peer."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Literal

from msgspec import Struct

from pyflannel.model.item import ANY, Item, Key, LinkChanges, Marks, Rank
from pyflannel.model.network_config import IpAddress
from pyflannel.model.packet_filter import FIRST_DEVICE

PROTOCOL_KERNEL = 2
"""rtm_protocol of routes that the kernel adds with an address (linux/rtnetlink.h, RTPROT_KERNEL)."""

PROTOCOL_FLANNEL = 80
"""rtm_protocol of the routes of pyflannel."""

IPV6_METRIC = 1024
"""Metric of an IPv6 route for which none is requested (net/ipv6_route.h, IP6_RT_PRIO_USER)."""

_IPV4_BITS = 32


def usual_metric(destination: IPv4Network | IPv6Network) -> int:
    """Return the metric of a route for which no metric is requested."""
    return 0 if destination.max_prefixlen == _IPV4_BITS else IPV6_METRIC


SCOPE_GLOBAL = 0
SCOPE_LINK = 253
"""rtm_scope (linux/rtnetlink.h)."""


def route_key(version: int, base: int, length: int, metric: int) -> Key:
    """Return the key of the route to the prefix of this length that begins at the address `base`."""
    return ("route", version, length, metric), base


class Route(Item, frozen=True, kw_only=True):
    """Packets to `destination` leave by `link`, and are sent to `gateway` if the route has a gateway.

    Attributes:
        metric: metric of the route in the kernel; two routes to one destination have different metrics.
        source: preferred source address of the host's own packets.
        is_onlink: True if the gateway is reached on the link without a route to it.
        mtu: size in bytes of the largest packet; 0 for the MTU of the link.
        kind: type of the route: `unicast`, `blackhole`, `unreachable`, `prohibit`, …, or `multipath`, which
            is never planned.
    """

    KIND = "route"
    PLURAL = "routes"
    RANK = Rank.ROUTE

    destination: IPv4Network | IPv6Network
    link: str
    gateway: IPv4Address | IPv6Address | None = None
    source: IPv4Address | IPv6Address | None = None
    metric: int = 0
    protocol: int = PROTOCOL_FLANNEL
    scope: int = SCOPE_GLOBAL
    is_onlink: bool = False
    mtu: int = 0
    kind: str = "unicast"

    @property
    def key(self) -> Key:
        """The identity of the kernel object. Link and gateway can be replaced in place."""
        base = self.destination.network_address
        return route_key(base.version, int(base), self.destination.prefixlen, self.metric)

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        metric = f" metric {self.metric}" if self.metric else ""
        return f"route {self.destination}{metric}"

    @property
    def parent_link(self) -> str | None:
        """The link by which packets leave; None for a blackhole."""
        return self.link or None

    def after(self, changes: LinkChanges) -> "Route | None":
        """Return the route, or None if its link is created again or if the link loses its last IPv4
        address.
        """
        is_ipv4 = self.destination.version == 4
        is_dropped = self.link in changes.recreated or (is_ipv4 and self.link in changes.unaddressed)
        return None if is_dropped else self

    @property
    def requires(self) -> tuple[Key, ...]:
        """The key of the route's link, and the keys of the addresses that are still missing on the link. One
        of these addresses may be the source.
        """
        return (("link", self.link), (("address", self.link), ANY)) if self.link else ()

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the route is on a link of pyflannel, or has the daemon's protocol number."""
        return self.link in marks.links or (
            marks.device is not None and self.protocol == route_protocol(marks.device)
        )


# Route protocols, which are the numbers by which daemons on one host recognize their routes.
#
# A route has no alias and no name. The protocol of a route is one byte, which the kernel stores but does not
# use. The daemon that claims flannel0 uses 80, the daemon of flannel1 uses 101, that of flannel2 uses 102,
# and so on. Other programs use the numbers nearby: OVN uses 84, openr uses 99, and routing daemons use 186 to
# 198 (linux/rtnetlink.h, rt_protos of iproute2).

_STEM = "flannel"
_BEFORE_OTHERS = 100
_OTHERS = range(1, 80)

PROTOCOLS = frozenset({PROTOCOL_FLANNEL, *(_BEFORE_OTHERS + number for number in _OTHERS)})
"""All route protocol numbers that pyflannel daemons may use."""

DEVICES = (FIRST_DEVICE, *(f"{_STEM}{number}" for number in _OTHERS))
"""All names that a daemon may claim; each name has its own number."""


def route_protocol(device: str) -> int:
    """Return the rtm_protocol of the routes of the daemon that claims this name."""
    number = device.removeprefix(_STEM)
    if device != FIRST_DEVICE and number.isdecimal() and int(number) in _OTHERS:
        return _BEFORE_OTHERS + int(number)
    return PROTOCOL_FLANNEL


class Neighbour(Item, frozen=True, kw_only=True):
    """A neighbour entry, as planned or as read from the kernel.

    Attributes:
        mac: MAC address, six bytes in lower-case hexadecimal with colons; "" if the kernel knows no address.
        is_permanent: True if the entry is neither aged nor probed (NUD_PERMANENT).
    """

    KIND = "neighbour"
    PLURAL = "neighbours"
    RANK = Rank.PEER
    IS_BOUND_TO_LINK = True

    link: str
    address: IPv4Address | IPv6Address
    mac: str
    is_permanent: bool = True

    @property
    def key(self) -> Key:
        """The identity of the kernel object."""
        return ("neighbour", self.link, self.address.version), int(self.address)

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"neighbour {self.address} on {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the link belongs to pyflannel."""
        return self.link in marks.links

    def after(self, changes: LinkChanges) -> "Neighbour | None":
        """Return the neighbour; None if its link is created again, or if the link loses its MAC address or
        last IPv4 address.
        """
        is_ipv4 = self.address.version == 4
        is_dropped = self.link in changes.recreated or self.link in changes.readdressed
        return None if is_dropped or (is_ipv4 and self.link in changes.unaddressed) else self


class FdbEntry(Item, frozen=True, kw_only=True):
    """Frames to `mac` are sent to the VTEP at `destination`.

    Attributes:
        mac: six bytes in lower-case hexadecimal, with colons.
        others: additional destinations, each of which gets a copy of the frame; they are never planned.
            Sorted.
        is_permanent: True if the entry is neither aged nor replaced by learning (NUD_PERMANENT or NUD_NOARP).
        is_plain: True if the entry has the device's port, VNI and underlay; no other entry is planned.
    """

    KIND = "fdb_entry"
    PLURAL = "FDB entries"
    RANK = Rank.PEER
    IS_BOUND_TO_LINK = True

    link: str
    mac: str
    destination: IPv4Address | IPv6Address
    others: tuple[IPv4Address | IPv6Address, ...] = ()
    is_permanent: bool = True
    is_plain: bool = True

    @property
    def key(self) -> Key:
        """The identity of the kernel object."""
        return ("fdb", self.link), self.mac

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"FDB entry {self.mac} on {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the link belongs to pyflannel."""
        return self.link in marks.links


Way = Literal["tunnel in", "container in", "container out", "host out"]
"""The kinds of packets: a tunnel packet from a peer to this host; a packet of a container from, or to,
another host; a packet that this host itself sends."""


class RouteAnswer(Struct, frozen=True, kw_only=True):
    """The answer of the kernel about the route of one packet.

    Attributes:
        destination: the destination of the packet.
        text: the query and the answer in one line.
        link: interface by which the packet leaves; None if it does not leave.
        gateway: the next hop, if it differs from the destination.
        is_local: True if the packet is for this host itself.
        kind: type of the route, as of `Route`; `unicast` also if the kernel found no route.
        refused_at: interface whose reverse path filter drops the packet; None if no filter drops it.
        rules: policy rules of other programs, as `ip rule` lists them.
    """

    way: Way
    destination: IpAddress
    text: str
    link: str | None = None
    gateway: IpAddress | None = None
    is_local: bool = False
    kind: str = "unicast"
    refused_at: str | None = None
    rules: tuple[str, ...] = ()
