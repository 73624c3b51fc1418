"""Records of the kernel as items of the model, and the items of the previous dump."""

from array import array
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Generic, Protocol, TypeVar

from msgspec.structs import replace

from pyflannel.model.link import Address, Link, Veth, Vxlan, split_alias
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.wire.netlink.addresses import AddressRecord
from pyflannel.wire.netlink.links import LinkRecord, VxlanRecord
from pyflannel.wire.netlink.neighbours import FdbRecord, NeighbourRecord
from pyflannel.wire.netlink.routes import RouteRecord

# These functions turn a record of the kernel into an item of the model, normalised to be comparable with a
# plan.
#
# `names` contains the names of all links, by index. A link that was created after the listing has no name
# yet. The notification about this link causes the next scan.

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

_WITHOUT_LINK = frozenset({6, 7, 8, 9})
"""rtm_type of routes without a destination, such as blackhole routes."""

_NOWHERE = IPv4Address(0)


def link_of(
    link: LinkRecord,
    names: Mapping[int, str],
    *,
    offloads_checksums: bool = True,
    has_gro: bool = False,
    may_set_ipv6: bool = True,
) -> Link:
    """Return a link record of the kernel as an item. The MAC address of an end of a veth is omitted, because
    the kernel chooses it at random.

    `may_set_ipv6` is False if /proc/sys is read-only. If /proc/sys is read-only, a link for which the kernel
    generates no IPv6 address counts as a link without IPv6, and no link counts as accepting router
    advertisements.
    """
    is_veth = link.kind == "veth"
    mark, owner = split_alias(link.alias)
    return Link(
        name=link.name,
        kind=link.kind,
        mtu=link.mtu,
        is_up=link.is_up,
        queue_length=link.queue_length,
        has_ipv6=link.has_ipv6 and (link.generates_ipv6 or may_set_ipv6),
        accepts_routers=link.accepts_routers and may_set_ipv6,
        alias=mark,
        owner=owner,
        mac="" if is_veth else link.mac,
        vxlan=None if link.vxlan is None else _vxlan_of(link.vxlan, names, offloads_checksums),
        veth=Veth(peer=names.get(link.other, ""), has_gro=has_gro) if is_veth else None,
    )


def address_of(address: AddressRecord, names: Mapping[int, str]) -> Address:
    """Return an address record of the kernel as an item."""
    return Address(link=names.get(address.index, ""), address=address.address, peer=address.peer)


def route_of(route: RouteRecord, names: Mapping[int, str]) -> Route:
    """Return a route record of the kernel as an item. A blackhole or similar route has no link in the plan,
    although for IPv6 the kernel reports loopback.
    """
    return Route(
        destination=route.destination,
        link="" if route.kind in _WITHOUT_LINK else names.get(route.index, ""),
        gateway=route.gateway,
        source=route.source,
        metric=route.metric,
        protocol=route.protocol,
        scope=route.scope,
        is_onlink=route.is_onlink,
        mtu=route.mtu,
        kind="multipath" if route.is_multipath else KINDS.get(route.kind, str(route.kind)),
    )


def neighbour_of(neighbour: NeighbourRecord, names: Mapping[int, str]) -> Neighbour:
    """Return a neighbour record of the kernel as an item."""
    return Neighbour(
        link=names.get(neighbour.index, ""),
        address=neighbour.address,
        mac=neighbour.mac,
        is_permanent=neighbour.is_permanent,
    )


def fdb_entry_of(entry: FdbRecord, names: Mapping[int, str]) -> FdbEntry:
    """Return the FDB entry of one destination; `gathered` merges entries of several destinations."""
    return FdbEntry(
        link=names.get(entry.index, ""),
        mac=entry.mac,
        destination=_NOWHERE if entry.destination is None else entry.destination,
        is_permanent=entry.is_permanent,
        is_plain=entry.is_plain and entry.destination is not None,
    )


def gathered(entries: Iterable[FdbEntry]) -> list[FdbEntry]:
    """Return one entry for each MAC address of one link; the kernel lists one entry for each destination."""
    by_mac: dict[str, FdbEntry] = {}
    for entry in entries:
        first = by_mac.setdefault(entry.mac, entry)
        if first is not entry:
            by_mac[entry.mac] = replace(
                first,
                others=tuple(sorted({*first.others, entry.destination}, key=_order)),
                is_permanent=first.is_permanent and entry.is_permanent,
                is_plain=first.is_plain and entry.is_plain,
            )
    return list(by_mac.values())


def _order(address: IPv4Address | IPv6Address) -> tuple[int, int]:
    return address.version, int(address)


def _vxlan_of(vxlan: VxlanRecord, names: Mapping[int, str], offloads_checksums: bool) -> Vxlan:
    return Vxlan(
        vni=vxlan.vni,
        port=vxlan.port,
        # A parent in another network namespace has no name in this namespace, and is not in a plan.
        parent=names.get(vxlan.parent, f"if{vxlan.parent}") if vxlan.parent else "",
        local=vxlan.local,
        group=vxlan.group,
        has_gbp=vxlan.has_gbp,
        learns=vxlan.learns,
        reports_misses=vxlan.reports_misses,
        offloads_checksums=offloads_checksums,
    )


class OnLink(Protocol):
    """An item on a link; if the item has no link, the name of the link is empty."""

    @property
    def link(self) -> str:
        """The link's name."""
        ...


_Item = TypeVar("_Item", bound=OnLink)


class Remembered(Generic[_Item]):
    """Memory of the items of the last scan, in the order of the dump, each with the hash of its message.

    Fields that change constantly, such as counters, are not part of the hash.

    The kernel nearly always dumps a table in the same order. Therefore two arrays are enough, which need a
    fifth of the memory of a dictionary. If the order differs, a dictionary is built and kept until the dump
    ends. Python's hash of bytes has 64 bits and a secret seed: among a million messages, a collision is less
    likely than a memory error.
    """

    def __init__(self) -> None:
        self._hashes, self._items = array("q"), list[_Item | None]()
        self._old_hashes, self._old_items = self._hashes, self._items
        self._place = 0
        self._by_hash: dict[int, _Item | None] | None = None
        self._links: Mapping[int, str] = {}
        self._names: frozenset[str] = frozenset()

    def begin(self, links: Mapping[int, str]) -> None:
        """Begin another scan. Only items on these links are remembered, because the names of these links do
        not change.
        """
        if links != self._links:
            self._links, self._names = links, frozenset(links.values()) | {""}
            self._hashes, self._items = array("q"), []
        self._old_hashes, self._old_items = self._hashes, self._items
        self._hashes, self._items = array("q"), []
        self._place, self._by_hash = 0, None

    def end(self) -> None:
        """End the scan, and forget the items that it did not contain."""
        self._old_hashes, self._old_items, self._by_hash = self._hashes, self._items, None

    def reader(
        self, make: Callable[[bytes], _Item | None], lasting: Callable[[bytes], bytes] = bytes
    ) -> Callable[[bytes], _Item | None]:
        """Return a function that reads a message of a dump.

        The function calls `make` for a new message, and for a message for which `make` returned None before.
        """

        def read(body: bytes) -> _Item | None:
            part = hash(lasting(body))
            item = self._known(part) or make(body)
            self._hashes.append(part)
            self._items.append(item if item is not None and item.link in self._names else None)
            return item

        return read

    def _known(self, part: int) -> _Item | None:
        if self._by_hash is None:
            place = self._place
            if place < len(self._old_hashes) and self._old_hashes[place] == part:
                self._place = place + 1
                return self._old_items[place]
            self._by_hash = dict(zip(self._old_hashes, self._old_items, strict=True))
        return self._by_hash.get(part)
