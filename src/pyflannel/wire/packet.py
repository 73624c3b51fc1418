"""IPv4 packets in a buffer: the header's layout, the TTL, and the ICMP errors of a router.

Addresses are integers and buffers are changed in place, for speed, because this code runs for every packet.
"""

from struct import Struct

HEADER_BYTES = 20
HEADER = Struct("!BBHHHBBHII")
"""The whole header: version and header length, TOS, total length, id, flags and fragment offset, TTL,
protocol, checksum, source, destination (RFC 791 section 3.1)."""

ROUTED = Struct("!BxH4xBBHII")
"""Seven of the fields of HEADER: version and header length, total length, TTL, protocol, checksum, source,
destination."""

TTL_AND_CHECKSUM = Struct("!BBH")
TTL_AT = 8
"""Offsets of TTL, protocol and checksum in the header."""

PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17

ICMP_UNREACHABLE = 3
ICMP_TIME_EXCEEDED = 11
_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})
"""The types of ICMP errors: unreachable, source quench, redirect, time exceeded, parameter problem (RFC
792)."""

_ICMP_HEADER = Struct("!BBHI")
_ICMP_HEADER_BYTES = 8
_ERROR_TTL = 8
"""TTL of the errors that flanneld sends (flannel 0.6.2 and later)."""

_QUOTED_PAYLOAD_BYTES = 8
_LONGEST_HEADER_BYTES = 60
_FRAGMENT_OFFSET = 0x1FFF


def checksum(data: bytes | bytearray | memoryview) -> int:
    """Return the Internet checksum (RFC 1071) of bytes, of which at least one is not zero.

    Modulo 65535, 2**16 equals 1. Therefore the buffer as one number has the same remainder as the sum of its
    words. If the length is odd, the last byte is the high byte of its word.
    """
    number = int.from_bytes(data, "big")
    if len(data) % 2:
        number <<= 8
    return -number % 65535


def destination_port(packet: bytearray, at: int, size: int) -> int | None:
    """Return the destination port of the UDP or TCP packet of `size` bytes at `at`. The header of the packet
    must be valid.

    The result is None for a packet without a port: a later fragment, or a packet that ends before the port.
    """
    port_at = (packet[at] & 0x0F) * 4 + 2
    if size < port_at + 2 or int.from_bytes(packet[at + 6 : at + 8], "big") & _FRAGMENT_OFFSET:
        return None
    return int.from_bytes(packet[at + port_at : at + port_at + 2], "big")


def decrement_ttl(packet: bytearray, at: int = 0) -> None:
    """Decrement the TTL of the packet at `at` and update the checksum of its header. The TTL must not be
    0.
    """
    ttl, protocol, old = TTL_AND_CHECKSUM.unpack_from(packet, at + TTL_AT)
    TTL_AND_CHECKSUM.pack_into(packet, at + TTL_AT, ttl - 1, protocol, checksum_one_hop_on(old))


def checksum_one_hop_on(old: int) -> int:
    """Return a header's checksum after its TTL was decremented.

    The checksum grows by 0x0100, in one's complement arithmetic. A correct checksum is never 0xffff, nor is a
    remainder: 0xfeff becomes 0x0000 (RFC 1624 section 3).
    """
    return (old + 0x0100) % 65535


def icmp_unreachable(packet: bytearray, size: int, source: int) -> bytes | None:
    """Return the ICMP net unreachable from `source` for this packet, or None if no error may be sent.

    No error is sent for an ICMP packet, and no error for a packet with a header of maximum length (flannel
    0.6.2 and later).
    """
    fields = HEADER.unpack_from(packet)
    if fields[6] == PROTOCOL_ICMP or (fields[0] & 0x0F) * 4 >= _LONGEST_HEADER_BYTES:
        return None
    return _icmp_error(packet, size, ICMP_UNREACHABLE, source)


def icmp_time_exceeded(packet: bytearray, size: int, source: int) -> bytes | None:
    """Return the ICMP time exceeded from `source` for this packet, or None if no error may be sent.

    This error is also sent for an echo request, so that a traceroute with ICMP shows the ends of the tunnel.
    """
    header_bytes = (packet[0] & 0x0F) * 4
    if packet[9] == PROTOCOL_ICMP and (size <= header_bytes or packet[header_bytes] in _ICMP_ERRORS):
        return None
    return _icmp_error(packet, size, ICMP_TIME_EXCEEDED, source)


def _icmp_error(packet: bytearray, size: int, kind: int, source: int) -> bytes | None:
    """Return an ICMP error of code 0 that quotes the header and at most 8 bytes after the header.

    No error is sent for a later fragment, or if source or destination is not a single host (RFC 1122 section
    3.2.2).
    """
    version_and_length, _, _, _, fragment, _, _, _, offender, destination = HEADER.unpack_from(packet)
    if fragment & _FRAGMENT_OFFSET or not _is_single_host(offender) or not _is_single_host(destination):
        return None
    quote = packet[: min((version_and_length & 0x0F) * 4 + _QUOTED_PAYLOAD_BYTES, size)]
    total = HEADER_BYTES + _ICMP_HEADER_BYTES + len(quote)
    header = bytearray(HEADER.pack(0x45, 0, total, 0, 0, _ERROR_TTL, PROTOCOL_ICMP, 0, source, offender))
    header[10:12] = checksum(header).to_bytes(2, "big")
    message = bytearray(_ICMP_HEADER.pack(kind, 0, 0, 0)) + quote
    message[2:4] = checksum(message).to_bytes(2, "big")
    return bytes(header + message)


def _is_single_host(address: int) -> bool:
    """Return whether the address can belong to one host: it is not 0.0.0.0, multicast, reserved or
    broadcast.
    """
    return 0 < address < 0xE0000000
