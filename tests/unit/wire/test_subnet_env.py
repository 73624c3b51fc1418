"""subnet.env equals the file of flannel to the byte. Other spellings of dotenv are read, too."""

import json
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import WireError
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.docker_plugin import divide, ipv6_part_of_cni
from pyflannel.wire import cni
from pyflannel.wire.subnet_env import format_subnet_env, parse_subnet_env, previous_subnet

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/subnet-env.json").read_text())["cases"]

SUBNETS = st.builds(
    lambda number, length: IPv4Network((number, length), strict=False),
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
)


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_writes_the_same_text_as_the_original(case: dict[str, Any]) -> None:
    written, config = parse_subnet_env(case["bytes"]), case["config"]
    ipv6_subnet = written.get("FLANNEL_IPV6_SUBNET")

    text = format_subnet_env(
        config=NetworkConfig(
            network=IPv4Network(config["Network"], strict=False),
            enable_ipv6=config.get("EnableIPv6", False),
            ipv6_network=IPv6Network(config["IPv6Network"]) if "IPv6Network" in config else None,
        ),
        subnet=previous_subnet(case["bytes"]),
        ipv6_subnet=IPv6Network(ipv6_subnet, strict=False) if ipv6_subnet else None,
        mtu=int(written["FLANNEL_MTU"]),
        ip_masq="--ip-masq" in case["args"],
    )

    assert text == case["bytes"]


def test_ipv4_is_omitted_if_it_is_disabled() -> None:
    config = NetworkConfig(enable_ipv4=False, enable_ipv6=True, ipv6_network=IPv6Network("fd00:5::/48"))

    text = format_subnet_env(
        config=config,
        subnet=IPv4Network("10.100.15.0/24"),
        ipv6_subnet=IPv6Network("fd00:5:0:34::/64"),
        mtu=1450,
        ip_masq=False,
    )

    assert text == (
        "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:34::1/64\n"
        "FLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
    )


def test_a_divided_subnet_names_the_parts_of_docker0_and_cni() -> None:
    subnet = IPv4Network("10.100.15.0/24")
    config = NetworkConfig(network=IPv4Network("10.100.0.0/16"))

    text = format_subnet_env(config=config, subnet=subnet, mtu=1472, ip_masq=False, division=divide(subnet))

    assert text == (
        "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.15.1/24\n"
        "FLANNEL_DOCKER0_SUBNET=10.100.15.1/27\nFLANNEL_CNI_SUBNET=10.100.15.33/27\n"
        "FLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
    )
    assert previous_subnet(text) == subnet


def test_a_divided_ipv6_subnet_names_the_part_of_cni() -> None:
    host = IPv6Network("fd00:5:0:34::/64")
    config = NetworkConfig(
        network=IPv4Network("10.100.0.0/16"), enable_ipv6=True, ipv6_network=IPv6Network("fd00:5::/48")
    )

    text = format_subnet_env(
        config=config, subnet=None, ipv6_subnet=host, mtu=1430, ip_masq=False, ipv6_cni=ipv6_part_of_cni(host)
    )

    assert "\nFLANNEL_IPV6_CNI_SUBNET=fd00:5:0:34:2000::1/67\n" in text
    assert ipv6_part_of_cni(IPv6Network("fd00:5::/112")) is None


@pytest.mark.parametrize("ip_masq", [False, True])
def test_the_cni_plugin_refuses_a_file_that_is_cut_short(ip_masq: bool) -> None:
    """If the plugin accepted the file, it could give the addresses of docker0 and of Docker's networks to its
    containers.
    """
    subnet, ipv6_subnet = IPv4Network("10.100.15.0/24"), IPv6Network("fd00:5:0:34::/64")
    text = format_subnet_env(
        config=NetworkConfig(
            network=IPv4Network("10.100.0.0/16"), enable_ipv6=True, ipv6_network=IPv6Network("fd00:5::/48")
        ),
        subnet=subnet,
        ipv6_subnet=ipv6_subnet,
        mtu=1472,
        ip_masq=ip_masq,
        division=divide(subnet),
        ipv6_cni=ipv6_part_of_cni(ipv6_subnet),
    )

    for length in range(len(text) - 1):  # without the last line break, the file is complete
        with pytest.raises(WireError):
            cni.parse_subnets(text[:length])

    assert cni.parse_subnets(text.rstrip()) == cni.parse_subnets(text)


@given(subnet=SUBNETS, mtu=st.integers(68, 65535), ip_masq=st.booleans())
def test_the_subnet_is_read_back(subnet: IPv4Network, mtu: int, ip_masq: bool) -> None:
    config = NetworkConfig(network=IPv4Network("10.100.0.0/16"))

    text = format_subnet_env(config=config, subnet=subnet, mtu=mtu, ip_masq=ip_masq)

    assert previous_subnet(text) == subnet
    assert parse_subnet_env(text)["FLANNEL_MTU"] == str(mtu)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# a comment\n\n  # another\nA=1\n", {"A": "1"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ('export A="10.77.88.1/24"\n', {"A": "10.77.88.1/24"}),
        ("A='x # y' # z\n", {"A": "x # y"}),
        ('A="x \\" y"\n', {"A": 'x " y'}),
        ("  A = 1 # why\n", {"A": "1"}),
        ("A=x y\n", {"A": "x y"}),
        ("A=x#y\n", {"A": "x#y"}),
        ("A=\nB= # nothing\n", {"A": "", "B": ""}),
        ("A: 1\n", {"A": "1"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("A=$B\n", {"A": "$B"}),
    ],
)
def test_reads_dotenv(text: str, values: dict[str, str]) -> None:
    assert parse_subnet_env(text) == values


@pytest.mark.parametrize("line", ["garbage", "=1", 'A="x', "A='x' y", "export", "A B=1"])
def test_an_error_quotes_the_invalid_line(line: str) -> None:
    with pytest.raises(WireError, match=r"^line 2: ") as caught:
        parse_subnet_env(f"A=1\n{line}\n")

    assert repr(line) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "subnet"),
    [
        ("10.77.88.1/24", IPv4Network("10.77.88.0/24")),
        ("10.9.2.193/26", IPv4Network("10.9.2.192/26")),
        ('"10.77.88.1/24"', IPv4Network("10.77.88.0/24")),
        ("10.77.88.1/24,10.77.89.1/24", None),
    ],
)
def test_the_previous_subnet_is_masked_and_there_is_only_one(value: str, subnet: IPv4Network | None) -> None:
    assert previous_subnet(f"FLANNEL_SUBNET={value}\n") == subnet


def test_a_file_without_a_subnet_has_no_previous_subnet() -> None:
    assert previous_subnet("FLANNEL_MTU=1472\n") is None


@pytest.mark.parametrize(
    "value",
    ["", "10.77.88.1", "10.77.88.1/33", "10.77.88.1/255.255.255.0", "010.0.0.1/24", "fd00::1/64", "x/24"],
)
def test_a_malformed_subnet_is_named_with_its_key(value: str) -> None:
    with pytest.raises(WireError) as caught:
        previous_subnet(f"FLANNEL_SUBNET={value}\n")

    assert f"FLANNEL_SUBNET={value} " in str(caught.value)
