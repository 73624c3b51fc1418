"""ICMP echo requests and the messages that answer them."""

from ipaddress import IPv4Address, IPv6Address
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.wire.icmp import (
    ECHO_REPLY,
    ECHO_REPLY_V6,
    UNREACHABLE,
    IcmpMessage,
    clock_offset,
    format_arp_announcement,
    format_echo,
    format_timestamp,
    format_unsolicited_advertisement,
    parse_icmp,
    parse_icmpv6,
)
from pyflannel.wire.packet import checksum


def packet(message: bytes, protocol: int = 1) -> bytes:
    header = pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(message), 0, 0, 64, protocol, 0, b"\x0a\0\0\x02", bytes(4)
    )
    return header + message


def test_an_echo_request_has_the_layout_of_rfc_792() -> None:
    request = format_echo(0x1234, 7, b"payload")

    assert request[:2] == b"\x08\x00"
    assert request[4:] == b"\x12\x34\x00\x07payload"
    assert checksum(request) == 0


def test_a_reply_and_an_error_are_parsed() -> None:
    reply = parse_icmp(packet(b"\0\0\0\0\x12\x34\0\x07payload"))
    too_large = parse_icmp(packet(b"\x03\x04\0\0\0\0\x05\x78quoted"))

    sender = IPv4Address("10.0.0.2")
    assert reply == IcmpMessage(
        sender=sender, kind=ECHO_REPLY, code=0, body=b"payload", identifier=0x1234, sequence=7
    )
    assert too_large is not None
    assert (too_large.kind, too_large.mtu, too_large.body) == (UNREACHABLE, 1400, b"quoted")
    assert too_large.text == "packet too large"


@pytest.mark.parametrize(
    "data",
    [b"", bytes(20), packet(b"\0\0\0"), packet(bytes(8), protocol=17), b"\x4f" + packet(bytes(8))[1:]],
)
def test_another_packet_is_no_message(data: bytes) -> None:
    assert parse_icmp(data) is None


def test_an_echo_request_of_ipv6_has_the_layout_of_rfc_4443() -> None:
    """The kernel computes the checksum of the request, which covers addresses that only the kernel knows."""
    assert format_echo(0x1234, 7, b"payload", family=6) == b"\x80\0\0\0\x12\x34\0\x07payload"


def test_a_reply_and_errors_of_ipv6_are_parsed() -> None:
    sender = IPv6Address("fd00::2")

    reply = parse_icmpv6(b"\x81\0\0\0\x12\x34\0\x07payload", sender)
    too_large = parse_icmpv6(b"\x02\0\0\0\0\0\x05\x78quoted", sender)
    unreachable = parse_icmpv6(b"\x01\x03\0\0\0\0\x05\x78quoted", sender)
    exceeded = parse_icmpv6(b"\x03\0\0\0\0\0\0\0quoted", sender)

    assert reply == IcmpMessage(
        sender=sender, kind=ECHO_REPLY_V6, code=0, body=b"payload", identifier=0x1234, sequence=7
    )
    assert [one is not None and one.is_echo_reply for one in (reply, too_large)] == [True, False]
    assert too_large is not None
    assert (too_large.mtu, too_large.body, too_large.text) == (1400, b"quoted", "packet too large")
    assert unreachable is not None
    assert (unreachable.mtu, unreachable.text) == (None, "address unreachable")
    assert exceeded is not None
    assert exceeded.text == "TTL exceeded: a routing loop, or a rule that lowers the TTL"
    assert parse_icmpv6(bytes(7), sender) is None


@given(st.binary(max_size=64))
def test_any_bytes_are_a_message_or_none(data: bytes) -> None:
    sender = IPv6Address("fd00::2")

    found = (parse_icmp(data), parse_icmp(packet(data)), parse_icmpv6(data, sender))

    assert all(one is None or (one.text and one.is_echo_reply in (True, False)) for one in found)
    assert (found[2] is None) == (len(data) < 8)


MAC = bytes.fromhex("0e0000000001")


def test_an_arp_announcement_asks_for_an_own_address() -> None:
    """Sender and target are the same address (RFC 5227 section 3)."""
    assert format_arp_announcement(IPv4Address("10.0.0.2"), MAC) == bytes.fromhex(
        "0001 0800 06 04 0001 0e0000000001 0a000002 000000000000 0a000002"
    )


def test_an_unsolicited_advertisement_replaces_the_mac_address() -> None:
    """The message has the flags override and router, and an option with the MAC address (RFC 4861, 4.4)."""
    address = IPv6Address("fd00::2")

    sent = format_unsolicited_advertisement(address, MAC, is_router=True)

    assert sent == bytes.fromhex("88000000 a0000000") + address.packed + bytes.fromhex("0201") + MAC
    assert format_unsolicited_advertisement(address, MAC, is_router=False)[4] == 0x20


MIDNIGHT = 1_900_022_400.0
"""Seconds since the epoch at the start of a day."""


def test_a_timestamp_request_has_the_layout_of_rfc_792() -> None:
    request = format_timestamp(0x1234, 7, MIDNIGHT + 1.5)

    assert request[:2] == b"\x0d\x00"
    assert request[4:] == b"\x12\x34\x00\x07" + pack("!III", 1500, 0, 0)
    assert checksum(request) == 0


@pytest.mark.parametrize(
    ("sent", "received", "answered", "arrived_s", "offset"),
    [
        (1000, 1005, 1005, 1.01, 0.0),
        (1000, 91_005, 91_005, 1.01, 90.0),
        (1000, 86_390_005, 86_390_005, 1.01, -11.0),  # before midnight on the peer
        (86_399_000, 1000, 1000, 86_399.0, 2.0),
        (1000, 1 << 31, 1005, 1.01, None),
    ],
)
def test_the_offset_of_a_clock_follows_from_the_times_of_both_hosts(
    sent: int, received: int, answered: int, arrived_s: float, offset: float | None
) -> None:
    found = clock_offset(pack("!III", sent, received, answered), MIDNIGHT + arrived_s)

    assert found == (None if offset is None else pytest.approx(offset, abs=0.01))


def test_a_short_timestamp_reply_has_no_offset() -> None:
    assert clock_offset(bytes(11), MIDNIGHT) is None
