"""The tunnel guard as chains and sets of nf_tables.

    arriving, before routing and after DNAT
        a datagram to our tunnel port: goto to_us
        a datagram to a peer's tunnel port: goto to_peers
        by a link of the overlay: return
        of another host's subnet, and our route does not lead to its source by the interface: drop
    to_us
        by the underlay, and outer and inner source are a peer's: return
        of another VNI: return
        our route does not lead to the outer source by the interface: goto refused, unless it is the underlay
        outer and inner source are a peer's: return, unless it is the underlay; else goto refused
    to_peers
        of another VNI: return
        our route does not lead to the outer source by the interface: goto refused
        outer and inner source are a peer's: return; else goto refused
    refused
        remember the addresses; drop
    leaving, by a user other than root and that of flanneld
        a datagram to a peer's tunnel port: drop
    in_clear, before DNAT, if the overlay encrypts
        by the underlay, to our own subnet: drop

Each step of a rule costs some 30 ns a packet, so what nearly all tunnel packets are comes first.

A datagram that vxlan makes of a local user's packet still belongs to the user's socket, so the packet gets a
mark, which a user without rights cannot give, when it leaves by the overlay, and loses it with the tunnel
header.

A datagram that is too short for the comparison of the VNI counts as one of ours. Of an outer fragment only
the first has ports; the receiver has no use for the others.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.forwarder import Stranger
from pyflannel.model.tunnel_guard import GuardedTunnel, GuardPeer, GuardTable
from pyflannel.wire.netlink.nftables import (
    ADDED_BY_RULES,
    DROP,
    INTERVALS,
    IPV4_ADDRESS,
    LOCAL_OUT,
    META_INPUT,
    META_MARK,
    META_OUTPUT,
    META_PROTOCOL,
    META_USER,
    NETWORK_HEADER,
    PREROUTING,
    SECOND,
    SERVICE,
    THIRD,
    TRANSPORT_HEADER,
    Chain,
    CountedElement,
    Element,
    Expression,
    Rule,
    SetSpec,
    counter,
    destination_type,
    differs,
    equals,
    goto,
    input_route,
    is_in,
    leave,
    masked,
    meta,
    payload,
    remember,
    set_mark,
    verdict,
)

REMEMBERED_MS = 3_600_000
"""How long a dropped packet is remembered after the latest of its kind."""

SENDERS = SetSpec("senders", (IPV4_ADDRESS, IPV4_ADDRESS))
"""Outer source, and first inner source, of each peer whose inner sources have the usual prefix length."""

RANGES = SetSpec("ranges", (IPV4_ADDRESS, IPV4_ADDRESS), INTERVALS)
"""Outer source and inner sources of each other peer. To look up a range takes longer, the more there are."""

ENDS = SetSpec("ends", (IPV4_ADDRESS, SERVICE))
"""Address and tunnel port of each peer."""

DROPPED = SetSpec("dropped", (IPV4_ADDRESS,) * 3, ADDED_BY_RULES, size=1024, timeout_ms=REMEMBERED_MS)
"""Outer source, inner source and inner destination of what was dropped."""

SETS = (SENDERS, RANGES, ENDS, DROPPED)

_AFTER_DNAT = -90
"""Priority of base chains: DNAT has -100 (linux/netfilter_ipv4.h, NF_IP_PRI_NAT_DST)."""

_BEFORE_DNAT = -110

_USERS_PACKET = 0x2000_0000
"""Bit of the mark of local users' inner packets."""

_SOURCE, _DESTINATION, _PROTOCOL_UDP, _UNICAST = 12, 16, 17, 1
_NO_ROUTE = bytes(4)
_UDP_HEADER, _VXLAN_HEADER, _ETHERNET_HEADER = 8, 8, 14
_IPV4 = b"\x08\x00"


def chains_of(table: GuardTable) -> tuple[Chain, ...]:
    """Return the chains, those that others go to first."""
    tunnel = None if table.path is None else table.path.tunnel
    if tunnel is None:
        arriving = Chain("arriving", tuple(_overlay_rules(table)), PREROUTING, _AFTER_DNAT)
        clear = tuple(_clear_rules(table))
        return (arriving, Chain("in_clear", clear, PREROUTING, _BEFORE_DNAT)) if clear else (arriving,)
    return (
        Chain("refused", tuple(_refused(tunnel))),
        Chain("to_us", tuple(_to_us(tunnel, table))),
        Chain("to_peers", tuple(_to_peers(tunnel, table))),
        Chain("arriving", (*_tunnel_rules(tunnel, table), *_overlay_rules(table)), PREROUTING, _AFTER_DNAT),
        Chain("of_user", tuple(_of_user(tunnel))),
        Chain(
            "leaving", (Rule("of a user", (*_by_user(table.users), goto("of_user"))),), LOCAL_OUT, _AFTER_DNAT
        ),
    )


def _tunnel_rules(tunnel: GuardedTunnel, table: GuardTable) -> Iterator[Rule]:
    to_port = (*_udp(), payload(TRANSPORT_HEADER, 2, 2), equals(tunnel.port.to_bytes(2, "big")))
    if table.address is not None:
        own = (payload(NETWORK_HEADER, _DESTINATION, 4), equals(table.address.packed))
        yield Rule("to our tunnel port", (*to_port, *own, goto("to_us")))
    all_have_our_port = tunnel.vni is not None
    to_peer = to_port if all_have_our_port else _udp()
    yield Rule("to a peer's tunnel port", (*to_peer, *_to_a_peer(), goto("to_peers")))
    # vxlan listens at every address.
    is_for_us = (destination_type(), differs(_word(_UNICAST)))
    yield Rule("to our tunnel port at another address", (*to_port, *is_for_us, goto("to_us")))


def _overlay_rules(table: GuardTable) -> Iterator[Rule]:
    """Yield what drops packets of other hosts' subnets that come from elsewhere: containers, other links."""
    if table.network is None or table.subnet is None or table.path is None:
        return
    for link in table.path.links:
        yield Rule("by the overlay", (meta(META_INPUT), equals(_name(link)), leave()))
    yield Rule(
        "inner source of another host",
        (
            *_source_in(table.network),
            *_source_in(table.subnet, is_negated=True),
            *_unrouted(),
            counter(),
            verdict(DROP),
        ),
    )


def _clear_rules(table: GuardTable) -> Iterator[Rule]:
    """Yield what drops packets in clear. A published port has the address of the host before DNAT."""
    if table.path is None or not table.path.refuses_clear or table.subnet is None:
        return
    by_underlay = (meta(META_INPUT), equals(_name(table.underlay)))
    to_us = _address_in(_DESTINATION, table.subnet)
    yield Rule("in clear to our subnet", (*by_underlay, *to_us, counter(), verdict(DROP)))


def _to_us(tunnel: GuardedTunnel, table: GuardTable) -> Iterator[Rule]:
    by_underlay = (meta(META_INPUT), equals(_name(table.underlay)))
    yield from _from_a_peer(tunnel, table.source_length, by_underlay)
    yield from _of_another_network(tunnel)
    yield Rule("from nobody of the network", (*by_underlay, goto("refused")))
    yield Rule("source not routed to its interface", (*_unrouted(), goto("refused")))
    yield from _from_a_peer(tunnel, table.source_length)
    yield Rule("from nobody of the network", (goto("refused"),))


def _to_peers(tunnel: GuardedTunnel, table: GuardTable) -> Iterator[Rule]:
    yield from _of_another_network(tunnel)
    yield Rule("source not routed to its interface", (*_unrouted(), goto("refused")))
    yield from _from_a_peer(tunnel, table.source_length)
    yield Rule("from nobody of the network", (goto("refused"),))


def _refused(tunnel: GuardedTunnel) -> Iterator[Rule]:
    inner = _inner(tunnel)
    yield Rule(
        "remember it",
        (
            payload(NETWORK_HEADER, _SOURCE, 4),
            payload(TRANSPORT_HEADER, inner + _SOURCE, 4, SECOND),
            payload(TRANSPORT_HEADER, inner + _DESTINATION, 4, THIRD),
            remember(DROPPED.name, DROPPED.timeout_ms),
        ),
    )
    yield Rule("drop it, also if the set is full or it is too short", (counter(), verdict(DROP)))


def _of_user(tunnel: GuardedTunnel) -> Iterator[Rule]:
    if tunnel.vni is None:
        yield Rule("tunnel packets of a user", (*_udp(), *_to_a_peer(), counter(), verdict(DROP)))
        return
    others = _word(~_USERS_PACKET)
    mark = meta(META_MARK)
    by_overlay = (meta(META_OUTPUT), equals(_name(tunnel.link)))
    yield Rule(
        "a user's packet through the overlay",
        (*by_overlay, mark, masked(others, _word(_USERS_PACKET)), set_mark()),
    )
    tunnelled = (*_udp(), *_to_a_peer(), *_vni(tunnel.vni, equals))
    unmarked = (mark, masked(_word(_USERS_PACKET)), equals(bytes(4)))
    yield Rule("tunnel packets of a user", (*tunnelled, *unmarked, counter(), verdict(DROP)))
    yield Rule("has its tunnel header", (*tunnelled, mark, masked(others), set_mark()))


def _by_user(trusted: Iterable[int]) -> tuple[Expression, ...]:
    """Return the steps that match packets of users other than root and these.

    A packet belongs to the user that opened the socket, not to the one that sends. A forwarded packet belongs
    to nobody.
    """
    return meta(META_USER), *(differs(_word(uid)) for uid in (0, *trusted))


def _of_another_network(tunnel: GuardedTunnel) -> Iterator[Rule]:
    if tunnel.vni is not None:
        yield Rule("another VNI", (*_vni(tunnel.vni, differs), leave()))


def _vni(vni: int, compare: Callable[[bytes], Expression]) -> tuple[Expression, ...]:
    octets = vni.to_bytes(3, "big")
    return payload(TRANSPORT_HEADER, _UDP_HEADER + 4, len(octets)), compare(octets)


def _from_a_peer(
    tunnel: GuardedTunnel, length: int, conditions: tuple[Expression, ...] = ()
) -> Iterator[Rule]:
    inner = _inner(tunnel)
    is_ipv4 = (payload(TRANSPORT_HEADER, inner - len(_IPV4), len(_IPV4)), equals(_IPV4))
    sources = (
        *conditions,
        *(is_ipv4 if tunnel.vni is not None else ()),
        payload(NETWORK_HEADER, _SOURCE, 4),
        payload(TRANSPORT_HEADER, inner + _SOURCE, 4, SECOND),
    )
    mask = IPv4Network((0, length)).netmask.packed
    yield Rule("from a peer", (*sources, masked(mask, register=SECOND), is_in(SENDERS.name), leave()))
    yield Rule("from a peer with a subnet of another size", (*sources, is_in(RANGES.name), leave()))


def _inner(tunnel: GuardedTunnel) -> int:
    """Return where the inner IPv4 header begins, counted from the UDP header."""
    return _UDP_HEADER + (0 if tunnel.vni is None else _VXLAN_HEADER + _ETHERNET_HEADER)


def _to_a_peer() -> tuple[Expression, ...]:
    return (
        payload(NETWORK_HEADER, _DESTINATION, 4),
        payload(TRANSPORT_HEADER, 2, 2, SECOND),
        is_in(ENDS.name),
    )


def _udp() -> tuple[Expression, ...]:
    return meta(META_PROTOCOL), equals(bytes((_PROTOCOL_UDP,)))


def _unrouted() -> tuple[Expression, ...]:
    return input_route(), equals(_NO_ROUTE)


def _source_in(network: IPv4Network, *, is_negated: bool = False) -> tuple[Expression, ...]:
    return _address_in(_SOURCE, network, is_negated=is_negated)


def _address_in(offset: int, network: IPv4Network, *, is_negated: bool = False) -> tuple[Expression, ...]:
    compare = differs if is_negated else equals
    return (
        payload(NETWORK_HEADER, offset, 4),
        masked(network.netmask.packed),
        compare(network.network_address.packed),
    )


def _name(link: str) -> bytes:
    """Return the name of a link as the kernel compares it: 16 octets (IFNAMSIZ)."""
    return link.encode(errors="surrogateescape").ljust(16, b"\0")


def _word(value: int) -> bytes:
    """Return a number that the kernel keeps in its own byte order."""
    return struct.pack("=I", value & 0xFFFFFFFF)


# The elements of the sets.


def elements_of(peers: Iterable[GuardPeer], spec: SetSpec, source_length: int) -> Iterator[Element]:
    """Yield the elements of one set that peers need. Two peers at one address need one element twice."""
    for peer in peers:
        address, sources = peer.address.packed, peer.sources
        if spec is ENDS:
            yield address + peer.port.to_bytes(2, "big") + bytes(2)
        elif spec is (SENDERS if sources.prefixlen == source_length else RANGES):
            first = address + sources.network_address.packed
            yield first if spec is SENDERS else first + address + sources.broadcast_address.packed


def strangers(dropped: Iterable[CountedElement], peers: Iterable[GuardPeer]) -> Iterator[Stranger]:
    """Yield who sent what was dropped, one for each packet that differs in its addresses.

    The sender is an impostor if some peer has the inner source.
    """
    subnets = {peer.subnet for peer in peers}
    lengths = {subnet.prefixlen for subnet in subnets}
    for one in dropped:
        outer, inner, destination = (IPv4Address(one.key[place : place + 4]) for place in (0, 4, 8))
        is_known = any(IPv4Network((int(inner), length), strict=False) in subnets for length in lengths)
        yield Stranger(
            address=outer,
            reason="impostor" if is_known else "stranger",
            packets=one.packets,
            age_s=one.age_s,
            inner_source=inner,
            inner_destination=destination,
        )
