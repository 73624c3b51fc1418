"""Text of addresses is read and written with the same result as by the library, but faster."""

from ipaddress import AddressValueError, IPv4Address, IPv6Address, IPv6Network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pyflannel.wire.json_values import format_ipv6, parse_dotted, parse_ipv6

numbers = st.integers(0, 300).map(str) | st.sampled_from(
    ["", "00", "01", "+1", " 1", "1_0", "²", "1\n", "-0"]
)
dotted = st.lists(numbers, min_size=3, max_size=5).map(".".join)
groups = st.sampled_from(
    ["", "0", "00", "0000", "00000", "1", "A", "fFff", "g", "1 ", "-1", "²", "\0", "\ud800"]
)
grouped = st.tuples(st.lists(groups, min_size=1, max_size=9).map(":".join), st.just("") | dotted).map("".join)
sparse = st.lists(st.sampled_from([0, 0, 1, 0xFFFF]), min_size=8, max_size=8).map(
    lambda parts: IPv6Address(b"".join(part.to_bytes(2) for part in parts))
)
addresses = sparse | st.ip_addresses(v=6) | st.ip_addresses(v=6, network=IPv6Network("::/90"))


@given(dotted | st.ip_addresses(v=4).map(str) | st.text())
def test_ipv4_text_is_read_as_by_the_library(text: str) -> None:
    try:
        expected = IPv4Address(text)
    except AddressValueError:
        with pytest.raises(AddressValueError):
            parse_dotted(text)
        return

    assert parse_dotted(text) == expected


@given(grouped | addresses.map(str) | addresses.map(lambda one: one.exploded) | st.text())
@example("::ffff:192.0.2.1")
def test_ipv6_text_is_read_as_by_the_library(text: str) -> None:
    try:
        expected = ipv6_of_the_library(text)
    except ValueError:
        with pytest.raises(ValueError, match=r".+"):
            parse_ipv6(text)
        return

    assert parse_ipv6(text) == expected


def ipv6_of_the_library(text: str) -> IPv6Address:
    if "%" in text:
        raise ValueError
    return IPv6Address(text if ":" in text else f"::ffff:{IPv4Address(text)}")


@given(addresses)
@example(IPv6Address("::ffff:192.0.2.1"))
@example(IPv6Address("::192.0.2.1"))
def test_ipv6_addresses_are_written_as_by_the_library(address: IPv6Address) -> None:
    assert format_ipv6(address) == str(address)
