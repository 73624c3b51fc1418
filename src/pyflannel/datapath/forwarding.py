"""Decides about one packet: the peer to send it to, or the reason to drop it. This module does no input or
output.
"""

from collections.abc import Iterable
from enum import Enum
from socket import inet_aton, inet_ntoa
from time import monotonic

from pyflannel.wire.forwarder_control import Peer, Settings, Stranger
from pyflannel.wire.packet import (
    HEADER_BYTES,
    PROTOCOL_UDP,
    ROUTED,
    TTL_AND_CHECKSUM,
    TTL_AT,
    checksum_one_hop_on,
    destination_port,
)

Endpoint = tuple[str, int]
"""Underlay address as text, and UDP port of a peer, in the form that the socket uses."""


class PeerTable:
    """Peers by subnet, with a look-up by the longest prefix.

    A look-up costs one dictionary access for each prefix length in use, regardless of the number of peers.
    """

    def __init__(self) -> None:
        self._peers: dict[tuple[int, int], Peer] = {}
        self._levels: list[tuple[int, dict[int, Endpoint]]] = []
        self._ports: dict[int, tuple[int, ...]] = {}

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All peers, in any order."""
        return tuple(self._peers.values())

    def find(self, address: int) -> Endpoint | None:
        """Return the endpoint of the longest subnet that contains the address, or None."""
        for mask, endpoints in self._levels:
            if (endpoint := endpoints.get(address & mask)) is not None:
                return endpoint
        return None

    def ports_at(self, address: int) -> tuple[int, ...]:
        """Return the tunnel ports of peers at this underlay address, one for each subnet; usually none."""
        return self._ports.get(address, ())

    def replace(self, peers: Iterable[Peer]) -> None:
        """Replace all peers."""
        self._peers.clear()
        self._levels.clear()
        self._ports.clear()
        self.change((), peers)

    def change(self, removals: Iterable[tuple[int, int]], peers: Iterable[Peer]) -> None:
        """Remove the existing pairs of (subnet, prefix length), then set the peers."""
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


# The decision about a packet is its destination, or the reason to drop it.
#
# The checks of the two directions differ on purpose. Packets of the host are only routed, without a check of
# the source. The source of packets from the underlay is also checked, because any program can send a
# datagram.


class Drop(Enum):
    """The reason for a dropped packet; its value is the name of the counter."""

    SHORT = "short"  # the packet is shorter than a header
    NOT_IPV4 = "not_ipv4"
    INCONSISTENT = "inconsistent"  # the header length, total length and size of the packet are inconsistent
    LONG = "long"  # the packet is longer than the tunnel's MTU
    LOOP = "loop"  # the packet is a tunnel datagram to a peer, which the host routed into the tunnel
    NO_ROUTE = "no_route"  # no peer's subnet contains the destination
    EXPIRED = "expired"  # TTL expired
    STRANGER = "stranger"  # no peer's subnet contains the inner source
    IMPOSTOR = "impostor"  # the inner source belongs to a peer other than the sender
    NOT_OURS = "not_ours"  # the inner destination is outside this host's subnet
    DETACHED = "detached"  # no attached device


def outbound(buffer: bytearray, at: int, size: int, peers: PeerTable, mtu: int) -> Endpoint | Drop:
    """Return the destination of the device's packet at `at`, or the reason to drop it. Decrement the TTL of
    the packet.

    The route is checked before the TTL: a packet without a route is unreachable, regardless of its TTL.

    UDP to the underlay address and tunnel port of a peer is a tunnel datagram that the host routed into the
    tunnel. If the forwarder sent it, the datagram would return endlessly, each time in another datagram. A
    tunnel datagram from the device is dropped regardless of its source, because a NAT may have changed the
    source. A later fragment has no port, so for a fragment only the address is compared.
    """
    if size < HEADER_BYTES:
        return Drop.SHORT
    version_and_length, total, ttl, protocol, old, _, destination = ROUTED.unpack_from(buffer, at)
    if version_and_length != 0x45 or total > size or total < HEADER_BYTES or size > mtu:
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
    """Return None for a valid packet of a peer at `at`, with its TTL decremented, or the reason to drop it.

    A packet is valid only from the peer whose subnet contains the inner source, and only to this host's
    subnet; the first address of this subnet is that of the tunnel. The sender's port is ignored, because a
    NAT may have changed the port.
    """
    if size < HEADER_BYTES:
        return Drop.SHORT
    version_and_length, total, ttl, protocol, old, source, destination = ROUTED.unpack_from(buffer, at)
    if version_and_length != 0x45 or total > size or total < HEADER_BYTES or size > settings.mtu:
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
    """Return the reason to drop a packet with an unusual header, or None for a valid header with options."""
    if version_and_length >> 4 != 4:
        return Drop.NOT_IPV4
    header_bytes = (version_and_length & 0x0F) * 4
    if header_bytes < HEADER_BYTES or not header_bytes <= total <= size:
        return Drop.INCONSISTENT
    return Drop.LONG if size > mtu else None


REMEMBERED = 256
"""Maximum number of senders that are remembered. The number of forged addresses is unlimited, so the least
recent sender is removed."""

_LONGEST_AGE_MS = (1 << 32) - 1

GUARDED = frozenset({Drop.STRANGER, Drop.IMPOSTOR, Drop.NOT_OURS})
"""Drop reasons that concern the sender, not only the packet."""


class Strangers:
    """Senders of dropped packets since the start, with the latest sender last."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Drop], tuple[int, float, int, int]] = {}

    def note(self, sender: str, drop: Drop, source: int, destination: int) -> None:
        """Record a dropped packet with these inner addresses."""
        seen, key = self._seen, (sender, drop)
        packets = seen.pop(key)[0] if key in seen else 0
        seen[key] = packets + 1, monotonic(), source, destination
        if len(seen) > REMEMBERED:
            del seen[next(iter(seen))]

    def all(self) -> list[Stranger]:
        """Return the senders as values of the control protocol."""
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
