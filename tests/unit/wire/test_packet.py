"""Checksums and ICMP errors of IPv4, compared with their definitions."""

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.wire.packet import (
    HEADER,
    checksum,
    decrement_ttl,
    icmp_time_exceeded,
    icmp_unreachable,
)

TUNNEL = 0x0A640F00
HOST = 0x0A640F05
PEER = 0x0A645D09


def sum_of_words(data: bytes) -> int:
    """The checksum of RFC 1071 section 1."""
    data += b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(*, ttl=64, protocol=17, source=HOST, destination=PEER, fragment=0, payload=b"", identity=0):
    """Return a packet with a correct checksum."""
    data = bytearray(
        HEADER.pack(0x45, 0, 20 + len(payload), identity, fragment, ttl, protocol, 0, source, destination)
    )
    data[10:12] = sum_of_words(bytes(data)).to_bytes(2, "big")
    return data + payload


@given(st.binary(min_size=1).filter(any))
def test_the_checksum_is_that_of_the_definition(data):
    """The remainder modulo 65535 is the one's complement sum, for every length."""
    assert checksum(data) == sum_of_words(data)


@given(
    ttl=st.integers(1, 255),
    protocol=st.integers(0, 255),
    source=st.integers(0, 2**32 - 1),
    identity=st.integers(0, 65535),
)
def test_a_patched_checksum_equals_a_computed_checksum(ttl, protocol, source, identity):
    """After a hop, the header equals a header with the lower TTL."""
    before = packet(ttl=ttl, protocol=protocol, source=source, identity=identity)

    decrement_ttl(before)

    assert before == packet(ttl=ttl - 1, protocol=protocol, source=source, identity=identity)


def test_a_patched_checksum_is_correct_for_every_value():
    """The test uses all 65,535 checksums of a header, also 0xfeff, which becomes 0x0000."""
    seen = set()
    for identity in range(65536):
        before = packet(identity=identity)
        seen.add(int.from_bytes(before[10:12], "big"))

        decrement_ttl(before)

        assert sum_of_words(bytes(before)) == 0, f"identity {identity}"
    assert seen == set(range(65535))


@given(
    payload=st.binary(max_size=64),
    ttl=st.integers(0, 255),
    build=st.sampled_from([icmp_unreachable, icmp_time_exceeded]),
)
def test_an_icmp_error_quotes_the_available_bytes(payload, ttl, build):
    """Both checksums are correct. The quote is the header and 8 bytes, or fewer if the packet is shorter."""
    offender = packet(ttl=ttl, payload=payload)
    buffer = offender + b"\xee" * 64  # rest of an earlier packet

    error = build(buffer, len(offender), TUNNEL)

    header, icmp = error[:20], error[20:]
    assert sum_of_words(header) == 0
    assert sum_of_words(icmp) == 0
    assert HEADER.unpack(header)[2:4] == (len(error), 0)
    assert HEADER.unpack(header)[5:7] == (8, 1)
    assert HEADER.unpack(header)[8:] == (TUNNEL, HOST)
    assert icmp[1] == 0
    assert icmp[8:] == bytes(offender[:28])


@given(
    source=st.sampled_from([0, 0xFFFFFFFF, 0xE0000001, 0xF0000001]),
    build=st.sampled_from([icmp_unreachable, icmp_time_exceeded]),
)
def test_no_icmp_error_for_addresses_of_several_hosts(source, build):
    """A packet from or to a multicast or broadcast address causes no error."""
    from_group, to_group = packet(source=source), packet(destination=source)

    assert build(from_group, len(from_group), TUNNEL) is None
    assert build(to_group, len(to_group), TUNNEL) is None


@given(
    offset=st.integers(1, 0x1FFF),
    flags=st.integers(0, 7),
    build=st.sampled_from([icmp_unreachable, icmp_time_exceeded]),
)
def test_no_icmp_error_for_a_later_fragment(offset, flags, build):
    """Only the first fragment contains the header that the sender's stack needs."""
    fragment = packet(fragment=flags << 13 | offset)

    assert build(fragment, len(fragment), TUNNEL) is None


@given(kind=st.integers(0, 255))
def test_an_icmp_error_is_not_answered_by_time_exceeded(kind):
    """Echo requests are answered for traceroute. Errors about errors could loop."""
    offender = packet(protocol=1, payload=bytes([kind, 0, 0, 0, 0, 0, 0, 0]))

    assert icmp_unreachable(offender, len(offender), TUNNEL) is None
    assert (icmp_time_exceeded(offender, len(offender), TUNNEL) is None) == (kind in {3, 4, 5, 11, 12})
