"""The forwarding decision for one packet: its peer, or the reason to drop it. No input or output."""

from collections.abc import Iterable
from enum import Enum
from socket import inet_aton, inet_ntoa
from time import monotonic

from pyflannel.wire.forwarder_control import Peer, Settings, Stranger
from pyflannel.wire.packet import (
    HEADER_OCTETS,
    PROTOCOL_UDP,
    ROUTED,
    TTL_AND_CHECKSUM,
    TTL_AT,
    checksum_one_hop_on,
    destination_port,
)

Endpoint = tuple[str, int]
"""Where a peer is: its address as text, its UDP port; a socket's own form."""


class PeerTable:
    """Peers by subnet, found by longest prefix.

    A look-up costs one dictionary access for each prefix length in use, whatever the number of peers.
    """

    def __init__(self) -> None:
        self._peers: dict[tuple[int, int], Peer] = {}
        self._levels: list[tuple[int, dict[int, Endpoint]]] = []
        self._ports: dict[int, tuple[int, ...]] = {}

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All peers, in no order."""
        return tuple(self._peers.values())

    def find(self, address: int) -> Endpoint | None:
        """Return the endpoint of the longest subnet that holds the address, or None."""
        for mask, endpoints in self._levels:
            if (endpoint := endpoints.get(address & mask)) is not None:
                return endpoint
        return None

    def ports_at(self, address: int) -> tuple[int, ...]:
        """Return the tunnel ports of the peers at this underlay address, one per subnet; usually none."""
        return self._ports.get(address, ())

    def replace(self, peers: Iterable[Peer]) -> None:
        """Let these be all peers."""
        self._peers.clear()
        self._levels.clear()
        self._ports.clear()
        self.change((), peers)

    def change(self, removals: Iterable[tuple[int, int]], peers: Iterable[Peer]) -> None:
        """Take out the (subnet, prefix length) pairs, those that are not there apart, then set the peers."""
        by_mask = dict(self._levels)
        for subnet, length in removals:
            if old := self._peers.pop((subnet, length), None):
                by_mask[_mask(length)].pop(subnet)
                self._close_port(old)
        for peer in peers:
            if old := self._peers.get((peer.subnet, peer.prefix_length)):
                self._close_port(old)
            self._peers[peer.subnet, peer.prefix_length] = peer
            self._ports[peer.address] = (*self.ports_at(peer.address), peer.port)
            endpoint = inet_ntoa(peer.address.to_bytes(4, "big")), peer.port
            by_mask.setdefault(_mask(peer.prefix_length), {})[peer.subnet] = endpoint
        self._levels = sorted(((m, e) for m, e in by_mask.items() if e), key=lambda level: -level[0])

    def _close_port(self, peer: Peer) -> None:
        ports = list(self._ports.pop(peer.address))
        ports.remove(peer.port)
        if ports:
            self._ports[peer.address] = tuple(ports)


def _mask(prefix_length: int) -> int:
    return 0xFFFFFFFF << (32 - prefix_length) & 0xFFFFFFFF


# What becomes of a packet: where it goes, or why it is dropped. No input or output.
#
# The two directions differ on purpose: what the host sends is routed; what comes from the underlay is also
# proven, because anybody can send a datagram.


class Drop(Enum):
    """Why a packet went no further; the value is the counter's name."""

    SHORT = "short"  # fewer octets than a header
    NOT_IPV4 = "not_ipv4"
    INCONSISTENT = "inconsistent"  # header and length contradict each other or the size
    LONG = "long"  # more octets than the tunnel's MTU
    LOOP = "loop"  # a tunnel datagram to a peer, which the host routes into the tunnel itself
    NO_ROUTE = "no_route"  # no peer has the destination
    EXPIRED = "expired"  # TTL used up
    STRANGER = "stranger"  # no peer has the inner source
    IMPOSTOR = "impostor"  # a peer has the inner source, but another one sent it
    NOT_OURS = "not_ours"  # inner destination outside our subnet
    DETACHED = "detached"  # no device to write to


def outbound(buffer: bytearray, at: int, size: int, peers: PeerTable, mtu: int) -> Endpoint | Drop:
    """Return where the device's packet at `at` goes, its TTL decremented in place, or why it is dropped.

    The route comes before the TTL: a packet without a route is unreachable whatever its TTL.

    UDP to the underlay address and tunnel port of a peer is a tunnel datagram that the host routes into the
    tunnel: sent on, it would come back for ever, each time in one datagram more. It is dropped whatever its
    source, which a NAT may have changed. A later fragment has no port: there the address decides.
    """
    if size < HEADER_OCTETS:
        return Drop.SHORT
    version_and_length, total, ttl, protocol, old, _, destination = ROUTED.unpack_from(buffer, at)
    if version_and_length != 0x45 or total > size or total < HEADER_OCTETS or size > mtu:
        fault = _fault(version_and_length, total, size, mtu)
        if fault is not None:
            return fault
    if protocol == PROTOCOL_UDP and (ports := peers.ports_at(destination)):
        port = destination_port(buffer, at, size)
        if port is None or port in ports:
            return Drop.LOOP
    endpoint = peers.find(destination)
    if endpoint is None:
        return Drop.NO_ROUTE
    if ttl <= 1:
        return Drop.EXPIRED
    TTL_AND_CHECKSUM.pack_into(buffer, at + TTL_AT, ttl - 1, protocol, checksum_one_hop_on(old))
    return endpoint


def inbound(
    buffer: bytearray, at: int, size: int, sender: str, peers: PeerTable, settings: Settings
) -> Drop | None:
    """Return None for a peer's packet at `at` that the device may have, its TTL decremented, or why not.

    It is taken only from the peer whose subnet holds the inner source, and only to our own subnet, whose
    first address is the tunnel's. The sender's port is not looked at: a NAT may have changed it.
    """
    if size < HEADER_OCTETS:
        return Drop.SHORT
    version_and_length, total, ttl, protocol, old, source, destination = ROUTED.unpack_from(buffer, at)
    if version_and_length != 0x45 or total > size or total < HEADER_OCTETS or size > settings.mtu:
        fault = _fault(version_and_length, total, size, settings.mtu)
        if fault is not None:
            return fault
    endpoint = peers.find(source)
    if endpoint is None:
        return Drop.STRANGER
    if endpoint[0] != sender:
        return Drop.IMPOSTOR
    if (destination ^ settings.subnet) >> (32 - settings.prefix_length):
        return Drop.NOT_OURS
    if ttl <= 1:
        return Drop.EXPIRED
    TTL_AND_CHECKSUM.pack_into(buffer, at + TTL_AT, ttl - 1, protocol, checksum_one_hop_on(old))
    return None


def _fault(version_and_length: int, total: int, size: int, mtu: int) -> Drop | None:
    """Return what is wrong with a header that is not the usual one, or None for one with options."""
    if version_and_length >> 4 != 4:
        return Drop.NOT_IPV4
    header_octets = (version_and_length & 0x0F) * 4
    if header_octets < HEADER_OCTETS or not header_octets <= total <= size:
        return Drop.INCONSISTENT
    return Drop.LONG if size > mtu else None


REMEMBERED = 256
"""As an address is easily forged there may be any number: whom we saw least recently we forget."""

_LONGEST_AGE_MS = (1 << 32) - 1

GUARDED = frozenset({Drop.STRANGER, Drop.IMPOSTOR, Drop.NOT_OURS})
"""Reasons that say more of the sender than of the packet."""


class Strangers:
    """Senders since the start, the latest last."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Drop], tuple[int, float, int, int]] = {}

    def note(self, sender: str, drop: Drop, source: int, destination: int) -> None:
        """Remember a dropped packet with these inner addresses."""
        seen, key = self._seen, (sender, drop)
        packets = seen.pop(key)[0] if key in seen else 0
        seen[key] = packets + 1, monotonic(), source, destination
        if len(seen) > REMEMBERED:
            del seen[next(iter(seen))]

    def all(self) -> list[Stranger]:
        """Return them as values of the control protocol."""
        now = monotonic()
        return [
            Stranger(
                int.from_bytes(inet_aton(sender), "big"),
                drop.value,
                packets,
                min(int((now - seen_at) * 1000), _LONGEST_AGE_MS),
                source,
                destination,
            )
            for (sender, drop), (packets, seen_at, source, destination) in self._seen.items()
        ]
