"""The tunnel guard as chains and sets of nf_tables. Both address families have the same chains and sets.

    arriving, before routing and after DNAT
        datagram to this host's tunnel port number: jump to tunnel
        udp only, datagram to a peer with another port number: goto to_peers
        source in another host's subnet, not received from a link of the overlay, and the route to the source
        uses another interface: drop
    tunnel
        address of this host: goto to_us
        address and port of a peer: goto to_peers
        another address of this host: goto to_us
    to_us
        received from the underlay, and outer and inner source belong to one peer: accept
        another VNI: accept
        received from the underlay: goto refused
        the route to the outer source uses another interface: goto refused
        outer and inner source belong to one peer: accept
        any other: goto refused
    to_peers
        another VNI: accept
        the route to the outer source uses another interface: goto refused
        outer and inner source belong to one peer: accept
        any other: goto refused
    refused
        remember the addresses; drop
    leaving, only packets of users other than root and flanneld
        datagram to a peer's tunnel port: drop
    in_clear, before DNAT, only if the overlay encrypts
        received from the underlay, destination in this host's subnet: drop

Each step of a rule costs time for each packet. Therefore one comparison of the port selects the packets that
the rules of the tunnel examine, and the rule that matches most packets is the first of its chain. The kernel
performs some steps without a function call: it loads at most four aligned bytes, and compares them with a
constant. These steps are the first of a rule, and other steps follow only for few packets.

vxlan puts a local user's packet into a datagram, and the datagram still belongs to the user's socket.
Therefore the packet gets a mark when it leaves by the overlay, and loses the mark when it gets the tunnel
header. A user without rights cannot set a mark.

A datagram that is too short to contain a VNI is treated as a datagram with this host's VNI. Only the first
outer fragment has ports. The receiver ignores the other fragments if the first is missing. In IPv6, nf_tables
finds the UDP header behind extension headers, and Linux 5.11 or newer ignores a datagram whose first fragment
does not contain the UDP header.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import NamedTuple

from msgspec import Struct

from pyflannel.model.forwarder import Stranger
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.tunnel_guard import GuardedTunnel, GuardPeer, GuardTable
from pyflannel.wire.netlink.nftables import (
    ACCEPT,
    ADDED_BY_RULES,
    DROP,
    INTERVALS,
    IPV4,
    IPV4_ADDRESS,
    IPV6,
    IPV6_ADDRESS,
    LOCAL_OUT,
    META_INPUT,
    META_MARK,
    META_OUTPUT,
    META_PROTOCOL,
    META_USER,
    NETWORK_HEADER,
    PREROUTING,
    SERVICE,
    TRANSPORT_HEADER,
    Chain,
    CountedElement,
    Element,
    Expression,
    Rule,
    SetSpec,
    TableName,
    counter,
    destination_type,
    differs,
    equals,
    goto,
    input_route,
    is_in,
    jump,
    leave,
    masked,
    meta,
    payload,
    register_after,
    remember,
    set_mark,
    verdict,
)

REMEMBERED_MS = 3_600_000
"""Time in milliseconds for which the addresses of a dropped packet are remembered after the latest packet
with these addresses."""

_SENDERS, _RANGES, _ENDS, _PORTS, _DROPPED = "senders", "ranges", "ends", "ports", "dropped"


class GuardSets(NamedTuple):
    """The sets of a table.

    Attributes:
        senders: outer source and first inner source of each peer whose subnet has the usual prefix length.
        ranges: outer source and range of inner sources of each other peer. A look-up takes longer with more
            ranges.
        ends: underlay address and tunnel port of each peer.
        ports: tunnel ports of the peers. A look-up of a port takes less time than a look-up in `ends`.
        dropped: outer source, inner source and inner destination of dropped packets.

    An element of `senders` or `ranges` counts the packets that the guard accepts from the peer.
    """

    senders: SetSpec
    ranges: SetSpec
    ends: SetSpec
    ports: SetSpec
    dropped: SetSpec

    @property
    def of_sources(self) -> tuple[SetSpec, ...]:
        """The sets whose elements count the packets of a peer."""
        return self.senders, self.ranges

    @property
    def of_peers(self) -> tuple[SetSpec, ...]:
        """The sets whose elements describe peers."""
        return self.senders, self.ranges, self.ends, self.ports


def _sets(address: int) -> GuardSets:
    return GuardSets(
        senders=SetSpec(_SENDERS, (address, address), counts=True),
        ranges=SetSpec(_RANGES, (address, address), INTERVALS, counts=True),
        ends=SetSpec(_ENDS, (address, SERVICE)),
        ports=SetSpec(_PORTS, (SERVICE,)),
        dropped=SetSpec(_DROPPED, (address,) * 3, ADDED_BY_RULES, size=1024, timeout_ms=REMEMBERED_MS),
    )


SETS: Mapping[Family, GuardSets] = {4: _sets(IPV4_ADDRESS), 6: _sets(IPV6_ADDRESS)}


class _Header(NamedTuple):
    """The header of an IP packet: the offsets and the length of its addresses in bytes, and the EtherType
    of the packet.
    """

    source: int
    destination: int
    length: int
    ether_type: bytes


_HEADERS: Mapping[Family, _Header] = {
    4: _Header(source=12, destination=16, length=4, ether_type=b"\x08\x00"),
    6: _Header(source=8, destination=24, length=16, ether_type=b"\x86\xdd"),
}

_AFTER_DNAT = -90
"""Priorities of the base chains; the priority of DNAT is -100 (linux/netfilter_ipv4.h, NF_IP_PRI_NAT_DST)."""

_BEFORE_DNAT = -110

_USERS_PACKET = 0x2000_0000
"""This bit of the mark is set for the inner packets of local users."""

_PROTOCOL_UDP, _UNICAST = 17, 1
_NO_ROUTE = bytes(4)
_UDP_HEADER, _VXLAN_HEADER, _ETHERNET_HEADER = 8, 8, 14


_PROTOCOLS: Mapping[Family, int] = {4: IPV4, 6: IPV6}


def name_of(table: GuardTable) -> TableName:
    """Return the name of a table in nf_tables."""
    return TableName(_PROTOCOLS[table.family], table.name)


def family_of(table: TableName) -> Family | None:
    """Return the address family of a table; None if the table has another family."""
    return next((family for family, number in _PROTOCOLS.items() if number == table.family), None)


def chains_of(table: GuardTable) -> tuple[Chain, ...]:
    """Return the chains. Each chain follows the chains to which its rules jump."""
    tunnels = () if table.path is None else table.path.tunnels
    if not tunnels:
        arriving = Chain("arriving", tuple(_overlay_rules(table)), PREROUTING, _AFTER_DNAT)
        clear = tuple(_clear_rules(table))
        return (arriving, Chain("in_clear", clear, PREROUTING, _BEFORE_DNAT)) if clear else (arriving,)
    sockets = [
        _Socket(tuple(some), "" if not place else f"_{place}") for place, some in enumerate(_by_port(tunnels))
    ]
    return (
        *(chain for one in sockets for chain in _chains_of_socket(one, table)),
        Chain(
            "arriving",
            (*(rule for one in sockets for rule in _tunnel_rules(one, table.family)), *_overlay_rules(table)),
            PREROUTING,
            _AFTER_DNAT,
        ),
        Chain("of_user", tuple(rule for tunnel in tunnels for rule in _of_user(tunnel, table.family))),
        Chain(
            "leaving",
            (Rule("packet of a user", (*_by_user(table.users), goto("of_user"))),),
            LOCAL_OUT,
            _AFTER_DNAT,
        ),
    )


class _Socket(Struct, frozen=True):
    """The tunnels that share a UDP port, and the suffix of the names of their chains."""

    tunnels: tuple[GuardedTunnel, ...]
    ending: str

    @property
    def tunnel(self) -> str:
        return f"tunnel{self.ending}"

    @property
    def to_us(self) -> str:
        return f"to_us{self.ending}"

    @property
    def to_peers(self) -> str:
        return f"to_peers{self.ending}"

    @property
    def refused(self) -> str:
        return f"refused{self.ending}"


def _by_port(tunnels: Iterable[GuardedTunnel]) -> Iterable[list[GuardedTunnel]]:
    """Return the tunnels in groups, because tunnels with a VNI may share a port."""
    groups: dict[tuple[int, bool], list[GuardedTunnel]] = {}
    for tunnel in tunnels:
        groups.setdefault((tunnel.port, tunnel.vni is None), []).append(tunnel)
    return groups.values()


def _chains_of_socket(one: _Socket, table: GuardTable) -> Iterator[Chain]:
    yield Chain(one.refused, tuple(_refused(one.tunnels[0], table.family)))
    yield Chain(one.to_us, tuple(_to_us(one, table)))
    yield Chain(one.to_peers, tuple(_to_peers(one, table)))
    yield Chain(one.tunnel, tuple(_by_destination(one, table)))


def _tunnel_rules(one: _Socket, family: Family) -> Iterator[Rule]:
    port = payload(TRANSPORT_HEADER, 2, 2)
    to_our_port = (port, equals(one.tunnels[0].port.to_bytes(2, "big")), *_udp())
    yield Rule("to this host's tunnel port number", (*to_our_port, jump(one.tunnel)))
    if one.tunnels[0].vni is None:  # peers may have other ports
        to_a_peer = (*_udp(), port, is_in(_PORTS), *_to_a_peer(family))
        yield Rule("to a peer's tunnel port", (*to_a_peer, goto(one.to_peers)))


def _by_destination(one: _Socket, table: GuardTable) -> Iterator[Rule]:
    """Yield the rules for datagrams to the port number of this host's tunnel."""
    if table.address is not None:
        own = (_destination(table.family), equals(table.address.packed))
        yield Rule("to this host", (*own, goto(one.to_us)))
    yield Rule("to a peer", (*_to_a_peer(table.family), goto(one.to_peers)))
    # vxlan listens on every address.
    is_for_us = (destination_type(), differs(_word(_UNICAST)))
    yield Rule("to this host at another address", (*is_for_us, goto(one.to_us)))


def _overlay_rules(table: GuardTable) -> Iterator[Rule]:
    """Yield the rule that drops packets with a source in another host's subnet, but that arrive from another
    link.

    Packets of this host's containers leave the rule first, then packets from outside the overlay.
    """
    if table.network is None or table.subnet is None or table.path is None:
        return
    source = _source(table.family)
    not_ours = _has_prefix(source, table.subnet, differs)
    of_overlay = _has_prefix(source, table.network)
    if len(not_ours) == 2:  # without a mask, the register still contains the source
        of_overlay = of_overlay[1:]
    by_another_link = (meta(META_INPUT), *(differs(_name(link)) for link in table.path.links))
    yield Rule(
        "source in another host's subnet",
        (*not_ours, *of_overlay, *by_another_link, *_unrouted(), counter(), verdict(DROP)),
    )


def _clear_rules(table: GuardTable) -> Iterator[Rule]:
    """Yield the rule that drops unencrypted packets to this host's subnet.

    Packets to a published port still have the address of the host, because the rule is before DNAT.
    """
    if table.path is None or not table.path.refuses_clear or table.subnet is None:
        return
    by_underlay = (meta(META_INPUT), equals(_name(table.underlay)))
    to_us = _has_prefix(_destination(table.family), table.subnet)
    yield Rule("unencrypted to this host's subnet", (*by_underlay, *to_us, counter(), verdict(DROP)))


def _to_us(one: _Socket, table: GuardTable) -> Iterator[Rule]:
    by_underlay = (meta(META_INPUT), equals(_name(table.underlay)))
    yield from _from_a_peer(one.tunnels[0], table, by_underlay)
    yield from _of_another_network(one)
    yield Rule("from no peer", (*by_underlay, goto(one.refused)))
    yield Rule("source not routed to its interface", (*_unrouted(), goto(one.refused)))
    yield from _from_a_peer(one.tunnels[0], table)
    yield Rule("from no peer", (goto(one.refused),))


def _to_peers(one: _Socket, table: GuardTable) -> Iterator[Rule]:
    yield from _of_another_network(one)
    yield Rule("source not routed to its interface", (*_unrouted(), goto(one.refused)))
    yield from _from_a_peer(one.tunnels[0], table)
    yield Rule("from no peer", (goto(one.refused),))


def _refused(tunnel: GuardedTunnel, family: Family) -> Iterator[Rule]:
    inner, header = _inner(tunnel), _HEADERS[family]
    second, third = register_after(header.length), register_after(2 * header.length)
    dropped = SETS[family].dropped
    yield Rule(
        "remember the addresses",
        (
            _source(family),
            payload(TRANSPORT_HEADER, inner + header.source, header.length, second),
            payload(TRANSPORT_HEADER, inner + header.destination, header.length, third),
            remember(dropped.name, dropped.timeout_ms),
        ),
    )
    yield Rule("drop, even if the set is full or the packet is too short", (counter(), verdict(DROP)))


def _of_user(tunnel: GuardedTunnel, family: Family) -> Iterator[Rule]:
    to_a_peer = (*_udp(), *_to_a_peer(family))
    if tunnel.vni is None:
        yield Rule("tunnel packets of a user", (*to_a_peer, counter(), verdict(DROP)))
        return
    others = _word(~_USERS_PACKET)
    mark = meta(META_MARK)
    by_overlay = (meta(META_OUTPUT), equals(_name(tunnel.link)))
    yield Rule(
        "mark a user's packet to the overlay",
        (*by_overlay, mark, masked(others, _word(_USERS_PACKET)), set_mark()),
    )
    tunnelled = (*to_a_peer, *_vni(tunnel.vni, equals))
    unmarked = (mark, masked(_word(_USERS_PACKET)), equals(bytes(4)))
    yield Rule("tunnel packets of a user", (*tunnelled, *unmarked, counter(), verdict(DROP)))
    yield Rule(
        "remove the mark: it has its tunnel header", (*tunnelled, mark, masked(others), set_mark(), leave())
    )


def _by_user(trusted: Iterable[int]) -> tuple[Expression, ...]:
    """Return the steps that match packets of users other than root and the given users.

    A packet belongs to the user that opened the socket, even if another user sends. A forwarded packet
    belongs to no user.
    """
    return meta(META_USER), *(differs(_word(uid)) for uid in (0, *trusted))


def _of_another_network(one: _Socket) -> Iterator[Rule]:
    vnis = [tunnel.vni for tunnel in one.tunnels if tunnel.vni is not None]
    if vnis:
        yield Rule("another VNI", (*(step for vni in vnis for step in _vni(vni, differs)), verdict(ACCEPT)))


def _vni(vni: int, compare: Callable[[bytes], Expression]) -> tuple[Expression, ...]:
    data = vni.to_bytes(3, "big")
    return payload(TRANSPORT_HEADER, _UDP_HEADER + 4, len(data)), compare(data)


def _from_a_peer(
    tunnel: GuardedTunnel, table: GuardTable, conditions: tuple[Expression, ...] = ()
) -> Iterator[Rule]:
    inner, header = _inner(tunnel), _HEADERS[table.family]
    second, ether_type = register_after(header.length), header.ether_type
    is_ip = (payload(TRANSPORT_HEADER, inner - len(ether_type), len(ether_type)), equals(ether_type))
    sources = (
        *conditions,
        *(is_ip if tunnel.vni is not None else ()),
        _source(table.family),
        payload(TRANSPORT_HEADER, inner + header.source, header.length, second),
    )
    mask = _network(table.family, 0, table.source_length).netmask.packed
    yield Rule("from a peer", (*sources, masked(mask, register=second), is_in(_SENDERS), verdict(ACCEPT)))
    yield Rule("from a peer with a subnet of another size", (*sources, is_in(_RANGES), verdict(ACCEPT)))


def _inner(tunnel: GuardedTunnel) -> int:
    """Return the offset of the inner IP header, counted from the UDP header."""
    return _UDP_HEADER + (0 if tunnel.vni is None else _VXLAN_HEADER + _ETHERNET_HEADER)


def _to_a_peer(family: Family) -> tuple[Expression, ...]:
    port = payload(TRANSPORT_HEADER, 2, 2, register_after(_HEADERS[family].length))
    return _destination(family), port, is_in(_ENDS)


def _udp() -> tuple[Expression, ...]:
    return meta(META_PROTOCOL), equals(bytes((_PROTOCOL_UDP,)))


def _unrouted() -> tuple[Expression, ...]:
    return input_route(), equals(_NO_ROUTE)


def _source(family: Family) -> Expression:
    header = _HEADERS[family]
    return payload(NETWORK_HEADER, header.source, header.length)


def _destination(family: Family) -> Expression:
    header = _HEADERS[family]
    return payload(NETWORK_HEADER, header.destination, header.length)


def _has_prefix(
    address: Expression, network: IpNetwork, compare: Callable[[bytes], Expression] = equals
) -> tuple[Expression, ...]:
    """Return the steps that load an address and compare its prefix. A prefix of whole bytes needs no mask."""
    prefix, length = network.network_address.packed, network.prefixlen
    if length and length % 8 == 0:
        return address, compare(prefix[: length // 8])
    return address, masked(network.netmask.packed), compare(prefix)


def _network(family: Family, address: int, length: int) -> IpNetwork:
    """Return the prefix of this length that contains an address."""
    pair = address, length
    return IPv4Network(pair, strict=False) if family == 4 else IPv6Network(pair, strict=False)


def _name(link: str) -> bytes:
    """Return the name of a link in the form in which the kernel compares names: 16 bytes (IFNAMSIZ)."""
    return link.encode(errors="surrogateescape").ljust(16, b"\0")


def _word(value: int) -> bytes:
    """Return a number in the host's byte order."""
    return struct.pack("=I", value & 0xFFFFFFFF)


# The elements of the sets.


def elements_of(peers: Iterable[GuardPeer], spec: SetSpec, source_length: int) -> Iterator[Element]:
    """Yield the elements of one set for the peers. An element occurs twice if two peers have one address."""
    if spec.name == _PORTS:
        yield from {port.to_bytes(2, "big") for peer in peers for port in peer.ports}
        return
    for peer in peers:
        address, sources = peer.address.packed, peer.sources
        if spec.name == _ENDS:
            for port in peer.ports:
                yield address + port.to_bytes(2, "big") + bytes(2)
        elif spec.name == (_SENDERS if sources.prefixlen == source_length else _RANGES):
            first = address + sources.network_address.packed
            yield first if spec.name == _SENDERS else first + address + sources.broadcast_address.packed


def source_of(key: Element) -> tuple[IpAddress, IpAddress]:
    """Return the outer source and the first inner source of an element that counts the packets of a peer."""
    outer, inner = _addresses(key, 2)
    return outer, inner


def strangers(dropped: Iterable[CountedElement], peers: Iterable[GuardPeer]) -> Iterator[Stranger]:
    """Yield the senders of dropped packets of one family, one for each combination of addresses.

    The sender is an impostor if the inner source belongs to a peer.
    """
    subnets = {peer.subnet for peer in peers}
    lengths = {subnet.prefixlen for subnet in subnets}
    for one in dropped:
        outer, inner, destination = _addresses(one.key, 3)
        is_known = any(_network(inner.version, int(inner), length) in subnets for length in lengths)
        yield Stranger(
            address=outer,
            reason="impostor" if is_known else "stranger",
            packets=one.packets,
            age_s=one.age_s,
            inner_source=inner,
            inner_destination=destination,
        )


def _addresses(key: bytes, count: int) -> Iterator[IpAddress]:
    """Yield the addresses of a key, which have equal lengths."""
    length = len(key) // count
    kind = IPv4Address if length == _HEADERS[4].length else IPv6Address
    return (kind(key[place : place + length]) for place in range(0, len(key), length))
