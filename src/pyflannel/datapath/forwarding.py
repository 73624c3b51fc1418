"""What becomes of a packet: where it goes, or why it is dropped. No input or output.

The two directions differ on purpose: what the host sends is routed; what comes from the underlay is also
proven, because anybody can send a datagram.
"""

from enum import Enum

from pyflannel.datapath.peer_table import Endpoint, PeerTable
from pyflannel.wire.forwarder_control import Settings
from pyflannel.wire.packet import HEADER_OCTETS, ROUTED, TTL_AND_CHECKSUM, TTL_AT, checksum_one_hop_on


class Drop(Enum):
    """Why a packet went no further; the value is the counter's name."""

    SHORT = "short"  # fewer octets than a header
    NOT_IPV4 = "not_ipv4"
    INCONSISTENT = "inconsistent"  # header and length contradict each other or the size
    LONG = "long"  # more octets than the tunnel's MTU
    NO_ROUTE = "no_route"  # no peer has the destination
    EXPIRED = "expired"  # TTL used up
    STRANGER = "stranger"  # no peer has the inner source
    IMPOSTOR = "impostor"  # a peer has the inner source, but another one sent it
    NOT_OURS = "not_ours"  # inner destination outside our subnet
    DETACHED = "detached"  # no device to write to


def outbound(buffer: bytearray, at: int, size: int, peers: PeerTable, mtu: int) -> Endpoint | Drop:
    """Return where the device's packet at `at` goes, its TTL decremented in place, or why it is dropped.

    The route comes before the TTL: a packet without a route is unreachable whatever its TTL.
    """
    if size < HEADER_OCTETS:
        return Drop.SHORT
    version_and_length, total, ttl, protocol, old, _, destination = ROUTED.unpack_from(buffer, at)
    if version_and_length != 0x45 or total > size or total < HEADER_OCTETS or size > mtu:
        fault = _fault(version_and_length, total, size, mtu)
        if fault is not None:
            return fault
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
