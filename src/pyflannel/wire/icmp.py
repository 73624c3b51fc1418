"""ICMP echo requests, and the messages that answer them (RFC 792, RFC 1191)."""

from dataclasses import dataclass
from ipaddress import IPv4Address
from struct import Struct

from pyflannel.wire.packet import HEADER_OCTETS, PROTOCOL_ICMP, checksum

ECHO_REPLY, UNREACHABLE, ECHO_REQUEST, TIME_EXCEEDED = 0, 3, 8, 11

OVERHEAD = HEADER_OCTETS + 8
"""Bytes of an echo packet beside its payload."""

_HEADER = Struct("!BBHHH")
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
"""Source: RFC 792, RFC 1812 section 5.2.7.1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IcmpMessage:
    """A received message.

    Attributes:
        body: the payload of an echo reply; in an error, the start of the packet that caused it.
        sequence: sequence number of an echo reply.
        mtu: next-hop MTU in an error about a packet that is too large; None if the router did not report it.
    """

    sender: IPv4Address
    kind: int
    code: int
    body: bytes
    sequence: int = 0
    mtu: int | None = None

    @property
    def text(self) -> str:
        """The error in words."""
        if self.kind == TIME_EXCEEDED:
            return "TTL exceeded: a routing loop"
        return _CODES.get(self.code, f"unreachable, code {self.code}")


def format_echo(identifier: int, sequence: int, payload: bytes) -> bytes:
    """Return an echo request without its IP header."""
    message = bytearray(_HEADER.pack(ECHO_REQUEST, 0, 0, identifier, sequence) + payload)
    message[2:4] = checksum(message).to_bytes(2, "big")
    return bytes(message)


def parse_icmp(packet: bytes) -> IcmpMessage | None:
    """Return the ICMP message in an IPv4 packet; None if there is none."""
    if len(packet) < HEADER_OCTETS or packet[0] >> 4 != 4 or packet[9] != PROTOCOL_ICMP:
        return None
    at = (packet[0] & 0x0F) * 4
    if at < HEADER_OCTETS or len(packet) < at + _HEADER.size:
        return None
    kind, code, _, _, last = _HEADER.unpack_from(packet, at)
    is_too_large = (kind, code) == (UNREACHABLE, _FRAGMENTATION_NEEDED)
    return IcmpMessage(
        sender=IPv4Address(packet[12:16]),
        kind=kind,
        code=code,
        body=packet[at + _HEADER.size :],
        sequence=last,
        mtu=last or None if is_too_large else None,
    )
