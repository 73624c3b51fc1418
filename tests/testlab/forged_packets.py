"""Packets with forged senders, as bytes."""

import struct
from ipaddress import IPv4Address

from pyflannel.wire.packet import checksum

_VXLAN_HEADER = b"\x08\0\0\0" + b"\0\0\1\0"
_SENDER_MAC = b"\2\0\0\0\0\1"
_IPV4 = b"\x08\0"


def datagram(source: object, destination: object, port: int, payload: bytes) -> bytes:
    """Return an IPv4 packet with a UDP datagram."""
    udp = struct.pack("!HHHH", port, port, 8 + len(payload), 0) + payload
    ends = IPv4Address(str(source)).packed + IPv4Address(str(destination)).packed
    header = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends)
    header[10:12] = struct.pack("!H", checksum(header))
    return bytes(header) + udp


def vxlan_payload(packet: bytes, mac: str) -> bytes:
    """Return the payload of a VXLAN datagram of network 1, with a packet for the VTEP with this address."""
    return _VXLAN_HEADER + bytes.fromhex(mac.replace(":", "")) + _SENDER_MAC + _IPV4 + packet
