"""The state of one network namespace: records of the kernel, normalised so that they equal plans."""

import asyncio
import errno
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from ipaddress import IPv6Network
from typing import TypeVar

from msgspec import Struct

from pyflannel.kernel.host.machine import may_set_ipv6
from pyflannel.kernel.network.device_ioctls import has_gro, offloads_checksums
from pyflannel.kernel.network.items import (
    Remembered,
    address_of,
    fdb_entry_of,
    gathered,
    link_of,
    neighbour_of,
    route_of,
)
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.item import Item, ItemMap
from pyflannel.model.link import MARK, Address, Link, split_alias
from pyflannel.model.route import PROTOCOLS, FdbEntry, Neighbour, Route
from pyflannel.model.state import State
from pyflannel.wire.netlink.addresses import (
    AddressRecord,
    address_index,
    dump_addresses,
    parse_address_message,
)
from pyflannel.wire.netlink.links import LinkRecord, dump_links, parse_link
from pyflannel.wire.netlink.message import INET, INET6
from pyflannel.wire.netlink.neighbours import (
    dump_fdb,
    dump_neighbours,
    lasting_part,
    parse_fdb_entry,
    parse_neighbour,
)
from pyflannel.wire.netlink.routes import RouteGlance, RouteRecord, dump_routes, glance_at_route, parse_route


class Interest(Struct, frozen=True, kw_only=True):
    """Selects the objects of a namespace that are relevant for a plan. All other objects are ignored.

    Attributes:
        desired: the plan. When single items are planned again, they are replaced in this plan.
        links: names of the planned links.
        carriers: names of the links on which planned links, addresses and routes depend.
        marks: aliases of the planned links, so that devices of other daemons are ignored. Empty: any mark.
        protocols: rtm_protocol of the planned routes; without planned routes, the protocols of all daemons.
    """

    desired: State
    links: frozenset[str]
    carriers: frozenset[str]
    marks: frozenset[str]
    protocols: frozenset[int]

    @classmethod
    def of(cls, desired: State) -> "Interest":
        """Return the selection of objects for this plan."""
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
                    carriers.add(name)  # because all items of a table are on one link
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
        """Return whether both selections contain the same links."""
        return (self.links, self.carriers, self.marks) == (other.links, other.carriers, other.marks)

    def concerns_link(self, link: LinkRecord) -> bool:
        """Return whether the link is planned or carries pyflannel's mark."""
        mark, _ = split_alias(link.alias)
        is_marked = mark in self.marks if self.marks else mark.startswith(MARK)
        return is_marked or link.name in self.links

    def concerns_route(self, route: RouteGlance, ours: Collection[int]) -> bool:
        """Return whether the route is planned, carries pyflannel's mark, or uses one of the links `ours`."""
        return route.protocol in self.protocols or route.link in ours or route.key in self.desired.by_key


# Reads the objects of one network namespace that are relevant for a plan, normalised to be comparable with
# the plan.
#
# The following three sorts of objects are omitted:
# - The link-local address and its route, which the kernel adds to a link with IPv6 (`Link.has_ipv6`).
# - Routes that the kernel never uses: of several routes with one key, only the first is used.
# - Entries that the kernel learned, unless the plan has an entry with the same key.

_LINK_LOCAL = IPv6Network("fe80::/64")

_AT_ONCE = 1000

_Item = TypeVar("_Item", Route, Neighbour, FdbEntry)


class Links(Struct, frozen=True, kw_only=True):
    """The links of a namespace.

    Attributes:
        names: names of all links, by index.
        ours: indexes of the links that are planned or carry pyflannel's mark.
        carriers: indexes of the links on which planned items depend.
    """

    names: Mapping[int, str]
    ours: frozenset[int]
    carriers: frozenset[int]


class Snapshot(Struct, frozen=True, kw_only=True):
    """The state that was read, and the links of the namespace."""

    state: State
    links: Links


class SnapshotReader:
    """Reads the objects that are relevant for a plan.

    The kernel's tables are read in full each time. The item of each message is remembered. An unchanged
    object therefore costs only one look-up, and results in the identical item.
    """

    def __init__(self, requests: RequestSocket) -> None:
        self._requests = requests
        self._routes = Remembered[Route]()
        self._neighbours = Remembered[Neighbour]()
        self._fdb = Remembered[FdbEntry]()

    async def read(self, interest: Interest) -> Snapshot:
        """Return the current state of the objects that are relevant for the plan.

        Raises:
            TargetError: the kernel refused or did not answer.
        """
        found = await self._requests.dump(dump_links(), parse_link)
        links = _links(found, interest)
        names = {index: links.names[index] for index in links.ours | links.carriers}
        self._routes.begin(names)
        items = ItemMap[Item](_link(link, links) for link in found if link.index in links.ours)
        addresses = await self._requests.dump(dump_addresses(), _address_reader(links.ours | links.carriers))
        items.add(address_of(one, links.names) for one in addresses if not _is_kernels_own(one))
        vxlans = [link.index for link in found if link.vxlan is not None and link.name in interest.links]
        for kind, remembered, read in (
            (Neighbour, self._neighbours, self._read_neighbours),
            (FdbEntry, self._fdb, self._read_fdb),
        ):
            before, missing = math.inf, sys.maxsize
            # While entries come and go, the kernel's answer lacks some of the entries that remain.
            while 0 < missing < before:
                remembered.begin(names)
                for index in vxlans:
                    await _take(items, await read(index, interest.desired, links))
                remembered.end()
                before, missing = missing, _missing(items, interest.desired, kind)
        for family in (INET, INET6):
            await _take(items, await self._read_routes(family, interest, links))
        self._routes.end()
        return Snapshot(state=State(items), links=links)

    async def _read_neighbours(self, index: int, desired: State, links: Links) -> list[Neighbour]:
        def make(body: bytes) -> Neighbour | None:
            record = parse_neighbour(body)
            return None if record is None else _planned(neighbour_of(record, links.names), desired)

        found = await self._requests.dump(dump_neighbours(index), self._neighbours.reader(make, lasting_part))
        return [item for item in found if item.is_permanent or item.key in desired.by_key]

    async def _read_fdb(self, index: int, desired: State, links: Links) -> list[FdbEntry]:
        def make(body: bytes) -> FdbEntry | None:
            record = parse_fdb_entry(body)
            return None if record is None else _planned(fdb_entry_of(record, links.names), desired)

        found = await self._requests.dump(dump_fdb(index), self._fdb.reader(make, lasting_part))
        return [item for item in gathered(found) if item.is_permanent or item.key in desired.by_key]

    async def _read_routes(self, family: int, interest: Interest, links: Links) -> list[Route]:
        def make(body: bytes) -> Route | None:
            glance = glance_at_route(body)
            if glance is None or not interest.concerns_route(glance, links.ours):
                return None
            record = parse_route(body)
            if record is None or record.destination == _LINK_LOCAL:
                return None
            return _planned(route_of(record, links.names), interest.desired)

        return await self._requests.dump(dump_routes(family), self._routes.reader(make))


async def _take(items: ItemMap[Item], found: Sequence[Item]) -> None:
    """Add the items, and let other tasks run after every millisecond."""
    for start in range(0, len(found), _AT_ONCE):
        items.add(found[start : start + _AT_ONCE])
        await asyncio.sleep(0)


def _missing(items: ItemMap[Item], desired: State, kind: type[Item]) -> int:
    """Return the number of planned objects of this kind that are not among the items."""
    return sum(
        len(names.keys() - items.tables.get(table, {}).keys())
        for table, names in desired.by_key.tables.items()
        if isinstance(next(iter(names.values())), kind)
    )


def _planned(item: _Item, desired: State) -> _Item:
    """Return the item of the plan if it equals `item`, else `item`. Sharing the object saves memory, and
    makes a later comparison fast.
    """
    planned = desired.by_key.get(item.key)
    return planned if planned == item else item


def _links(found: Iterable[LinkRecord], interest: Interest) -> Links:
    return Links(
        names={link.index: link.name for link in found},
        ours=frozenset(link.index for link in found if interest.concerns_link(link)),
        carriers=frozenset(link.index for link in found if link.name in interest.carriers),
    )


def _link(link: LinkRecord, links: Links) -> Link:
    offloads, joins = True, False
    try:
        if link.vxlan is not None:
            offloads = offloads_checksums(link.name)
        elif link.kind == "veth":
            joins = has_gro(link.name)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EOPNOTSUPP):
            raise  # the other two errors mean that the link was removed, or does not have the setting
    return link_of(link, links.names, offloads_checksums=offloads, has_gro=joins, may_set_ipv6=may_set_ipv6())


def _address_reader(wanted: frozenset[int]) -> Callable[[bytes], AddressRecord | None]:
    def read(body: bytes) -> AddressRecord | None:
        return parse_address_message(body) if address_index(body) in wanted else None

    return read


def _is_kernels_own(address: AddressRecord) -> bool:
    return address.address.version == 6 and address.address.ip.is_link_local


async def route_protocols() -> frozenset[int]:
    """Return the rtm_protocol of every route of the main table, each protocol once.

    Raises:
        TargetError: the kernel refused or did not answer.
    """
    requests = RequestSocket()
    try:
        found: set[int] = set()
        for family in (INET, INET6):
            found.update(await requests.dump(dump_routes(family), _protocol))
        return frozenset(found)
    finally:
        requests.close()


def _protocol(body: bytes) -> int | None:
    glance = glance_at_route(body)
    return None if glance is None else glance.protocol


async def survey() -> list[Item]:
    """Return all links and all routes of the network namespace that the process is in, in the kernel's order.

    Raises:
        TargetError: the kernel refused or did not answer.
    """
    requests = RequestSocket()
    try:
        links = await requests.dump(dump_links(), parse_link)
        names = {link.index: link.name for link in links}
        routes: list[RouteRecord] = []
        for family in (INET, INET6):
            routes += await requests.dump(dump_routes(family), _read_route)
    finally:
        requests.close()
    return [*(link_of(link, names) for link in links), *(route_of(route, names) for route in routes)]


def _read_route(body: bytes) -> RouteRecord | None:
    return None if glance_at_route(body) is None else parse_route(body)
