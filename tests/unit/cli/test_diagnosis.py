"""flannelctl trace and whois: their arguments."""

from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.cli.diagnosis import address_of
from pyflannel.errors import UsageError


def test_an_argument_is_an_address_of_either_family() -> None:
    assert address_of("10.100.93.7") == IPv4Address("10.100.93.7")
    assert address_of("fd00:5::7") == IPv6Address("fd00:5::7")


@pytest.mark.parametrize("text", ["docker2", "", "10.100.93.0/24", "fd00::/64"])
def test_another_argument_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        address_of(text)

    assert str(caught.value) == f"{text!r} is not an IP address"
    assert (
        caught.value.hint
        == "'flannelctl leases' shows the addresses of the hosts; 'flannelctl ping' accepts names."
    )
