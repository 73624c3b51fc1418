"""ARP packets in Ethernet frames, by which a host finds out whether another host has its address (RFC 5227).

Layout of a frame, in bytes: destination 6, source 6, type 2. Layout of the packet: type of link 2, protocol
2, lengths of the two kinds of addresses 1 each, operation 2, then MAC address 6 and IPv4 address 4 of the
sender and of the target. Source: RFC 826.
"""

import struct
from ipaddress import IPv4Address
from typing import NamedTuple

ETHERTYPE = 0x0806
"""Type of Ethernet frames with ARP packets (linux/if_ether.h, ETH_P_ARP)."""

_FRAME = struct.Struct("!6s6sH")
_PACKET = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET, _IPV4, _MAC_BYTES, _IPV4_BYTES, _REQUEST = 1, 0x0800, 6, 4, 1
_EVERYBODY, _UNKNOWN_MAC, _UNKNOWN_ADDRESS = b"\xff" * 6, bytes(6), bytes(4)


class Sender(NamedTuple):
    """The sender of an ARP packet, which claims to have the address."""

    mac: bytes
    address: IPv4Address


def format_probe(mac: bytes, address: IPv4Address) -> bytes:
    """Return the frame of an ARP probe, which asks for an address and changes no neighbour entry."""
    kind = (_ETHERNET, _IPV4, _MAC_BYTES, _IPV4_BYTES, _REQUEST)
    packet = _PACKET.pack(*kind, mac, _UNKNOWN_ADDRESS, _UNKNOWN_MAC, address.packed)
    return _FRAME.pack(_EVERYBODY, mac, ETHERTYPE) + packet


def parse_sender(frame: bytes) -> Sender | None:
    """Return the sender of the ARP packet in a frame; None for another frame, and for a probe."""
    if len(frame) < _FRAME.size + _PACKET.size:
        return None
    _, _, ethertype = _FRAME.unpack_from(frame)
    link, protocol, mac_bytes, address_bytes, _, mac, address, _, _ = _PACKET.unpack_from(frame, _FRAME.size)
    kind = (ethertype, link, protocol, mac_bytes, address_bytes)
    if kind != (ETHERTYPE, _ETHERNET, _IPV4, _MAC_BYTES, _IPV4_BYTES) or address == _UNKNOWN_ADDRESS:
        return None
    return Sender(mac, IPv4Address(address))
