"""The network config is read, checked and printed as by flannel 0.28.9, except the cases listed here."""

import json
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from pyflannel.errors import ConfigError
from pyflannel.model.network_config import KEYS, NetworkConfig
from pyflannel.wire.network_config_json import format_network_config, parse_network_config

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/network-config.json").read_text())["cases"]

# The original repeats the message of its JSON library. pyflannel's message uses the terms of the config.
LIBRARY_TEXTS = {
    "052": 'not a prefix length: SubnetLen="24"',
    "053": "not a prefix length: SubnetLen=24.0",
    "055": "not a prefix length: SubnetLen=-1",
    "058": "not a prefix length: SubnetLen=true",
    "059": "not a prefix length: SubnetLen=[24]",
    "061": "not a prefix length: SubnetLen=18446744073709551616",
    "062": "not JSON: Expecting ',' delimiter: line 1 column 39",
    "091": "not a JSON object: []",
    "092": 'not a JSON object: ""',
    "094": "not JSON: Expecting value",
    "095": "not JSON: Expecting property name",
    "097": "not JSON: Extra data: line 1 column 26",
    "100": "not a JSON object: 3",
    "101": 'not a JSON object: "10.3.0.0/16"',
    "139": 'error decoding Backend property of config: not an object: Backend="vxlan"',
    "140": "error decoding Backend property of config: not an object: Backend=[]",
    "142": "error decoding Backend property of config: not an object: Backend=true",
    "155": 'error decoding Backend property of config: not a string: Backend.Type=["vxlan"]',
    "163": 'not a boolean: EnableIPv4="true"',
    "164": "not a boolean: EnableIPv4=1",
    "233": 'not a prefix length: IPv6SubnetLen="64"',
    "244": 'not a boolean: EnableNFTables="true"',
    "248": "not JSON: Expecting value: line 1 column 1",
    "250": "not JSON: ",  # the rest depends on the version of Python
    "251": "not JSON: NaN is not a number",
    "254": "not JSON: Invalid control character",
}

# Values that the original accepts and cannot use, or refuses with a wrong reason.
REFUSED = {
    # The original accepts this config, and then ends with "none defined stack".
    "160": "none defined stack",
    "161": "none defined stack",
    # The original accepts this config, and then ends with "unknown backend type: ".
    "137": "unknown backend type: ",
    "143": "unknown backend type: ",
    "145": "unknown backend type: ",
    "158": "unknown backend type: ",
    # The original accepts this config, and then reports "out of subnets" on every host.
    "227": "IPv6SubnetMin is greater than IPv6SubnetMax",
    # Text of the other family: the original reads the text as a tiny network, or as a network of IPv4-mapped
    # addresses. The original writes the subnets of this network into keys that the original cannot read.
    "116": "invalid IPv4 CIDR format",
    "194": "invalid IPv6 CIDR format",
    "197": "invalid IPv6 CIDR format",
}

# The original writes IPv6 addresses with only the last 32 bits set as IPv4, and reads them back as
# other addresses. pyflannel treats them as IPv6.
PRINTED_AS_IPV6 = {"196": ("::a03:0/112", "::a03:4000", "::a03:c000")}


def number(case: dict[str, str]) -> str:
    return case["id"].rpartition("-")[2]


@pytest.mark.parametrize(
    "case", [case for case in GOLDEN if "print" in case and number(case) not in REFUSED], ids=number
)
def test_prints_the_same_values_as_the_original(case: dict[str, str]) -> None:
    expected = case["print"]
    if number(case) in PRINTED_AS_IPV6:
        network, first, last = PRINTED_AS_IPV6[number(case)]
        document = json.loads(expected)
        document |= {"IPv6Network": network, "IPv6SubnetMin": first, "IPv6SubnetMax": last}
        expected = json.dumps(document, separators=(",", ":"))

    printed = format_network_config(parse_network_config(case["input"]))

    # The type is case-insensitive in the original; pyflannel stores it in lower case.
    backend_type = json.dumps(case["BackendType"].lower())
    assert printed == f'{expected.removesuffix("}")},"BackendType":{backend_type}}}'


@pytest.mark.parametrize(
    "case", [case for case in GOLDEN if "error" in case or number(case) in REFUSED], ids=number
)
def test_refuses_with_the_text_of_the_original_or_a_listed_text(case: dict[str, str]) -> None:
    ours = (REFUSED | LIBRARY_TEXTS).get(number(case))

    with pytest.raises(ConfigError) as caught:
        parse_network_config(case["input"])

    assert (ours or case["error"]) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    "case", [case for case in GOLDEN if number(case) in REFUSED | LIBRARY_TEXTS], ids=number
)
def test_each_listed_difference_from_the_original_exists(case: dict[str, str]) -> None:
    ours = (REFUSED | LIBRARY_TEXTS)[number(case)]

    assert ours not in case.get("error", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"Network":"10.3.0.0/16","SubnetMin":"10.5.0.0"}',
            "SubnetMin is not in the range of the Network: SubnetMin=10.5.0.0 Network=10.3.0.0/16",
        ),
        (
            '{"Network":"10.3.0.0/16","SubnetMax":"10.3.20.255"}',
            "SubnetMax is not on a SubnetLen boundary: 10.3.20.255 SubnetLen=24",
        ),
        (
            '{"Network":"10.3.0.0/16","SubnetLen":31}',
            "SubnetLen must be less than /31: SubnetLen=31",
        ),
        (
            '{"Network":"10.3.0.0/16","SubnetLen":17}',
            "network must be able to accommodate at least four subnets: SubnetLen=17 Network=10.3.0.0/16",
        ),
        (
            '{"Network":"10.3.0.0/29"}',
            "network is too small. Minimum useful network prefix is /28: Network=10.3.0.0/29",
        ),
        (
            '{"Network":"10.3.0.0/16","SubnetMin":"10.3.9.0","SubnetMax":"10.3.8.0"}',
            "SubnetMin is greater than SubnetMax, so there is no subnet to lease:"
            " SubnetMin=10.3.9.0 SubnetMax=10.3.8.0",
        ),
        (
            '{"Network":"10.3.0.0/33"}',
            "invalid CIDR address: 10.3.0.0/33, for Network",
        ),
        (
            '{"Network":"10.3.0.0/16","SubnetMin":"10.3.1.0/24"}',
            'invalid IP address format: SubnetMin="10.3.1.0/24"',
        ),
        (
            '{"Network":"10.3.0.0/16","SubnetMin":"fe80::1%eth0"}',
            'invalid IP address format: SubnetMin="fe80::1%eth0"',
        ),
        (
            "{}",
            "please define a correct Network parameter in the flannel config: Network is absent,"
            " or covers all addresses",
        ),
        (
            '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetLen":127}',
            "IPv6SubnetLen must be less than /127: IPv6SubnetLen=127",
        ),
        (
            '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMax":"fc01::"}',
            "IPv6SubnetMax is not in the range of the IPv6Network:"
            " IPv6SubnetMax=fc01:: IPv6Network=fc00::/48",
        ),
    ],
)
def test_an_error_message_names_the_key_and_the_value(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network_config(text)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        '{"Network":"fd00::/16"}',
        '{"Network":"10.3.0.0/16","SubnetMin":"fd00::1"}',
        '{"Network":"10.3.0.0/16","SubnetMax":"fd00::1"}',
    ],
)
def test_ipv6_text_in_an_ipv4_field_is_refused(text: str) -> None:
    """A config with IPv6 text in an IPv4 field crashes releases 0.6.2 and 0.20.2."""
    with pytest.raises(ConfigError, match="invalid IPv4"):
        parse_network_config(text)


def test_ipv4_mapped_address_is_the_ipv4_address() -> None:
    config = parse_network_config('{"Network":"10.3.0.0/16","SubnetMin":"::ffff:10.3.9.0"}')

    assert config.subnet_min == IPv4Address("10.3.9.0")


def test_null_after_a_value_has_the_same_effect_as_in_the_original() -> None:
    config = parse_network_config(
        '{"Network":"10.3.0.0/16","SubnetLen":26,"SubnetLen":null,"EnableNFTables":true,"EnableNFTables":null}'
    )

    assert (config.subnet_length, config.enable_nftables) == (26, True)


def test_an_unspecified_address_counts_as_absent() -> None:
    config = parse_network_config(
        '{"Network":"10.3.0.0/16","SubnetMin":"0.0.0.0","SubnetMax":"0.0.0.0",'
        '"EnableIPv6":true,"IPv6Network":"fc00::/48","IPv6SubnetMin":"::","IPv6SubnetMax":"::"}'
    )

    assert (str(config.subnet_min), str(config.subnet_max)) == ("10.3.1.0", "10.3.255.0")
    assert (str(config.ipv6_subnet_min), str(config.ipv6_subnet_max)) == ("fc00:0:0:1::", "fc00:0:0:ffff::")


def test_the_document_null_is_read_as_an_empty_object() -> None:
    with pytest.raises(ConfigError, match="please define a correct Network parameter"):
        parse_network_config("null")


def test_the_last_spelling_of_a_key_counts() -> None:
    config = parse_network_config('{"Network":"10.1.0.0/16","network":"10.2.0.0/16","Network":"10.3.0.0/16"}')
    backend = parse_network_config('{"Network":"10.1.0.0/16","Backend":{"Type":"a","type":"b","Type":"c"}}')

    assert config.network == IPv4Network("10.3.0.0/16")
    assert backend.backend_type == "c"


def test_values_of_a_disabled_family_are_kept_but_not_checked() -> None:
    config = parse_network_config(
        '{"Network":"10.3.0.0/16","IPv6Network":"fc00::/126","IPv6SubnetLen":200,"EnableIPv6":false}'
    )

    assert config.ipv6_network == IPv6Network("fc00::/126")
    assert (config.ipv6_subnet_length, config.ipv6_subnet_min) == (200, None)


def test_bytes_that_are_not_utf8_are_read_as_by_the_original() -> None:
    config = parse_network_config(b'{"Network":"10.3.0.0/16","Backend":{"Type":"udp","Note":"\xff"}}')

    assert config.backend["Note"] == "\ufffd"


def test_a_half_surrogate_pair_can_be_printed() -> None:
    config = parse_network_config('{"Network":"10.3.0.0/16","Backend":{"Type":"udp","Note":["\\ud800"]}}')

    assert format_network_config(config).encode()


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="deep array"),
        pytest.param('{"a":' * 100_000, id="deep object"),
        pytest.param('{"a":1e999}', id="infinite number"),
        pytest.param('{"a":%s}' % ("9" * 5000), id="long number"),
    ],
)
def test_extreme_documents_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not JSON|longer than"):
        parse_network_config(text)


def test_long_values_are_cut_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network_config(json.dumps({"Network": "x" * 10_000}))

    assert len(str(caught.value)) < 200


def test_values_of_several_lines_are_joined_in_messages() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_network_config('{"Network":"10.3.0.0/16","SubnetLen":[\n  24\n]}')

    assert str(caught.value) == "not a prefix length: SubnetLen=[ 24 ]"


def test_no_subnet_is_admitted_when_ipv4_is_off() -> None:
    config = parse_network_config(
        '{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fc00::/48",'
        '"Network":"10.3.0.0/16","SubnetLen":24,"SubnetMin":"10.3.1.0","SubnetMax":"10.3.9.0"}'
    )

    assert not config.admits(IPv4Network("10.3.5.0/24"))


@pytest.mark.parametrize(("value", "mode"), [('"safe"', "safe"), ('"off"', "off"), ("null", "safe")])
def test_the_values_of_fast_path_are_read(value: str, mode: str) -> None:
    config = parse_network_config(f'{{"Network":"10.3.0.0/16","FastPath":{value}}}')

    assert config.fast_path == mode
    assert parse_network_config(format_network_config(config)) == config


@pytest.mark.parametrize("value", ['"turbo"', "true", "1", "[]"])
def test_an_unknown_fast_path_is_named(value: str) -> None:
    with pytest.raises(ConfigError, match="FastPath=") as caught:
        parse_network_config(f'{{"Network":"10.3.0.0/16","FastPath":{value}}}')
    assert value in str(caught.value)
    assert '"off"' in caught.value.hint


@pytest.mark.parametrize(
    ("members", "unread"),
    [
        ('"SubnetLne":20', ("SubnetLne",)),
        ('"B":{},"a":[],"B":1', ("B", "a")),
        ('"":1,"\\ud800":2,"a\\u001b[2J":3', ('""', '"\\ud800"', '"a\\u001b[2J"')),
        ('"networks":["10.4.0.0/16"],"IPV6NETWORKS":["fc00::/48"]', ("Networks", "IPv6Networks")),
        ('"Networks":[],"IPv6Networks":null', ()),
        ('"BackendType":"udp"', ()),
    ],
)
def test_keys_that_are_not_read_are_named(members: str, unread: tuple[str, ...]) -> None:
    """Empty keys of the original, and keys that pyflannel prints, are not reported."""
    config = parse_network_config(f'{{"Network":"10.3.0.0/16",{members}}}')

    assert config.unread == unread
    assert replace(config, unread=()) == parse_network_config('{"Network":"10.3.0.0/16"}')
    format_network_config(config).encode()


def test_every_documented_key_is_read() -> None:
    values: dict[str, object] = {
        "Network": "10.3.0.0/16",
        "SubnetLen": 24,
        "SubnetMin": "10.3.1.0",
        "SubnetMax": "10.3.9.0",
        "EnableIPv4": True,
        "EnableIPv6": True,
        "IPv6Network": "fc00::/48",
        "IPv6SubnetLen": 64,
        "IPv6SubnetMin": None,
        "IPv6SubnetMax": None,
        "EnableNFTables": True,
        "FastPath": "off",
        "Backend": {"Type": "udp"},
    }
    assert values.keys() == {*KEYS}

    assert parse_network_config(json.dumps(values)).unread == ()


def test_the_cost_of_unknown_keys_is_linear(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser copies the config for each key that it reads, and not for unknown keys."""
    copies = 0

    def counted(config: NetworkConfig, **changes: Any) -> NetworkConfig:
        nonlocal copies
        copies += 1
        return replace(config, **changes)

    monkeypatch.setattr("pyflannel.wire.network_config_json.replace", counted)
    keys = [f"k{number}" for number in range(900)]
    text = json.dumps({"Network": "10.3.0.0/16"} | dict.fromkeys(keys, 1))

    config = parse_network_config(text)

    assert config.unread == tuple(keys)
    assert copies == 3  # in the fields Network and unread, and in the computed range


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        (json.dumps(dict.fromkeys(map(str, range(20_000)), 1)), "longer than 65536 characters"),
        (" " * 65_537, "longer than 65536 characters"),
        (json.dumps(dict.fromkeys(map(str, range(1001)), 1)), "more than 1000 keys"),
        ("{" + ",".join(['"Network":"10.3.0.0/16"'] * 1001) + "}", "more than 1000"),
        (json.dumps({"Backend": [{"a": 1}] * 1001}), "more than 1000 keys"),
        ('{"Network":"10.3.0.0/16","x":' + "[" * 32 + "]" * 32 + "}", "nested more than 32 deep"),
        ('{"x":' * 33 + "1" + "}" * 33, "nested more than 32 deep"),
        ("[" * 30_000, "nested more than 32 deep"),
    ],
    ids=["20,000 keys", "white space", "1,001 keys", "one key", "inner keys", "lists", "objects", "no end"],
)
def test_a_config_above_a_limit_is_refused(text: str, bound: str) -> None:
    """Any content of the store needs limited time and memory."""
    for written in (text, text.encode()):
        with pytest.raises(ConfigError, match=bound) as caught:
            parse_network_config(written)

        assert len(str(caught.value)) < 200


def test_a_config_at_every_limit_is_read() -> None:
    keys = dict.fromkeys(map(str, range(998)), 1)
    nested = json.loads("[" * 31 + "]" * 31)

    text = json.dumps({"Network": "10.3.0.0/16", "x": nested} | keys)

    assert len(parse_network_config(text.ljust(65_536)).unread) == 999


@pytest.mark.parametrize(
    ("members", "network"),
    [
        ('"network":"10.4.0.0/16","Network":"10.5.0.0/16","network":"10.6.0.0/16"', "10.6.0.0/16"),
        ('"Network":"10.4.0.0/16","network":"10.5.0.0/16","Network":"10.6.0.0/16"', "10.6.0.0/16"),
    ],
)
def test_the_last_of_several_spellings_of_a_key_counts(members: str, network: str) -> None:
    assert parse_network_config(f"{{{members}}}").network == IPv4Network(network)
