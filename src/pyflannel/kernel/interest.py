"""What of a network namespace concerns a plan."""

from collections.abc import Collection
from dataclasses import dataclass

from pyflannel.model.address import Address
from pyflannel.model.fdb_entry import FdbEntry
from pyflannel.model.link import MARK, Link
from pyflannel.model.neighbour import Neighbour
from pyflannel.model.route import Route
from pyflannel.model.route_protocol import PROTOCOLS
from pyflannel.model.state import State
from pyflannel.wire.netlink.links import LinkRecord
from pyflannel.wire.netlink.routes import RouteGlance, RouteKey, route_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Interest:
    """What of a namespace concerns a plan; everything else is passed over unread.

    Attributes:
        desired: the plan.
        links: names of the planned links.
        carriers: names of the links that planned links, addresses and routes hang on.
        routes: keys of the planned routes.
    """

    desired: State
    links: frozenset[str]
    carriers: frozenset[str]
    routes: frozenset[RouteKey]

    @classmethod
    def of(cls, desired: State) -> "Interest":
        """Return what concerns this plan."""
        links, carriers, routes = set(), set(), set()
        for item in desired:
            match item:
                case Route():
                    carriers.add(item.link)
                    routes.add(route_key(item.destination, item.metric))
                case Neighbour() | FdbEntry() | Address():
                    carriers.add(item.link)
                case Link():
                    links.add(item.name)
                    if item.vxlan is not None:
                        carriers.add(item.vxlan.parent)
                case _:
                    pass  # other adapters' items
        return cls(
            desired=desired, links=frozenset(links), carriers=frozenset(carriers), routes=frozenset(routes)
        )

    def has_links_of(self, other: "Interest") -> bool:
        """Return whether both are about the same links."""
        return (self.links, self.carriers) == (other.links, other.carriers)

    def concerns_link(self, link: LinkRecord) -> bool:
        """Return whether the link is planned or carries our mark."""
        return link.name in self.links or link.alias.startswith(MARK)

    def concerns_route(self, route: RouteGlance, ours: Collection[int]) -> bool:
        """Return whether the route is planned, carries our mark, or leaves by one of the links `ours`."""
        return route.protocol in PROTOCOLS or route.link in ours or route.key in self.routes
