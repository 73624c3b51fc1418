"""The key of a lease contains its subnets: as in flannel 0.28.9, but with one key per subnet."""

import json
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from pyflannel.errors import WireError
from pyflannel.wire import lease_record
from pyflannel.wire.lease_record import format_subnet_key, parse_subnet_key

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/subnet-keys.json").read_text())["cases"]

# Keys that the original reads and pyflannel does not.
REFUSED = {
    # The original matches only the end of a key, ignores the text before, and reads another subnet.
    "011": "10.5.52.0.1-24",
    "041": "10.5.52.0-24&10.1.1.0-24",
    "052": "\n10.5.52.0-24",
    "056": "1.10.5.52.0-24",
    # Addresses with host bits would be a second key of a subnet.
    "002": "10.5.52.0-8",
    "019": "10.5.52.7-24",
    "034": "10.5.52.0-24&fd00::1-127",
    "035": "10.5.52.0-24&fd00::-0",
    "037": "10.5.52.0-24&::1-64",
    "043": "10.5.52.0-24&fd00:5:0:34::1234-64",
    "065": "10.5.52.0-24&1:2:3:4:5:6:7:8-64",
    # A leading zero in the length would also be a second key of a subnet.
    "022": "10.5.52.0-024",
    # IPv4-mapped IPv6, which the original writes as IPv4 and cannot read back.
    "044": "10.5.52.0-24&::ffff:a00:1-120",
}


def number(case: dict[str, str]) -> str:
    return case["id"].rpartition("-")[2]


@pytest.mark.parametrize("case", GOLDEN, ids=number)
def test_reads_the_same_keys_as_the_original(case: dict[str, str]) -> None:
    if case["v4"] is None or number(case) in REFUSED:
        with pytest.raises(WireError) as caught:
            parse_subnet_key(case["input"])
        assert repr(case["input"]) in str(caught.value)
        return

    subnet, ipv6_subnet = parse_subnet_key(case["input"])

    assert str(subnet) == case["v4"]
    assert (str(ipv6_subnet) if ipv6_subnet else None) == case["v6"]
    assert format_subnet_key(subnet, ipv6_subnet) == case["print"]


@pytest.mark.parametrize("case", [case for case in GOLDEN if number(case) in REFUSED], ids=number)
def test_each_listed_difference_from_the_original_exists(case: dict[str, str]) -> None:
    assert case["v4"] is not None
    assert case["input"] == REFUSED[number(case)]


def test_prints_ipv6_with_its_colons() -> None:
    key = format_subnet_key(IPv4Network("10.5.52.0/24"), IPv6Network("fd00:5:0:34::/64"))

    assert key == "10.5.52.0-24&fd00:5:0:34::-64"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "10.5.52.0-24/",
        "10.5.52.0/24",
        "10.5.52.0-24&",
        "10.5.52.0-²4",
        "fd00::-64",
        "8.0.0.0-08",
        "10.5.52.0-24&fd00::-064",
        "10.5.52.0-24&fd00:0::-64",
        "10.5.52.0-24&fd00::-128",
        "10.5.52.0-24&::ffff:a00:0-120",
    ],
)
def test_an_invalid_key_is_refused(text: str) -> None:
    with pytest.raises(WireError):
        parse_subnet_key(text)


@pytest.mark.parametrize("text", ["1" * 1_500_000, "." * 1_500_000 + "-24", "10.1.1.0-24&" + ":" * 1_500_000])
def test_a_long_key_is_refused_before_it_is_parsed(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store etcd accepts keys of 1.5 MB, and no key of a lease is longer than 63 characters."""

    class Unread:
        def fullmatch(self, text: str) -> None:
            raise AssertionError("the key was read")

    monkeypatch.setattr(lease_record, "_KEY", Unread())

    with pytest.raises(WireError, match="not the key of a subnet"):
        parse_subnet_key(text)


def test_the_longest_key_is_read() -> None:
    subnet = IPv4Network("255.255.255.254/31")
    ipv6_subnet = IPv6Network("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127")

    assert parse_subnet_key(format_subnet_key(subnet, ipv6_subnet)) == (subnet, ipv6_subnet)
