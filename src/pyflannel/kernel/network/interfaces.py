"""Observes the interfaces and bridges of the process's network namespace."""

import asyncio
import contextlib
import socket
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_address
from pathlib import Path
from typing import Self

from msgspec import Struct

from pyflannel.errors import TargetError
from pyflannel.kernel.network.device_ioctls import driver_of
from pyflannel.kernel.network.ipsec import read_policies
from pyflannel.kernel.network.items import route_of
from pyflannel.kernel.network.netlink_socket import NotificationSocket, RequestSocket, failed
from pyflannel.model.host import (
    Bridge,
    BridgedContainer,
    DefaultRoute,
    Interface,
    InterfaceAddress,
    Interfaces,
    IpsecPolicy,
    RouteScope,
)
from pyflannel.model.link import split_alias
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.route import PROTOCOLS
from pyflannel.ports import Announce, ChangeChannel
from pyflannel.wire.icmp import format_arp_announcement, format_unsolicited_advertisement
from pyflannel.wire.netlink import addresses, bridges, links, neighbours, nftables, routes, xfrm
from pyflannel.wire.netlink.addresses import AddressRecord
from pyflannel.wire.netlink.bridges import BridgeLink
from pyflannel.wire.netlink.links import LinkRecord
from pyflannel.wire.netlink.message import INET, INET6, Message
from pyflannel.wire.netlink.routes import RouteGlance, RouteRecord

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE
(linux/rtnetlink.h).
"""

_COALESCE_S = 0.01

_RESOLVERS = "/etc/resolv.conf"

_NO_ROUTES = RouteScope()

_MOST_POLICIES = 64
"""Maximum number of IPsec policies. The number is limited because each peer is compared with each policy."""

_EVERYBODY = IPv4Network("0.0.0.0/0")
_EVERY_POLICY = (
    IpsecPolicy(direction="in", source=_EVERYBODY, destination=_EVERYBODY),
    IpsecPolicy(direction="out", source=_EVERYBODY, destination=_EVERYBODY),
)

_FAR_AWAY: Mapping[Family, IpAddress] = {4: IPv4Address("198.51.100.1"), 6: IPv6Address("2001:db8::1")}
"""Addresses for documentation (RFC 5737, RFC 3849), so that the route to them is the default route."""


class KernelInterfaces:
    """The InterfaceSource of the network namespace of this process.

    Raises:
        TargetError: on entering, if the kernel refuses to create a socket.
    """

    def __init__(self) -> None:
        self._asked_for: set[IpAddress] = set()
        self._scope = RouteScope()

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            self._devices = opened.enter_context(_device_socket())
            self._requests = opened.enter_context(contextlib.closing(RequestSocket()))
            self._notifications = opened.enter_context(contextlib.closing(NotificationSocket(_GROUPS)))
            self._notifications.ignore(routes.fields_of(self._scope.protocol))
            self._ipsec: tuple[RequestSocket, NotificationSocket] | None = None
            with contextlib.suppress(TargetError):  # a kernel without IPsec
                asking = opened.enter_context(contextlib.closing(RequestSocket(xfrm.PROTOCOL)))
                hearing = NotificationSocket(xfrm.POLICIES, xfrm.PROTOCOL)
                self._ipsec = asking, opened.enter_context(contextlib.closing(hearing))
            self._sockets = opened.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sockets.close()

    async def observe(self, scope: RouteScope = _NO_ROUTES) -> Interfaces:
        """Return the current interfaces, their addresses and the relevant routes."""
        if scope.protocol != self._scope.protocol:
            self._notifications.ignore(routes.fields_of(scope.protocol))
        self._scope = scope
        found = await self._requests.dump(links.dump_links(), links.parse_link)
        held = await self._requests.dump(addresses.dump_addresses(), addresses.parse_address_message)
        dumped = await self._requests.dump(routes.dump_routes(INET), partial(_route_that_matters, scope))
        if _uses_ipv6(scope):
            dumped += await self._requests.dump(
                routes.dump_routes(INET6), partial(_route_that_matters, scope)
            )
        by_routes = [route for route in dumped if _is_default_or_on_link(route)]
        links_by_index = sorted(found, key=lambda link: link.index)
        names = {link.index: link.name for link in found}
        return Interfaces(
            interfaces=tuple(self._interface(link, held, by_routes) for link in links_by_index),
            default_routes=await self._default_routes(4, names, by_routes),
            ipv6_default_routes=await self._default_routes(6, names, by_routes) if _uses_ipv6(scope) else (),
            routes=tuple(route_of(route, names) for route in dumped if _is_in(scope, route)),
            resolvers=_resolvers(),
            policies=await self._policies(),
        )

    async def route_to(self, address: IpAddress) -> tuple[str, IpAddress] | None:
        """Return link and source address of this host's packets to `address`; None if there is no route."""
        self._asked_for.add(address)
        answer = await self._requests.ask(routes.look_up_route(address))
        if not isinstance(answer, Message):
            return None
        route = routes.parse_route(answer.body)
        if route is None or route.source is None:
            return None
        found = await self._requests.dump(links.dump_links(), links.parse_link)
        name = next((link.name for link in found if link.index == route.index), None)
        return None if name is None else (name, route.source)

    async def announce(self, interface: Interface, addresses: Iterable[IpAddress]) -> None:
        """Send an ARP announcement, or an unsolicited neighbour advertisement, for each address.

        Raises:
            TargetError: the kernel refused to send the announcement.
        """
        try:
            for address in addresses if interface.mac else ():
                _announce(interface, address, bytes.fromhex(interface.mac.replace(":", "")))
        except OSError as error:
            raise failed(f"the announcement of the address of {interface.name}", error) from error

    def changes(self) -> ChangeChannel:
        """Open a channel of changes to links, addresses, IPsec, and the routes that `observe` reads."""
        return ChangeChannel(self._read_changes, *([] if self._ipsec is None else [self._read_policies]))

    async def _read_policies(self, announce: Announce) -> None:
        assert self._ipsec is not None
        while True:
            await self._ipsec[1].wait(lambda _: True)
            await asyncio.sleep(_COALESCE_S)
            self._ipsec[1].drain()
            announce()

    async def _policies(self) -> tuple[IpsecPolicy, ...]:
        """Return the IPsec policies; one policy for all addresses if the number of policies is too large."""
        if self._ipsec is None:
            return ()
        requests = self._ipsec[0]
        try:
            found = await read_policies(requests)
        except TargetError as error:
            if not error.is_permanent:
                raise
            return ()  # without this right, the fast path does not work either
        return found if len(found) <= _MOST_POLICIES else _EVERY_POLICY

    async def _read_changes(self, announce: Announce) -> None:
        while True:
            await self._notifications.wait(self._concerns)
            await asyncio.sleep(_COALESCE_S)
            self._notifications.drain()
            announce()

    def _concerns(self, message: Message) -> bool:
        """Return whether a notification may change the results of this object. Notifications about most
        routes cannot change them.
        """
        if message.kind not in (routes.NEW, routes.DELETE):
            return True
        if routes.protocol_of(message.body) == self._scope.protocol:
            return False
        glance = routes.glance_at_route(message.body)
        if glance is not None and _overlaps(self._scope, glance):
            return True
        if glance is not None and glance.version == 6 and not _uses_ipv6(self._scope):
            return False
        if routes.protocol_of(message.body) in PROTOCOLS:
            return False
        if routes.is_on_link(message.body):
            return True
        return any(
            routes.covers(message.body, address) for address in (*self._asked_for, *_FAR_AWAY.values())
        )

    def _interface(
        self, link: LinkRecord, held: list[AddressRecord], by_routes: list[RouteRecord]
    ) -> Interface:
        own = [one for one in held if one.index == link.index]
        mark, owner = split_alias(link.alias)
        return Interface(
            name=link.name,
            index=link.index,
            mtu=link.mtu,
            is_up=link.is_up,
            is_loopback=link.is_loopback,
            kind=link.kind,
            alias=mark,
            owner=owner,
            addresses=tuple(_address(one) for one in own),
            on_link=_on_link(own, [route for route in by_routes if route.index == link.index]),
            driver=driver_of(self._devices, link.name) if _has_ipv4(own) else "",
            has_ipv6=link.has_ipv6,
            mac=link.mac,
        )

    async def _default_routes(
        self, family: Family, names: dict[int, str], by_routes: list[RouteRecord]
    ) -> tuple[DefaultRoute, ...]:
        found = [
            route
            for route in by_routes
            if not route.destination.prefixlen and route.destination.version == family
        ]
        if found:
            return tuple(
                DefaultRoute(
                    link=names[route.index],
                    metric=route.metric,
                    source=route.source,
                    gateway=None
                    if route.gateway is None or route.gateway.version != family
                    else route.gateway,
                )
                for route in found
                if route.index in names
            )
        # Routing rules may select another table than main, so only the kernel's own look-up is correct.
        reached = await self.route_to(_FAR_AWAY[family])
        return () if reached is None else (DefaultRoute(link=reached[0], source=reached[1]),)


_ETH_P_ARP = 0x0806  # linux/if_ether.h
_BROADCAST = b"\xff" * 6
_ALL_NODES = "ff02::1"
_HOP_LIMIT = 255
"""Receivers drop advertisements with another hop limit, which a router has forwarded (RFC 4861 section
7.1.2)."""


def _announce(interface: Interface, address: IpAddress, mac: bytes) -> None:
    if isinstance(address, IPv4Address):
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
            message = format_arp_announcement(address, mac)
            sender.sendto(message, (interface.name, _ETH_P_ARP, 0, 0, _BROADCAST))
        return
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOP_LIMIT)
        sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        sender.bind((str(address), 0))
        message = format_unsolicited_advertisement(address, mac, is_router=_forwards_ipv6(interface.name))
        sender.sendto(message, (_ALL_NODES, 0, 0, interface.index))


def _forwards_ipv6(name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/sys/net/ipv6/conf/{name}/forwarding").read_text().strip() != "0"
    return False


def _device_socket() -> socket.socket:
    """Return a socket for queries of drivers."""
    try:
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    except OSError as error:
        raise failed("the socket for driver queries", error) from error


def _route_that_matters(scope: RouteScope, body: bytes) -> RouteRecord | None:
    """Return a route if it is in the scope, is a default route, or has no gateway; None for all others."""
    protocol = routes.protocol_of(body)
    if protocol == scope.protocol or (protocol in PROTOCOLS and not scope.networks):
        return None
    glance = routes.glance_at_route(body)
    if glance is None:
        return None
    is_foreign = protocol not in PROTOCOLS
    if _overlaps(scope, glance) or (is_foreign and (not glance.length or routes.is_on_link(body))):
        return routes.parse_route(body)
    return None


def _overlaps(scope: RouteScope, glance: RouteGlance) -> bool:
    """Return whether a route other than a default route overlaps a network in the scope."""
    base = glance.key[1]
    return (
        bool(glance.length)
        and isinstance(base, int)
        and any(
            network.version == glance.version
            and not (int(network.network_address) ^ base)
            >> (network.max_prefixlen - min(glance.length, network.prefixlen))
            for network in scope.networks
        )
    )


def _uses_ipv6(scope: RouteScope) -> bool:
    return any(network.version == 6 for network in scope.networks)


def _is_in(scope: RouteScope, route: RouteRecord) -> bool:
    destination = route.destination
    return destination.prefixlen > 0 and any(destination.overlaps(network) for network in scope.networks)


def _is_default_or_on_link(route: RouteRecord) -> bool:
    """Return whether a route is a default route, or has no gateway and no mark of flannel."""
    if route.kind != routes.UNICAST or route.protocol in PROTOCOLS:
        return False
    return not route.destination.prefixlen or (route.gateway is None and not route.is_multipath)


def _resolvers() -> tuple[IpAddress, ...]:
    """Return the host's DNS servers; none if the file is unreadable."""
    with contextlib.suppress(OSError):
        return tuple(parse_resolvers(Path(_RESOLVERS).read_text(errors="replace")))
    return ()


def parse_resolvers(text: str) -> Iterator[IpAddress]:
    """Yield the addresses of the name servers in a resolv.conf (resolv.conf(5))."""
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nameserver"] and words[1:]:
            with contextlib.suppress(ValueError):
                yield ip_address(words[1].partition("%")[0])


def _on_link(held: list[AddressRecord], by_routes: list[RouteRecord]) -> tuple[IpNetwork, ...]:
    """Return the networks that a link reaches without a gateway, from its addresses and its routes.

    The link-local prefix of IPv6, which every link has, is omitted.

    The kernel removes the routes of a link that is set down, but keeps the addresses.
    """
    prefixes = {route.destination for route in by_routes if route.destination.prefixlen}
    prefixes |= {
        one.address.network for one in held if one.peer is None and not one.flags & addresses.NO_PREFIX_ROUTE
    }
    own = {one.address.ip for one in held}
    found = (
        prefix
        for prefix in prefixes
        if not (prefix.prefixlen == prefix.max_prefixlen and prefix[0] in own)
        and not (prefix.version == 6 and prefix.is_link_local)
    )
    return tuple(sorted(found, key=lambda one: (one.version, int(one.network_address), one.prefixlen)))


def _has_ipv4(held: list[AddressRecord]) -> bool:
    return any(one.address.version == 4 for one in held)


def _address(record: AddressRecord) -> InterfaceAddress:
    return InterfaceAddress(
        address=record.address,
        is_global=record.scope == 0 and not record.address.ip.is_link_local,
        is_permanent=bool(record.flags & addresses.PERMANENT),
        is_secondary=bool(record.flags & addresses.SECONDARY),
        is_tentative=bool(record.flags & (addresses.TENTATIVE | addresses.DUPLICATE)),
        is_deprecated=bool(record.flags & addresses.DEPRECATED),
    )


_BRIDGE_GROUPS = 0x1 | 0x4 | 0x10
"""RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR (linux/rtnetlink.h)."""

_BRIDGE_COALESCE_S = 0.02

_PLAIN_QUEUEING = ("", "noqueue")


class _BridgeSockets(Struct, frozen=True, kw_only=True):
    """The sockets of `KernelBridges`.

    Attributes:
        requests: socket that reads links, addresses and neighbours.
        filter_requests: socket that reads the rules of the bridge family.
        notifications: socket that receives changes of links, addresses and neighbours.
        filter_notifications: socket that receives changes of rules; None if the process has no right to
            receive them.
    """

    requests: RequestSocket
    filter_requests: RequestSocket
    notifications: NotificationSocket
    filter_notifications: NotificationSocket | None


class KernelBridges:
    """The BridgeSource of the network namespace of this process.

    The sockets are opened at the first use, because only the fast path needs them.
    """

    def __init__(self) -> None:
        self._bridges: frozenset[int] = frozenset()
        self._opened = contextlib.ExitStack()
        self._sockets: _BridgeSockets | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._opened.close()

    def _open(self) -> _BridgeSockets:
        """Return the sockets.

        Raises:
            TargetError: the kernel refuses to create a socket.
        """
        if self._sockets is None:
            with contextlib.ExitStack() as opened:
                requests = opened.enter_context(contextlib.closing(RequestSocket()))
                filter_requests = opened.enter_context(contextlib.closing(RequestSocket(nftables.PROTOCOL)))
                notifications = opened.enter_context(contextlib.closing(NotificationSocket(_BRIDGE_GROUPS)))
                rules: NotificationSocket | None = None
                with contextlib.suppress(TargetError):  # notifications of rules need CAP_NET_ADMIN
                    rules = NotificationSocket(nftables.CHANGES, nftables.PROTOCOL)
                    opened.enter_context(contextlib.closing(rules))
                self._opened = opened.pop_all()
            self._sockets = _BridgeSockets(
                requests=requests,
                filter_requests=filter_requests,
                notifications=notifications,
                filter_notifications=rules,
            )
        return self._sockets

    async def observe(self) -> tuple[Bridge, ...]:
        """Return the bridges that have IPv4 addresses, in the order of their names."""
        requests = self._open().requests
        found = await requests.dump(links.dump_links(), bridges.parse_bridge_link)
        by_index = {link.index: link for link in found}
        self._bridges = frozenset(link.index for link in found if link.kind == "bridge")
        if not self._bridges:
            return ()
        addressed = await self._addresses(requests)
        filtered = await self._has_bridge_rules()
        return tuple(
            [
                Bridge(
                    name=link.name,
                    addresses=addressed[link.index],
                    obstacles=tuple(_obstacles(link, filtered)),
                    containers=await self._containers(requests, link.index, by_index),
                )
                for link in sorted(found, key=lambda link: link.name)
                if link.index in self._bridges and link.index in addressed
            ]
        )

    def changes(self) -> ChangeChannel:
        """Open a channel of changes to bridges, their ports, containers and rules."""
        opened = self._open()
        sockets = (opened.notifications, opened.filter_notifications)
        return ChangeChannel(*(partial(self._read_changes, each) for each in sockets if each is not None))

    async def _read_changes(self, notifications: NotificationSocket, announce: Announce) -> None:
        while True:
            await notifications.wait(self._concerns)
            await asyncio.sleep(_BRIDGE_COALESCE_S)
            notifications.drain()
            announce()

    def _concerns(self, message: Message) -> bool:
        """Return whether a notification may change the results of this object. Notifications about neighbours
        that are not behind a bridge cannot change them.
        """
        if message.kind not in (neighbours.NEW, neighbours.DELETE):
            return True
        learned = bridges.parse_learned(message.body)
        return learned is not None or neighbours.entry_index(message.body) in self._bridges

    async def _addresses(self, requests: RequestSocket) -> dict[int, tuple[IPv4Interface, ...]]:
        held: dict[int, tuple[IPv4Interface, ...]] = {}
        for record in await requests.dump(addresses.dump_addresses(), addresses.parse_address_message):
            if isinstance(record.address, IPv4Interface):
                held[record.index] = (*held.get(record.index, ()), record.address)
        return held

    async def _containers(
        self, requests: RequestSocket, bridge: int, by_index: dict[int, BridgeLink]
    ) -> tuple[BridgedContainer, ...]:
        ports = {
            mac: by_index[port]
            for of, port, mac in await requests.dump(bridges.dump_learned(bridge), bridges.parse_learned)
            if of == bridge and port in by_index and by_index[port].is_forwarding
        }
        near = await requests.dump(neighbours.dump_neighbours(bridge), neighbours.parse_neighbour)
        return tuple(
            BridgedContainer(address=one.address, mac=one.mac, port=ports[one.mac].name)
            for one in sorted(near, key=lambda one: int(one.address))
            if one.index == bridge and isinstance(one.address, IPv4Address) and one.mac in ports
        )

    async def _has_bridge_rules(self) -> bool:
        opened = self._open()
        if opened.filter_notifications is None:
            return True  # without notifications, rules may exist
        try:
            return bool(await opened.filter_requests.dump(nftables.dump_tables(nftables.BRIDGE), len))
        except TargetError:
            return True  # the state is unknown, and the path without the eBPF program is always correct


def _obstacles(bridge: BridgeLink, has_rules: bool) -> list[str]:
    found = []
    if bridge.filters_vlans:
        found.append("it filters VLANs")
    if bridge.queueing not in _PLAIN_QUEUEING:
        found.append(f"it has the queueing discipline {bridge.queueing}")
    if has_rules:
        found.append("nftables has tables of the bridge family")
    return found
