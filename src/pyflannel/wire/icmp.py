"""ICMP echo and timestamp requests, the messages that answer them, and announcements of addresses.

Source: RFC 792, RFC 1191; for IPv6 RFC 4443, RFC 4861. Announcements of IPv4 addresses: RFC 826, RFC 5227.
"""

import struct
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address

from msgspec import Struct

from pyflannel.model.network_config import Family, IpAddress
from pyflannel.wire.packet import HEADER_BYTES, PROTOCOL_ICMP, checksum

ECHO_REPLY, UNREACHABLE, ECHO_REQUEST, TIME_EXCEEDED = 0, 3, 8, 11
TIMESTAMP_REQUEST, TIMESTAMP_REPLY = 13, 14
UNREACHABLE_V6, TOO_BIG_V6, TIME_EXCEEDED_V6, ECHO_REQUEST_V6, ECHO_REPLY_V6 = 1, 2, 3, 128, 129

OVERHEADS: Mapping[Family, int] = {4: HEADER_BYTES + 8, 6: 40 + 8}
"""Number of bytes in front of the payload of an echo packet."""

_HEADER = struct.Struct("!BBHHH")
_FRAGMENTATION_NEEDED = 4
_CODES = {
    0: "network unreachable",
    1: "host unreachable",
    2: "protocol unreachable",
    3: "port unreachable",
    4: "packet too large",
    5: "source route failed",
    9: "network prohibited",
    10: "host prohibited",
    13: "prohibited by a filter",
}
"""The meanings of the codes of "destination unreachable". Sources: RFC 792, RFC 1812 section 5.2.7.1."""

_CODES_V6 = {
    0: "no route",
    1: "prohibited by a filter",
    2: "beyond the scope of the source address",
    3: "address unreachable",
    4: "port unreachable",
    5: "source address prohibited",
    6: "route rejected",
}
"""The meanings of the codes of "destination unreachable" in ICMPv6. Source: RFC 4443 section 3.1."""


class IcmpMessage(Struct, frozen=True, kw_only=True):
    """A received message.

    Attributes:
        body: payload of an echo reply; for an error, the start of the packet that caused the error.
        identifier: identifier of a reply.
        sequence: sequence number of a reply.
        mtu: next-hop MTU in an error about a packet that is too large; None if the router did not report this
            MTU.
    """

    sender: IpAddress
    kind: int
    code: int
    body: bytes
    identifier: int = 0
    sequence: int = 0
    mtu: int | None = None

    @property
    def is_echo_reply(self) -> bool:
        """True if the message answers an echo request."""
        return self.kind == (ECHO_REPLY if self.sender.version == 4 else ECHO_REPLY_V6)

    @property
    def text(self) -> str:
        """The error as a text."""
        is_ipv4 = self.sender.version == 4
        if self.kind == (TIME_EXCEEDED if is_ipv4 else TIME_EXCEEDED_V6):
            return "TTL exceeded: a routing loop, or a rule that lowers the TTL"
        if not is_ipv4 and self.kind == TOO_BIG_V6:
            return _CODES[_FRAGMENTATION_NEEDED]
        return (_CODES if is_ipv4 else _CODES_V6).get(self.code, f"unreachable, code {self.code}")


def format_echo(identifier: int, sequence: int, payload: bytes, family: Family = 4) -> bytes:
    """Return an echo request without its IP header. The kernel computes the checksum of ICMPv6."""
    if family == 6:
        return _HEADER.pack(ECHO_REQUEST_V6, 0, 0, identifier, sequence) + payload
    return _request(ECHO_REQUEST, identifier, sequence, payload)


_TIMES = struct.Struct("!III")
_DAY_MS = 86_400_000
_UNUSUAL = 1 << 31
"""This bit marks a time that is not in milliseconds since midnight UTC."""


def format_timestamp(identifier: int, sequence: int, utc_s: float) -> bytes:
    """Return a timestamp request without its IP header. `utc_s`: seconds since the epoch."""
    return _request(TIMESTAMP_REQUEST, identifier, sequence, _TIMES.pack(int(utc_s * 1000) % _DAY_MS, 0, 0))


def clock_offset(body: bytes, utc_s: float) -> float | None:
    """Return the seconds by which the clock of the sender of a timestamp reply is ahead of this host's clock,
    within half a day.

    None if the reply has no usable times. `utc_s`: time of the arrival, seconds since the epoch.
    """
    if len(body) < _TIMES.size:
        return None
    sent, received, answered = _TIMES.unpack_from(body)
    if (sent | received | answered) & _UNUSUAL:
        return None
    arrived = int(utc_s * 1000) % _DAY_MS
    return (_apart(received, sent) + _apart(answered, arrived)) / 2000


def _apart(later: int, earlier: int) -> int:
    """Return the difference between two times of the day in milliseconds, at most half a day."""
    return (later - earlier + _DAY_MS // 2) % _DAY_MS - _DAY_MS // 2


def _request(kind: int, identifier: int, sequence: int, payload: bytes) -> bytes:
    message = bytearray(_HEADER.pack(kind, 0, 0, identifier, sequence) + payload)
    message[2:4] = checksum(message).to_bytes(2, "big")
    return bytes(message)


def parse_icmp(packet: bytes) -> IcmpMessage | None:
    """Return the ICMP message in an IPv4 packet; None if the packet contains no ICMP message."""
    if len(packet) < HEADER_BYTES or packet[0] >> 4 != 4 or packet[9] != PROTOCOL_ICMP:
        return None
    at = (packet[0] & 0x0F) * 4
    if at < HEADER_BYTES or len(packet) < at + _HEADER.size:
        return None
    kind, code, _, identifier, last = _HEADER.unpack_from(packet, at)
    is_too_large = (kind, code) == (UNREACHABLE, _FRAGMENTATION_NEEDED)
    return IcmpMessage(
        sender=IPv4Address(packet[12:16]),
        kind=kind,
        code=code,
        body=packet[at + _HEADER.size :],
        identifier=identifier,
        sequence=last,
        mtu=last or None if is_too_large else None,
    )


def parse_icmpv6(message: bytes, sender: IPv6Address) -> IcmpMessage | None:
    """Return the ICMPv6 message, which the kernel delivers without its IP header; None if it is no valid
    message.
    """
    if len(message) < _HEADER.size:
        return None
    kind, code, _, identifier, last = _HEADER.unpack_from(message)
    return IcmpMessage(
        sender=sender,
        kind=kind,
        code=code,
        body=message[_HEADER.size :],
        identifier=identifier,
        sequence=last,
        mtu=(identifier << 16 | last) or None if kind == TOO_BIG_V6 else None,
    )


_ARP = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET, _IPV4, _ARP_REQUEST = 1, 0x0800, 1
_NEIGHBOUR_ADVERTISEMENT = 136
_IS_ROUTER, _OVERRIDES = 0x80000000, 0x20000000
_TARGET_MAC = b"\x02\x01"  # the option, and its length of eight bytes


def format_arp_announcement(address: IPv4Address, mac: bytes) -> bytes:
    """Return an ARP request for an own address: hosts that know the address replace its MAC address."""
    held = address.packed
    return _ARP.pack(_ETHERNET, _IPV4, len(mac), len(held), _ARP_REQUEST, mac, held, bytes(len(mac)), held)


def format_unsolicited_advertisement(address: IPv6Address, mac: bytes, *, is_router: bool) -> bytes:
    """Return a neighbour advertisement for an own IPv6 address, without IP header and checksum. `is_router`:
    the host forwards packets.
    """
    flags = _OVERRIDES | (_IS_ROUTER if is_router else 0)
    header = _HEADER.pack(_NEIGHBOUR_ADVERTISEMENT, 0, 0, flags >> 16, flags & 0xFFFF)
    return header + address.packed + _TARGET_MAC + mac
