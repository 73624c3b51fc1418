"""Which of the kernel's announcements may concern a plan: those, and no others, wake a pass."""

from dataclasses import replace

from pyflannel.kernel.network.items import fdb_entry_of, neighbour_of
from pyflannel.kernel.network.snapshot import Interest, Links
from pyflannel.model.route import FdbEntry, Neighbour
from pyflannel.wire.netlink import addresses, links, neighbours, routes
from pyflannel.wire.netlink.message import Message

GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400 | 0x800 | 0x8000_0000
"""RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, RTMGRP_IPV6_IFADDR, _IPV6_ROUTE, _IPV6_IFINFO,
by which alone the kernel says that IPv6 was turned on, and RTNLGRP_NEXTHOP (linux/rtnetlink.h)."""


class Watch:
    """Judges what the kernel announces by the last look, and by what of its plan is planned now.

    Until there was a look everything concerns us.

    Args:
        port: of the socket that we change the kernel by: what answers our own requests is no news.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._interest: Interest | None = None
        self._links: Links | None = None

    def looks(self, interest: Interest) -> None:
        """A look begins; where it is about other links, what changes meanwhile may concern us."""
        if self._interest is None or not self._interest.has_links_of(interest):
            self._links = None
        self._interest = interest

    def saw(self, links: Links) -> None:
        """The look ended."""
        self._links = links

    def made(self, index: int, name: str) -> None:
        """We made a link, or changed it, since the look."""
        if self._links is not None:
            names = {**self._links.names, index: name}
            self._links = replace(self._links, names=names, ours=self._links.ours | {index})

    def concerns(self, message: Message) -> bool:
        """Return whether somebody else changed what the last look was about.

        Raises:
            WireError: the message is shorter than its kind needs.
        """
        if message.port == self._port:
            return False
        interest, seen = self._interest, self._links
        if interest is None or seen is None:
            return True
        match message.kind:
            case neighbours.NEW | neighbours.DELETE:
                # Traffic makes most of these: one look at the link, and few get further.
                index = neighbours.entry_index(message.body)
                return index in seen.ours and self._is_damage(message, interest, seen)
            case routes.NEW | routes.DELETE:
                glance = routes.glance_at_route(message.body)
                return glance is not None and interest.concerns_route(glance, seen.ours)
            case routes.DELETE_NEXT_HOP:  # its routes are removed too, and the kernel does not announce that
                return routes.next_hop_protocol(message.body) in interest.protocols
            case links.NEW | links.DELETE:
                link = links.parse_link(message.body)
                return (
                    interest.concerns_link(link)
                    or link.name in interest.carriers
                    or link.index in seen.ours | seen.carriers
                )
            case addresses.NEW | addresses.DELETE:
                return addresses.address_index(message.body) in seen.ours | seen.carriers
            case _:
                return False

    def _is_damage(self, message: Message, interest: Interest, seen: Links) -> bool:
        """Return whether an entry on a link of ours is not as planned.

        The kernel does not say who changed an FDB entry: one that becomes what is planned needs no pass, as
        little as one that goes and is not planned. What the kernel learns where nobody planned is its own.
        """
        neighbour, entry = neighbours.parse_neighbour(message.body), neighbours.parse_fdb_entry(message.body)
        item: Neighbour | FdbEntry
        if neighbour is not None:
            item = neighbour_of(neighbour, seen.names)
        elif entry is not None:
            item = fdb_entry_of(entry, seen.names)
        else:
            return False
        planned = interest.desired.by_key.get(item.key)
        if message.kind == neighbours.NEW:
            return item != planned and (item.is_permanent or planned is not None)
        if isinstance(item, FdbEntry) and isinstance(planned, FdbEntry):
            return item.destination == planned.destination  # else one that we removed from beside it
        return planned is not None
