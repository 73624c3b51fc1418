"""A kernel in memory."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address

from msgspec.structs import replace

from pyflannel.errors import TargetError
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item, ItemMap
from pyflannel.model.link import Address, Link, Vxlan
from pyflannel.model.packet_filter import IptablesChain, NftTable
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.model.tunnel_guard import GuardPeer, GuardTable
from pyflannel.model.wireguard import WireguardDevice, WireguardPeer
from pyflannel.ports import Announce, ChangeChannel

_ON_LINKS = (Neighbour, FdbEntry, BpfProgram, WireguardDevice, WireguardPeer)


def announcing(changed: asyncio.Event) -> ChangeChannel:
    """Return a channel that announces a change each time the event is set."""

    async def read(announce: Announce) -> None:
        while True:
            await changed.wait()
            changed.clear()
            announce()

    return ChangeChannel(read)


class FakeKernel:
    """A target in memory. The double refuses and drops the same objects as the kernel, and refuses the
    operations that a test selects.

    The double refuses:

    - an object on a missing link;
    - a route by a link that is down, from a source that is no address of the host, or by a gateway that is
      an address of the host or that no route of the link reaches;
    - a link whose name is in use, and a veth if one of its two names is in use;
    - a second vxlan device with the same VNI and port;
    - an entry of a tunnel guard without its table.

    The double drops:

    - the entries of a tunnel guard, together with its table;
    - all objects on a removed link, the other end of a veth, and the vxlan devices that use the link;
    - the IPv4 routes and neighbours of a link that is set down, and the neighbours of a link that gets
      another MAC address;
    - the routes with a removed address as their source; the other IPv4 addresses of a prefix on a link,
      together with the first one; the IPv4 routes and neighbours of a link, together with its last IPv4
      address.

    The double adds the route to the prefix of an address. Of several routes with one key, the first is
    visible. After the removal of this route, the next route is visible.

    A change by another program is announced. A change by the daemon, and its consequences, are not announced.

    Attributes:
        is_readable: a snapshot fails while this is False.
    """

    kinds = (
        *(Link, Address, Neighbour, FdbEntry, Route),
        *(Forwarder, ForwarderPeer, WireguardDevice, WireguardPeer, BpfProgram, BpfPeer, BpfContainer),
        *(IptablesChain, NftTable, GuardTable, GuardPeer, HostFile),
    )

    def __init__(
        self, state: State = State.EMPTY, *, refuse: Callable[[Operation], bool] = lambda operation: False
    ) -> None:
        self.state = state
        self.refuse = refuse
        self.batches: list[list[Operation]] = []
        self.is_readable = True
        self._hidden: list[Route] = []
        self._changed = asyncio.Event()

    async def snapshot(self, desired: State) -> State:
        """Return all objects."""
        if not self.is_readable:
            raise TargetError("the test asked for this", hint="Try again.")
        return self.state

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations that neither the test nor the kernel refuses."""
        self.batches.append(list(operations))
        refusals = []
        for operation in operations:
            if self.refuse(operation):
                refusals.append(Refusal(operation=operation, cause="the test asked for this"))
            elif (cause := self._perform(operation)) is not None:
                refusals.append(Refusal(operation=operation, cause=cause))
        return refusals

    def changes(self) -> ChangeChannel:
        """Open a channel of the changes by other programs."""
        return announcing(self._changed)

    def damage(self, *operations: Operation, is_announced: bool = True) -> None:
        """Change an object as another program."""
        for operation in operations:
            self._perform(operation)
        if is_announced:
            self._changed.set()

    def _perform(self, operation: Operation) -> str | None:
        """Perform an operation, or return why the kernel refuses it."""
        match operation:
            case Remove(item):
                self._remove(item)
                return None
            case Add(Link(name=name, veth=None)) if self._link(name) is not None:
                return f"EEXIST: {name} is there"
            case Add(Link() as link) | Replace(_, Link() as link):
                return self._put_link(link)
            case Replace(Address() as old, Address() as address):
                self._remove(old)
                return self._put_address(address)
            case Add(Address() as address):
                return self._put_address(address)
            case Add(item) | Replace(_, item):
                if (cause := self._objection(item)) is None:
                    self._hidden = [route for route in self._hidden if route != item]
                    self._set(item)
                return cause

    def _put_link(self, link: Link) -> str | None:
        old = self._link(link.name)
        if old is not None and not old.becomes(link):
            self._remove(old)
            old = None
        if (cause := self._link_objection(link, is_new=old is None)) is not None:
            return cause
        if link.veth is not None and link.veth.peer and self._link(link.veth.peer) is None:
            other = replace(link.veth, peer=link.name, has_gro=False)
            self._set(Link(name=link.veth.peer, kind="veth", mtu=1500, is_up=False, alias="", veth=other))
        is_busy = link.is_up and any(_share_port(link, other) for other in self._others(link) if other.is_up)
        made = replace(link, is_up=False) if is_busy else link
        self._set(made)
        self._follow(old, made)
        return f"EADDRINUSE: another vxlan device has the port of {link.name}" if is_busy else None

    def _link_objection(self, link: Link, *, is_new: bool) -> str | None:
        if link.vxlan is not None:
            if link.vxlan.parent and self._link(link.vxlan.parent) is None:
                return f"ENODEV: no link {link.vxlan.parent}"
            if is_new and any(_share_vni(link, other) for other in self._others(link)):
                return "EEXIST: a VXLAN device with the specified VNI already exists"
        if link.veth is not None and is_new:
            other_end = self._link(link.veth.peer)
            if other_end is not None and (other_end.veth is None or other_end.veth.peer != link.name):
                return f"EEXIST: {link.veth.peer} is there"
        return None

    def _follow(self, old: Link | None, new: Link) -> None:
        """Drop and add the objects that the kernel drops and adds after a change of a link."""
        was_up = old is not None and old.is_up
        if was_up and not new.is_up:
            self._drop_ipv4(new.name)
        elif old is not None and old.mac != new.mac:
            self._drop(neighbour for neighbour in self.state.of_type(Neighbour) if neighbour.link == new.name)
        if new.is_up and not was_up:
            for address in self._addresses(new.name):
                self._connect(address)

    def _put_address(self, address: Address) -> str | None:
        link = self._link(address.link)
        if link is None:
            return f"ENODEV: no link {address.link}"
        self._set(address)
        if link.is_up:
            self._connect(address)
        return None

    def _connect(self, address: Address) -> None:
        """Add the route to the prefix of an address, unless the link already has another address of the
        prefix.
        """
        network = address.address.network
        if network.version == 6 or network.prefixlen == 32 or self._first_of(address) != address:
            return
        route = Route(
            destination=network,
            link=address.link,
            source=address.address.ip,
            protocol=PROTOCOL_KERNEL,
            scope=SCOPE_LINK,
        )
        if route.key not in self.state.by_key:
            self._set(route)
        elif route not in (*self._hidden, self.state.by_key[route.key]):
            self._hidden.append(route)

    def _remove(self, item: Item) -> None:
        """Remove the object at the key of an item, and its dependent objects; a route only if it is equal."""
        if isinstance(item, Route):
            self._drop_routes(lambda route: route == item)
            return
        found = self.state.by_key.get(item.key)
        match found:
            case None:
                return
            case Link():
                self._remove_link(found)
            case Address():
                self._remove_address(found)
            case Forwarder():
                self._drop([found, *(p for p in self.state.of_type(ForwarderPeer) if p.link == found.link)])
            case GuardTable():
                peers = self.state.of_type(GuardPeer)
                self._drop([found, *(peer for peer in peers if found.key in peer.requires)])
            case WireguardDevice():
                self._drop([found, *(p for p in self.state.of_type(WireguardPeer) if p.link == found.link)])
            case _:
                self._drop([found])

    def _remove_link(self, link: Link) -> None:
        self._drop([link])
        for address in self._addresses(link.name):
            self._remove(address)
        self._drop_routes(lambda route: route.link == link.name)
        self._drop(item for item in self.state if isinstance(item, _ON_LINKS) and item.link == link.name)
        for forwarder in list(self.state.of_type(Forwarder)):
            if forwarder.link == link.name:
                self._set(replace(forwarder, is_attached=False))
        for other in list(self.state.of_type(Link)):
            is_other_end = link.veth is not None and other.name == link.veth.peer
            if is_other_end or (other.vxlan is not None and other.vxlan.parent == link.name):
                self._remove(other)

    def _remove_address(self, address: Address) -> None:
        gone = [address]
        if address.address.version == 4 and self._first_of(address) == address:
            gone += [one for one in self._addresses(address.link) if _share_prefix(one, address)]
        self._drop(gone)
        if not any(one.address.version == 4 for one in self._addresses(address.link)):
            self._drop_ipv4(address.link)
        for one in gone:
            if not self._is_local(one.address.ip):
                self._drop_routes(partial(_has_source, one.address.ip))

    def _objection(self, item: Item) -> str | None:
        """Return the reason why the kernel refuses an item that is neither a link nor an address."""
        match item:
            case Route():
                return self._route_objection(item)
            case _:
                parent = item.parent_link
                if parent is not None and Link in self.kinds and self._link(parent) is None:
                    return f"ENODEV: no link {parent}"
                if isinstance(item, ForwarderPeer) and ("forwarder", item.link) not in self.state.by_key:
                    return f"no forwarder of {item.link}"
                if isinstance(item, GuardPeer) and item.requires[0] not in self.state.by_key:
                    return f"no table for {item.title}"
                if isinstance(item, WireguardPeer) and ("wireguard", item.link) not in self.state.by_key:
                    return f"no WireGuard of {item.link}"
                return None

    def _route_objection(self, route: Route) -> str | None:
        if not route.link:
            return None
        link = self._link(route.link)
        if link is None:
            return f"ENODEV: no link {route.link}"
        if not link.is_up:
            return f"ENETDOWN: {route.link} is down"
        if route.source is not None and not self._is_local(route.source):
            return f"EINVAL: {route.source} is no address of this host"
        if route.gateway is None or route.gateway.version == 6:
            return None
        if self._is_local(route.gateway):
            return f"EINVAL: the gateway {route.gateway} is an address of this host"
        if not route.is_onlink and not self._reaches(route.link, int(route.gateway)):
            return f"ENETUNREACH: no route of {route.link} reaches {route.gateway}"
        return None

    def _reaches(self, link: str, gateway: int) -> bool:
        """Return whether a route of the link reaches an IPv4 gateway."""
        for table, ways in self.state.by_key.tables.items():
            if isinstance(table, tuple) and table[:2] == ("route", 4):
                way = ways.get(gateway >> 32 - table[2] << 32 - table[2])
                if isinstance(way, Route) and way.link == link and way.gateway is None:
                    return True
        return False

    def _link(self, name: str) -> Link | None:
        found = self.state.by_key.get(("link", name))
        return found if isinstance(found, Link) else None

    def _others(self, link: Link) -> list[Link]:
        return [other for other in self.state.of_type(Link) if other.name != link.name]

    def _addresses(self, link: str) -> list[Address]:
        """Return the addresses of a link in the order of their addition."""
        return [address for address in self.state.of_type(Address) if address.link == link]

    def _first_of(self, address: Address) -> Address:
        """Return the first address of the same prefix on the same link: the others are secondary to it."""
        return next(one for one in self._addresses(address.link) if _share_prefix(one, address))

    def _is_local(self, address: IPv4Address | IPv6Address) -> bool:
        return any(item.address.ip == address for item in self.state.of_type(Address))

    def _set(self, item: Item) -> None:
        tables = dict(self.state.by_key.tables)
        table, name = item.key
        tables[table] = {**tables.get(table, {}), name: item}
        self.state = State(ItemMap.of_tables(tables))

    def _drop_ipv4(self, link: str) -> None:
        self._drop_routes(lambda route: route.link == link and route.destination.version == 4)
        self._drop(
            one for one in self.state.of_type(Neighbour) if (one.link, one.address.version) == (link, 4)
        )

    def _drop_routes(self, goes: Callable[[Route], bool]) -> None:
        """Drop routes. The next route of the same key becomes visible."""
        self._hidden = [route for route in self._hidden if not goes(route)]
        gone = [route for route in self.state.of_type(Route) if goes(route)]
        self._drop(gone)
        for route in gone:
            if (following := next((one for one in self._hidden if one.key == route.key), None)) is not None:
                self._hidden.remove(following)
                self._set(following)

    def _drop(self, items: Iterable[Item]) -> None:
        if keys := [item.key for item in items]:
            self.state = self.state.without(keys)


def _has_source(source: IPv4Address | IPv6Address, route: Route) -> bool:
    return route.source == source


def _share_prefix(one: Address, other: Address) -> bool:
    return one.address.network == other.address.network


def _share_vni(one: Link, other: Link) -> bool:
    """Return whether two vxlan devices have the same VNI on one socket, which the kernel refuses."""
    a, b = one.vxlan, other.vxlan
    return a is not None and b is not None and (a.vni, *_socket(a)) == (b.vni, *_socket(b))


def _share_port(one: Link, other: Link) -> bool:
    """Return whether two vxlan devices need different sockets on one port."""
    a, b = one.vxlan, other.vxlan
    return a is not None and b is not None and _socket(a)[:2] == _socket(b)[:2] and a.has_gbp != b.has_gbp


def _socket(vxlan: Vxlan) -> tuple[int, bool, bool]:
    is_ipv6 = vxlan.local is not None and vxlan.local.version == 6
    return vxlan.port, is_ipv6, vxlan.has_gbp
