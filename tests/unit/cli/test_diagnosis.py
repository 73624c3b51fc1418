"""flannelctl trace and whois: their arguments."""

from ipaddress import IPv4Address

import pytest

from pyflannel.cli.diagnosis import address_of
from pyflannel.errors import UsageError


def test_an_argument_is_an_ipv4_address() -> None:
    assert address_of("10.100.93.7") == IPv4Address("10.100.93.7")


@pytest.mark.parametrize("text", ["docker2", "", "10.100.93.0/24", "fd00::1"])
def test_another_argument_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        address_of(text)

    assert str(caught.value) == f"{text!r} is not an IPv4 address"
    assert (
        caught.value.hint
        == "'flannelctl leases' shows the addresses of the hosts; 'flannelctl ping' accepts names."
    )
