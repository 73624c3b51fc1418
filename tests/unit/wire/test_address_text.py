"""Dotted text is read with the same result as by the library, but faster."""

from ipaddress import AddressValueError, IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.wire.json_values import parse_dotted

numbers = st.integers(0, 300).map(str) | st.sampled_from(
    ["", "00", "01", "+1", " 1", "1_0", "²", "1\n", "-0"]
)


@given(st.lists(numbers, min_size=3, max_size=5).map(".".join) | st.ip_addresses(v=4).map(str) | st.text())
def test_the_result_equals_that_of_the_library(text: str) -> None:
    try:
        expected = IPv4Address(text)
    except AddressValueError:
        with pytest.raises(AddressValueError):
            parse_dotted(text)
        return

    assert parse_dotted(text) == expected
