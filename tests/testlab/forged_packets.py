"""Packets with forged senders, as bytes."""

import struct
from ipaddress import ip_address

from pyflannel.wire.packet import checksum

_VXLAN_HEADER = b"\x08\0\0\0" + b"\0\0\1\0"
SENDER_MAC = b"\2\0\0\0\0\1"
_ETHER_TYPES = {4: b"\x08\0", 6: b"\x86\xdd"}
_UDP = 17


def datagram(source: object, destination: object, port: int, payload: bytes) -> bytes:
    """Return a packet of the family of its addresses, with a UDP datagram."""
    ends = ip_address(str(source)).packed + ip_address(str(destination)).packed
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", port, port, length, 0) + payload
    if len(ends) == 8:
        header = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, _UDP, 0) + ends)
        header[10:12] = struct.pack("!H", checksum(header))
        return bytes(header) + udp
    right = struct.pack("!H", checksum(ends + struct.pack("!IxxxB", length, _UDP) + udp) or 0xFFFF)
    return struct.pack("!IHBB", 6 << 28, length, _UDP, 64) + ends + udp[:6] + right + payload


def vxlan_payload(packet: bytes, mac: str) -> bytes:
    """Return the payload of a VXLAN datagram of network 1, with a packet for the VTEP with this address."""
    ether_type = _ETHER_TYPES[packet[0] >> 4]
    return _VXLAN_HEADER + bytes.fromhex(mac.replace(":", "")) + SENDER_MAC + ether_type + packet


_IPV6_HEADER = 40
_FRAGMENT, _DESTINATION_OPTIONS = 44, 60


def with_options(packet: bytes) -> bytes:
    """Return an IPv6 packet with a header of destination options, which are padding, before its content."""
    content = bytes((packet[6], 0, 1, 4, 0, 0, 0, 0)) + packet[_IPV6_HEADER:]
    return _ipv6(packet, _DESTINATION_OPTIONS, content)


def fragments(packet: bytes, first: int) -> tuple[bytes, bytes]:
    """Return an IPv6 packet in two fragments. The first fragment has `first` bytes of the packet's content, a
    multiple of 8.
    """
    content = packet[_IPV6_HEADER:]

    def fragment(start: int, end: int | None, more: int) -> bytes:
        header = struct.pack("!BxHI", packet[6], start | more, 0x0DD5)
        return _ipv6(packet, _FRAGMENT, header + content[start:end])

    return fragment(0, first, 1), fragment(first, None, 0)


def _ipv6(packet: bytes, next_header: int, content: bytes) -> bytes:
    """Return an IPv6 packet with the addresses of another packet."""
    length = struct.pack("!HB", len(content), next_header)
    return packet[:4] + length + packet[7:_IPV6_HEADER] + content
