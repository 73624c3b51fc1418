"""IPv4 packets in a buffer: the header's layout, the TTL, and the ICMP errors of a router.

Addresses are integers here and buffers are rewritten in place: this runs once a packet.
"""

from struct import Struct

HEADER_OCTETS = 20
HEADER = Struct("!BBHHHBBHII")
"""Version and header length, TOS, total length, id, flags and fragment offset, TTL, protocol, checksum,
source, destination (RFC 791 section 3.1)."""

ROUTED = Struct("!BxH4xBBHII")
"""Of these fields: version and header length, total length, TTL, protocol, checksum, source, destination."""

TTL_AND_CHECKSUM = Struct("!BBH")
TTL_AT = 8
"""Where TTL, protocol and checksum stand."""

PROTOCOL_ICMP = 1
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17

ICMP_UNREACHABLE = 3
ICMP_TIME_EXCEEDED = 11
_ICMP_ERRORS = frozenset({3, 4, 5, 11, 12})
"""Unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792)."""

_ICMP_HEADER = Struct("!BBHI")
_ICMP_HEADER_OCTETS = 8
_ERROR_TTL = 8
"""TTL of the errors that we send (flannel 0.6.2 and later)."""

_QUOTED_PAYLOAD_OCTETS = 8
_LONGEST_HEADER_OCTETS = 60
_FRAGMENT_OFFSET = 0x1FFF


def checksum(octets: bytes | bytearray | memoryview) -> int:
    """Return the Internet checksum (RFC 1071) of octets that are not all zero.

    Modulo 65535, 2**16 is 1, so that the whole buffer as one number leaves the same remainder as the sum of
    its words. An odd last octet is the high one of its word.
    """
    number = int.from_bytes(octets, "big")
    if len(octets) % 2:
        number <<= 8
    return -number % 65535


def destination_port(packet: bytearray, at: int, size: int) -> int | None:
    """Return the destination port of the UDP or TCP packet of `size` octets that starts there, header valid.

    None for one without a port: a later fragment, or a packet that ends before it.
    """
    port_at = (packet[at] & 0x0F) * 4 + 2
    if size < port_at + 2 or int.from_bytes(packet[at + 6 : at + 8], "big") & _FRAGMENT_OFFSET:
        return None
    return int.from_bytes(packet[at + port_at : at + port_at + 2], "big")


def decrement_ttl(packet: bytearray, at: int = 0) -> None:
    """Take one off the TTL of the packet that starts there, which must not be 0, and patch its checksum."""
    ttl, protocol, old = TTL_AND_CHECKSUM.unpack_from(packet, at + TTL_AT)
    TTL_AND_CHECKSUM.pack_into(packet, at + TTL_AT, ttl - 1, protocol, checksum_one_hop_on(old))


def checksum_one_hop_on(old: int) -> int:
    """Return a header's checksum after its TTL lost one.

    It grows by 0x0100 with the carry around the end. A true checksum is never 0xffff, and neither is a
    remainder: 0xfeff becomes 0x0000 (RFC 1624 section 3).
    """
    return (old + 0x0100) % 65535


def icmp_unreachable(packet: bytearray, size: int, source: int) -> bytes | None:
    """Return the ICMP net unreachable from `source` that answers this packet, or None where none may.

    Any ICMP packet stays unanswered, as does one whose header is the longest possible (flannel 0.6.2 and
    later).
    """
    fields = HEADER.unpack_from(packet)
    if fields[6] == PROTOCOL_ICMP or (fields[0] & 0x0F) * 4 >= _LONGEST_HEADER_OCTETS:
        return None
    return _icmp_error(packet, size, ICMP_UNREACHABLE, source)


def icmp_time_exceeded(packet: bytearray, size: int, source: int) -> bytes | None:
    """Return the ICMP time exceeded from `source` that answers this packet, or None where none may.

    An echo request is answered, so that traceroute by ICMP sees the tunnel's ends.
    """
    header_octets = (packet[0] & 0x0F) * 4
    if packet[9] == PROTOCOL_ICMP and (size <= header_octets or packet[header_octets] in _ICMP_ERRORS):
        return None
    return _icmp_error(packet, size, ICMP_TIME_EXCEEDED, source)


def _icmp_error(packet: bytearray, size: int, kind: int, source: int) -> bytes | None:
    """Return an ICMP error of code 0 that quotes the header and 8 octets after it, as far as they are there.

    Never for a fragment but the first, nor from or to what is not a single host (RFC 1122 section 3.2.2).
    """
    version_and_length, _, _, _, fragment, _, _, _, offender, destination = HEADER.unpack_from(packet)
    if fragment & _FRAGMENT_OFFSET or not _is_single_host(offender) or not _is_single_host(destination):
        return None
    quote = packet[: min((version_and_length & 0x0F) * 4 + _QUOTED_PAYLOAD_OCTETS, size)]
    total = HEADER_OCTETS + _ICMP_HEADER_OCTETS + len(quote)
    header = bytearray(HEADER.pack(0x45, 0, total, 0, 0, _ERROR_TTL, PROTOCOL_ICMP, 0, source, offender))
    header[10:12] = checksum(header).to_bytes(2, "big")
    message = bytearray(_ICMP_HEADER.pack(kind, 0, 0, 0)) + quote
    message[2:4] = checksum(message).to_bytes(2, "big")
    return bytes(header + message)


def _is_single_host(address: int) -> bool:
    """Return whether the address may be one host's: not 0.0.0.0, multicast, reserved or broadcast."""
    return 0 < address < 0xE0000000
