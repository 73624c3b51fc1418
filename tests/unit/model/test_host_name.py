"""Host names, as leases contain them for people."""

from ipaddress import IPv4Address

import pytest

from pyflannel.model.lease import host_text, is_host_name


@pytest.mark.parametrize(
    "text",
    ["docker1", "DOCKER1", "a", "web-7.example.com", "3com", "12ab", "a" * 63, ".".join(["a" * 62] * 4)],
)
def test_names_of_rfc_1123_are_host_names(text: str) -> None:
    assert is_host_name(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "my_host",
        "two words",
        "(none)",
        "docker1\n",
        "\x1b[2J",
        "d\u00f6cker",
        "\u0661",
        "10.0.0.1",
        "42",
        "a.7",
        "a" * 64,
        ".".join(["a" * 62] * 4) + ".ab",
        "a." * 100_000,
    ],
)
def test_addresses_and_other_texts_are_no_host_names(text: str) -> None:
    assert not is_host_name(text)


def test_a_host_is_shown_by_its_name_and_address() -> None:
    address = IPv4Address("192.168.50.101")

    assert host_text(address, "docker2") == "docker2 (192.168.50.101)"
    assert host_text(address, None) == "192.168.50.101"
