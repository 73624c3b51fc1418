"""Leases are read and written as by flannel 0.20.2, with one key of pyflannel. Only pyflannel writes
claims.
"""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from pathlib import Path

import pytest
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.model.lease import MOST_PREVIOUS, BackendPart, Claim, LeaseAttributes, Vtep
from pyflannel.wire.lease_json import (
    format_claim,
    format_lease_attributes,
    parse_claim,
    parse_lease_attributes,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/lease-attrs-roundtrip.json").read_text())["cases"]

PLAIN = LeaseAttributes(public_ip=IPv4Address("192.168.50.102"))
OWNED = LeaseAttributes(
    public_ip=IPv4Address("192.168.50.102"),
    owner="f00d",
    host_name="docker2",
    port=8285,
    reads=("partial-checksum",),
)
CHANGING = LeaseAttributes(
    public_ip=IPv4Address("192.168.50.102"),
    backend_type="vxlan",
    vtep=Vtep(mac="0e:00:00:00:00:01", vni=1),
    owner="f00d",
    also=(BackendPart(port=8285), BackendPart(backend_type="wireguard", backend_data='{"Port":51820}')),
)
CLAIM = Claim(subnet=IPv4Network("10.5.52.0/24"), owner="f00d", public_ip=IPv4Address("1.2.3.4"), revision=7)


def number(case: dict[str, str]) -> str:
    return case["id"].rpartition("-")[2]


@pytest.mark.parametrize("case", [case for case in GOLDEN if "print" in case], ids=number)
def test_a_lease_of_the_original_is_written_back_unchanged(case: dict[str, str]) -> None:
    written = format_lease_attributes(parse_lease_attributes(case["input"].encode()))

    assert written.decode() == case["print"]


@pytest.mark.parametrize("case", [case for case in GOLDEN if "print" not in case], ids=number)
def test_values_that_stop_the_original_are_refused(case: dict[str, str]) -> None:
    with pytest.raises(WireError, match="not a lease") as caught:
        parse_lease_attributes(case["input"].encode())

    assert caught.value.hint


@pytest.mark.parametrize(
    ("attributes", "value"),
    [
        (PLAIN, b'{"PublicIP":"192.168.50.102","PublicIPv6":null}'),
        (
            CHANGING,
            b'{"PublicIP":"192.168.50.102","PublicIPv6":null,"BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"0e:00:00:00:00:01"},"Pyflannel":{"Owner":"f00d",'
            b'"Also":[{"Port":8285},{"BackendType":"wireguard","BackendData":{"Port":51820}}]}}',
        ),
        (
            OWNED,
            b'{"PublicIP":"192.168.50.102","PublicIPv6":null,'
            b'"Pyflannel":{"Owner":"f00d","Host":"docker2","Port":8285,"Reads":["partial-checksum"]}}',
        ),
        (
            LeaseAttributes(public_ip=IPv4Address("1.2.3.4"), owner="f00d"),
            b'{"PublicIP":"1.2.3.4","PublicIPv6":null,"Pyflannel":{"Owner":"f00d"}}',
        ),
        (
            LeaseAttributes(
                public_ip=IPv4Address("1.2.3.4"),
                public_ipv6=IPv6Address("fd00::1"),
                backend_type="vxlan",
                backend_data='{"VNI":1}',
                backend_v6_data='{"VNI":2}',
            ),
            b'{"PublicIP":"1.2.3.4","PublicIPv6":"fd00::1","BackendType":"vxlan",'
            b'"BackendData":{"VNI":1},"BackendV6Data":{"VNI":2}}',
        ),
        (
            LeaseAttributes(
                public_ip=IPv4Address("1.2.3.4"),
                backend_type="vxlan",
                vtep=Vtep(mac="1a:71:ad:7e:3b:3f", vni=1),
            ),
            b'{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan",'
            b'"BackendData":{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:3f"}}',
        ),
        (
            LeaseAttributes(
                public_ip=IPv4Address("1.2.3.4"),
                backend_type="vxlan",
                backend_data='{"VtepMAC":"1A:71:AD:7E:3B:3F","Later":1}',
                vtep=Vtep(mac="1a:71:ad:7e:3b:3f"),
            ),
            b'{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan",'
            b'"BackendData":{"VtepMAC":"1A:71:AD:7E:3B:3F","Later":1}}',
        ),
    ],
)
def test_every_key_has_a_fixed_position_and_is_written_only_with_a_value(
    attributes: LeaseAttributes, value: bytes
) -> None:
    assert format_lease_attributes(attributes) == value
    assert parse_lease_attributes(value) == attributes


@pytest.mark.parametrize(
    "ours",
    [
        "3",
        "null",
        "[]",
        "{}",
        '{"Owner":""}',
        '{"Owner":5}',
        '{"Owner":"f00d","Port":0}',
        '{"Owner":"f00d","Port":65536}',
        '{"Owner":"f00d","Reads":"all"}',
        '{"Owner":"f00d","Port":"8285"}',
    ],
)
def test_an_invalid_object_of_pyflannel_hides_no_peer(ours: str) -> None:
    attributes = parse_lease_attributes(b'{"PublicIP":"192.168.50.102","Pyflannel":%s}' % ours.encode())

    assert attributes == PLAIN


@pytest.mark.parametrize(
    "host",
    ["3", "null", "[]", '{"a":1}', '""', '"two words"', '"-a"', '"192.168.50.102"', '"\\u001b[2J"', '"<b>"'],
)
def test_an_invalid_host_name_counts_as_absent_and_hides_no_owner(host: str) -> None:
    value = b'{"PublicIP":"192.168.50.102","Pyflannel":{"Host":%s,"Owner":"f00d"}}' % host.encode()

    assert parse_lease_attributes(value) == replace(PLAIN, owner="f00d")


@pytest.mark.parametrize("also", ["7", '["udp"]', '[{"Port":"x"}]', '[{"BackendType":1}]', "{}", "null"])
def test_invalid_previous_backends_count_as_absent_and_hide_no_owner(also: str) -> None:
    value = f'{{"PublicIP":"1.2.3.4","Pyflannel":{{"Owner":"f00d","Also":{also}}}}}'

    attributes = parse_lease_attributes(value.encode())

    assert (attributes.owner, attributes.also) == ("f00d", ())


def test_keys_of_later_versions_in_a_previous_backend_are_ignored_and_their_number_is_bounded() -> None:
    also = ",".join(['{"Port":7,"Later":{"Key":1}}'] * 9)
    value = f'{{"PublicIP":"1.2.3.4","Pyflannel":{{"Owner":"f00d","Also":[{also}]}}}}'

    assert parse_lease_attributes(value.encode()).also == (BackendPart(port=7),) * MOST_PREVIOUS


def test_angle_brackets_and_ampersands_are_escaped() -> None:
    attributes = LeaseAttributes(public_ip=IPv4Address("1.2.3.4"), backend_data='"<&>"', owner="a<b")

    assert format_lease_attributes(attributes) == (
        rb'{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendData":"\u003c\u0026\u003e",'
        rb'"Pyflannel":{"Owner":"a\u003cb"}}'
    )


def test_backend_data_that_is_not_utf8_hides_no_peer() -> None:
    assert parse_lease_attributes(b'{"BackendData":"\xff"}').backend_data == '"\ufffd"'


def test_keys_of_later_versions_are_ignored() -> None:
    value = b'{"PublicIP":"1.2.3.4","Pyflannel":{"Owner":"f00d","Later":{"a":1}},"Later":true}'

    assert parse_lease_attributes(value).owner == "f00d"


def test_keys_are_read_in_any_case() -> None:
    value = b'{"publicip":"1.2.3.4","PUBLICIPV6":"fd00::1","bac\xe2\x84\xaaendtype":"vxlan"}'

    assert parse_lease_attributes(value) == LeaseAttributes(
        public_ip=IPv4Address("1.2.3.4"), public_ipv6=IPv6Address("fd00::1"), backend_type="vxlan"
    )


def test_leases_with_equal_content_are_equal() -> None:
    spread = (
        b'{ "PublicIP": "1.2.3.4", "BackendData": { "V" : 1 }, "Pyflannel":{"Owner":"a","Reads":["b","a"]}}'
    )
    dense = b'{"PublicIP":"1.2.3.4","BackendData":{"V":1},"Pyflannel":{"Owner":"a","Reads":["a","b"]}}'

    assert parse_lease_attributes(spread) == parse_lease_attributes(dense)


def test_ipv4_mapped_addresses_are_read_and_written_as_ipv4() -> None:
    value = b'{"PublicIP":"::ffff:1.2.3.4","PublicIPv6":"1.2.3.4"}'

    attributes = parse_lease_attributes(value)

    assert attributes.public_ip == IPv4Address("1.2.3.4")
    assert format_lease_attributes(attributes) == b'{"PublicIP":"1.2.3.4","PublicIPv6":"1.2.3.4"}'


@pytest.mark.parametrize("text", [b"fe80::1%eth0", b"beef", b"fd00::/64"])
def test_public_ipv6_that_is_no_address_is_refused(text: bytes) -> None:
    with pytest.raises(WireError):
        parse_lease_attributes(b'{"PublicIP":"1.2.3.4","PublicIPv6":"%s"}' % text)


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"[" * 100_000, id="deep array"),
        pytest.param(b'{"a":' * 100_000, id="deep object"),
        pytest.param(b'{"BackendData":' + b"[" * 100_000, id="deep data"),
        pytest.param(b"\xff", id="not UTF-8"),
        pytest.param(b"null", id="null"),
    ],
)
def test_extreme_values_are_refused(value: bytes) -> None:
    with pytest.raises(WireError):
        parse_lease_attributes(value)


def test_claim_is_written_as_owner_and_address() -> None:
    value = format_claim(CLAIM)

    assert value == b'{"Owner":"f00d","PublicIP":"1.2.3.4"}'
    assert parse_claim(value, CLAIM.subnet, CLAIM.revision) == CLAIM


def test_claim_contains_the_host_name_if_the_name_is_valid() -> None:
    claim = replace(CLAIM, host_name="docker2")

    value = format_claim(claim)

    assert value == b'{"Owner":"f00d","PublicIP":"1.2.3.4","Host":"docker2"}'
    assert parse_claim(value, claim.subnet, claim.revision) == claim
    assert parse_claim(value.replace(b"docker2", b"no name"), CLAIM.subnet, CLAIM.revision) == CLAIM


def test_a_claim_against_a_copy_contains_the_time_of_holding() -> None:
    claim = replace(CLAIM, held_s=3600.5)

    value = format_claim(claim)

    assert value == b'{"Owner":"f00d","PublicIP":"1.2.3.4","Held":3600.5}'
    assert parse_claim(value, claim.subnet, claim.revision) == claim


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b'{"Owner":"","PublicIP":"1.2.3.4"}',
        b'{"Owner":"a","PublicIP":"1.2.3.4","Held":-1}',
        b'{"Owner":"a","PublicIP":"fd00::1"}',
        b'{"Owner":"a"}',
    ],
)
def test_an_invalid_claim_is_refused(value: bytes) -> None:
    with pytest.raises(WireError, match="not a claim"):
        parse_claim(value, CLAIM.subnet, 1)


def test_a_value_above_its_limit_is_refused_before_it_is_parsed() -> None:
    """A lease has a few hundred bytes. A client of the store cannot make peers keep megabytes for each
    lease.
    """
    longest = b'{"PublicIP":"1.2.3.4","Owner":"a"}'.ljust(4096)

    assert parse_lease_attributes(longest).public_ip == IPv4Address("1.2.3.4")
    assert parse_claim(longest.replace(b"}", b',"Held":1}').rstrip(), CLAIM.subnet, 1).held_s == 1
    with pytest.raises(WireError, match="not a lease: longer than 4096 bytes"):
        parse_lease_attributes(longest + b" ")
    with pytest.raises(WireError, match="not a claim: longer than 4096 bytes"):
        parse_claim(longest + b" ", CLAIM.subnet, 1)


@pytest.mark.parametrize(
    ("members", "public_ip"),
    [
        ('"publicip":"1.1.1.1","PublicIP":"2.2.2.2","publicip":"3.3.3.3"', "3.3.3.3"),
        ('"PublicIP":"1.1.1.1","publicip":"2.2.2.2","PublicIP":"3.3.3.3"', "3.3.3.3"),
        ('"PublicIP":"1.1.1.1","PUBLICIP":"2.2.2.2"', "2.2.2.2"),
        ('"PUBLICIP":"1.1.1.1","PublicIP":"2.2.2.2"', "2.2.2.2"),
    ],
)
def test_the_last_of_several_spellings_of_a_key_counts(members: str, public_ip: str) -> None:
    """The original does the same. Readers of one lease must not send packets to different hosts."""
    assert parse_lease_attributes(f"{{{members}}}".encode()).public_ip == IPv4Address(public_ip)


def test_null_keeps_the_backend_type_of_another_spelling() -> None:
    """In Go, null leaves a string unchanged, and clears other values."""
    null = b'"backendtype":null,"publicipv6":null'
    value = b'{"PublicIP":"1.1.1.1","BackendType":"vxlan","PublicIPv6":"fd00::1",%s}' % null

    attributes = parse_lease_attributes(value)

    assert attributes.backend_type == "vxlan"
    assert attributes.public_ipv6 is None


def test_the_length_of_a_backend_type_and_of_an_owner_is_limited() -> None:
    """A lease with an overlong type is refused. A lease with an overlong owner has no owner."""
    assert parse_lease_attributes(b'{"BackendType":"%s"}' % (b"x" * 64)).backend_type == "x" * 64
    with pytest.raises(WireError, match="length <= 64"):
        parse_lease_attributes(b'{"BackendType":"%s"}' % (b"x" * 65))
    assert parse_lease_attributes(b'{"Pyflannel":{"Owner":"%s"}}' % (b"x" * 256)).owner == "x" * 256
    assert parse_lease_attributes(b'{"Pyflannel":{"Owner":"%s"}}' % (b"x" * 257)).owner is None
    with pytest.raises(WireError, match="not a claim"):
        parse_claim(b'{"PublicIP":"1.2.3.4","Owner":"%s"}' % (b"x" * 257), CLAIM.subnet, 1)
