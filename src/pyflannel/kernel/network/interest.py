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
from pyflannel.wire.netlink.routes import RouteGlance


@dataclass(frozen=True, slots=True, kw_only=True)
class Interest:
    """What of a namespace concerns a plan; everything else is passed over unread.

    Attributes:
        desired: the plan, in which single items are exchanged as they are planned anew.
        links: names of the planned links.
        carriers: names of the links that planned links, addresses and routes hang on.
        marks: aliases of the planned links; another daemon's device is no concern of ours. Empty: any mark.
        protocols: by which our routes are known, where the plan has any; else those of every daemon.
    """

    desired: State
    links: frozenset[str]
    carriers: frozenset[str]
    marks: frozenset[str]
    protocols: frozenset[int]

    @classmethod
    def of(cls, desired: State) -> "Interest":
        """Return what concerns this plan."""
        links, carriers, marks = set(), set(), set()
        protocols = set()
        for link in desired.of_type(Link):
            links.add(link.name)
            marks.add(link.alias)
            if link.vxlan is not None:
                carriers.add(link.vxlan.parent)
        for route in desired.of_type(Route):
            carriers.add(route.link)
            protocols.add(route.protocol)
        for names in desired.by_key.tables.values():
            match next(iter(names.values())):
                case Neighbour(link=name) | FdbEntry(link=name) | Address(link=name):
                    carriers.add(name)  # all of a table are on one link
                case _:
                    pass
        return cls(
            desired=desired,
            links=frozenset(links),
            carriers=frozenset(carriers),
            marks=frozenset(marks),
            protocols=PROTOCOLS & protocols or PROTOCOLS,
        )

    def has_links_of(self, other: "Interest") -> bool:
        """Return whether both are about the same links."""
        return (self.links, self.carriers, self.marks) == (other.links, other.carriers, other.marks)

    def concerns_link(self, link: LinkRecord) -> bool:
        """Return whether the link is planned or carries our mark."""
        is_marked = link.alias in self.marks if self.marks else link.alias.startswith(MARK)
        return is_marked or link.name in self.links

    def concerns_route(self, route: RouteGlance, ours: Collection[int]) -> bool:
        """Return whether the route is planned, carries our mark, or leaves by one of the links `ours`."""
        return route.protocol in self.protocols or route.link in ours or route.key in self.desired.by_key
