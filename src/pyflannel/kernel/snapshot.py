"""Links, addresses and routes of one network namespace, read and normalised so that they equal plans.

What the kernel adds by itself where IPv6 runs on a link, the link-local address and its route, is left
out: it comes and goes with `Link.has_ipv6`. So is what the kernel's look-up never gets to: of two routes
with one key the first stands for the key.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Network

from pyflannel.kernel.netlink_socket import RequestSocket
from pyflannel.model.address import Address
from pyflannel.model.link import MARK, Link
from pyflannel.model.route import PROTOCOL_FLANNEL, Route
from pyflannel.model.state import Item, State
from pyflannel.wire.netlink.addresses import (
    AddressRecord,
    address_index,
    dump_addresses,
    parse_address_message,
)
from pyflannel.wire.netlink.inet import INET, INET6
from pyflannel.wire.netlink.links import LinkRecord, dump_links, parse_link
from pyflannel.wire.netlink.routes import (
    RouteKey,
    RouteRecord,
    dump_routes,
    glance_at_route,
    parse_route,
    route_key,
)

KINDS = {
    1: "unicast",
    2: "local",
    3: "broadcast",
    4: "anycast",
    5: "multicast",
    6: "blackhole",
    7: "unreachable",
    8: "prohibit",
    9: "throw",
    10: "nat",
}
"""Names of rtm_type (linux/rtnetlink.h), as `ip route` prints them."""

_LINK_LOCAL = IPv6Network("fe80::/64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interest:
    """What of a namespace concerns a plan; everything else is passed over unread.

    Attributes:
        links: names of the planned links.
        carriers: names of the links that planned addresses and routes hang on.
        routes: keys of the planned routes.
    """

    links: frozenset[str]
    carriers: frozenset[str]
    routes: frozenset[RouteKey]

    @classmethod
    def of(cls, desired: State) -> "Interest":
        """Return what concerns this plan."""
        links, carriers, routes = set(), set(), set()
        for item in desired:
            match item:
                case Link():
                    links.add(item.name)
                case Address():
                    carriers.add(item.link)
                case Route():
                    carriers.add(item.link)
                    routes.add(route_key(item.destination, item.metric))
                case _:
                    pass  # other adapters' items
        return cls(links=frozenset(links), carriers=frozenset(carriers), routes=frozenset(routes))

    def has_links_of(self, other: "Interest") -> bool:
        """Return whether both are about the same links."""
        return (self.links, self.carriers) == (other.links, other.carriers)

    def concerns_link(self, link: LinkRecord) -> bool:
        """Return whether the link is planned or carries our mark."""
        return link.name in self.links or link.alias.startswith(MARK)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What was read.

    Attributes:
        ours: indexes of the links that are planned or carry our mark.
        carriers: indexes of the links that planned items hang on.
    """

    state: State
    ours: frozenset[int]
    carriers: frozenset[int]


async def read_snapshot(requests: RequestSocket, interest: Interest) -> Snapshot:
    """Return what concerns the plan, as it is now.

    Raises:
        TargetError: the kernel refused or did not answer.
    """
    links = await requests.dump(dump_links(), parse_link)
    ours = frozenset(link.index for link in links if interest.concerns_link(link))
    carriers = frozenset(link.index for link in links if link.name in interest.carriers)
    names = {link.index: link.name for link in links}
    addresses = await requests.dump(dump_addresses(), _address_reader(ours | carriers))
    routes: list[RouteRecord] = []
    for family in (INET, INET6):
        routes += await requests.dump(dump_routes(family), _route_reader(interest, ours))
    items: list[Item] = [_link(link) for link in links if link.index in ours]
    items += [_address(address, names) for address in addresses if not _is_kernels_own(address)]
    items += [_route(route, names) for route in routes if route.destination != _LINK_LOCAL]
    return Snapshot(state=State.collect(items), ours=ours, carriers=carriers)


def _address_reader(wanted: frozenset[int]) -> Callable[[bytes], AddressRecord | None]:
    def read(body: bytes) -> AddressRecord | None:
        return parse_address_message(body) if address_index(body) in wanted else None

    return read


def _route_reader(interest: Interest, ours: frozenset[int]) -> Callable[[bytes], RouteRecord | None]:
    wanted = interest.routes

    def read(body: bytes) -> RouteRecord | None:
        glance = glance_at_route(body)
        if glance is None:
            return None
        if glance.protocol == PROTOCOL_FLANNEL or glance.link in ours or glance.key in wanted:
            return parse_route(body)
        return None

    return read


def _link(link: LinkRecord) -> Link:
    return Link(
        name=link.name,
        kind=link.kind,
        mtu=link.mtu,
        is_up=link.is_up,
        queue_length=link.queue_length,
        has_ipv6=link.has_ipv6,
        alias=link.alias,
    )


def _is_kernels_own(address: AddressRecord) -> bool:
    return address.address.version == 6 and address.address.ip.is_link_local


def _address(address: AddressRecord, names: Mapping[int, str]) -> Address:
    return Address(link=names.get(address.index, ""), address=address.address, peer=address.peer)


def _route(route: RouteRecord, names: Mapping[int, str]) -> Route:
    return Route(
        destination=route.destination,
        # A link younger than the listing has no name yet; its notification brings the next look.
        link=names.get(route.index, ""),
        gateway=route.gateway,
        source=route.source,
        metric=route.metric,
        protocol=route.protocol,
        scope=route.scope,
        is_onlink=route.is_onlink,
        kind="multipath" if route.is_multipath else KINDS.get(route.kind, str(route.kind)),
    )
