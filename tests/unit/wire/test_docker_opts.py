"""Docker's options equal those of flannel's script to the byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import WireError
from pyflannel.wire.subnet_env import foreign_routes, format_docker_opts

FLANNEL = {
    "FLANNEL_NETWORK": "10.100.0.0/16",
    "FLANNEL_SUBNET": "10.100.15.1/24",
    "FLANNEL_MTU": "1472",
    "FLANNEL_IPMASQ": "false",
}
INDIVIDUAL = """\
DOCKER_OPT_BIP="--bip=10.100.15.1/24"
DOCKER_OPT_IPMASQ="--ip-masq=true"
DOCKER_OPT_MTU="--mtu=1472"
"""
COMBINED = 'DOCKER_OPTS=" --bip=10.100.15.1/24 --ip-masq=true --mtu=1472"\n'


def test_writes_individual_options_before_the_combined_line() -> None:
    assert format_docker_opts(FLANNEL, individual=True, combined=True) == INDIVIDUAL + COMBINED
    assert format_docker_opts(FLANNEL, individual=True, combined=False) == INDIVIDUAL
    assert format_docker_opts(FLANNEL, individual=False, combined=True) == COMBINED


def test_docker0_has_its_part_of_a_divided_subnet() -> None:
    divided = FLANNEL | {"FLANNEL_DOCKER0_SUBNET": "10.100.15.1/27"}

    text = format_docker_opts(divided, individual=True, combined=False)

    assert text == INDIVIDUAL.replace("10.100.15.1/24", "10.100.15.1/27")


DUAL = FLANNEL | {"FLANNEL_IPV6_NETWORK": "fd00:5::/48", "FLANNEL_IPV6_SUBNET": "fd00:5:0:f::1/64"}


def test_in_a_network_with_ipv6_docker0_has_the_ipv6_subnet() -> None:
    text = format_docker_opts(DUAL, individual=True, combined=True)

    assert text == (
        'DOCKER_OPT_BIP="--bip=10.100.15.1/24"\n'
        'DOCKER_OPT_FIXED_CIDR_V6="--fixed-cidr-v6=fd00:5:0:f::/64"\n'
        'DOCKER_OPT_IPMASQ="--ip-masq=true"\n'
        'DOCKER_OPT_IPV6="--ipv6"\n'
        'DOCKER_OPT_MTU="--mtu=1472"\n'
        'DOCKER_OPTS=" --bip=10.100.15.1/24 --fixed-cidr-v6=fd00:5:0:f::/64 --ip-masq=true --ipv6'
        ' --mtu=1472"\n'
    )


def test_with_the_network_plugin_docker0_has_no_ipv6() -> None:
    """The IPv6 subnet belongs to the networks of the plugin and to CNI."""
    divided = DUAL | {"FLANNEL_DOCKER0_SUBNET": "10.100.15.1/27"}

    assert "v6" not in format_docker_opts(divided, individual=True, combined=True)


@pytest.mark.parametrize("value", ["10.1.9.1/24", "fd00::1/64,fd01::1/64", "fd00::1/129", "--x"])
def test_refuses_an_invalid_ipv6_subnet(value: str) -> None:
    with pytest.raises(WireError, match=f"^Invalid value of FLANNEL_IPV6_SUBNET: {value}$"):
        format_docker_opts({"FLANNEL_IPV6_SUBNET": value}, individual=True, combined=True)


def test_docker_masquerades_if_flannel_does_not() -> None:
    text = format_docker_opts({"FLANNEL_IPMASQ": "true"}, individual=True, combined=False)

    assert text == 'DOCKER_OPT_IPMASQ="--ip-masq=false"\n'


def test_masquerading_is_omitted_on_request_even_with_an_invalid_value() -> None:
    text = format_docker_opts({"FLANNEL_IPMASQ": "yes"}, individual=True, combined=True, with_ip_masq=False)

    assert text == 'DOCKER_OPTS=""\n'


@pytest.mark.parametrize("value", ["yes", "1", "TRUE", "false "])
def test_refuses_a_masquerading_that_is_neither_true_nor_false(value: str) -> None:
    with pytest.raises(WireError, match=f"^Invalid value of FLANNEL_IPMASQ: {value}$"):
        format_docker_opts({"FLANNEL_IPMASQ": value}, individual=True, combined=True)


def test_values_that_are_empty_or_absent_give_no_option() -> None:
    empty = {"FLANNEL_SUBNET": "", "FLANNEL_MTU": "", "FLANNEL_IPMASQ": ""}

    assert format_docker_opts(empty, individual=True, combined=True) == 'DOCKER_OPTS=""\n'
    assert format_docker_opts({}, individual=True, combined=False) == ""


@pytest.mark.parametrize(
    ("preset", "line"),
    [
        ({"DOCKER_OPTS": "--debug"}, 'DOCKER_OPTS="--debug "\n'),
        ({"DOCKER_OPTS": "--debug", "FLANNEL_MTU": "9"}, 'DOCKER_OPTS="--debug  --mtu=9"\n'),
        ({"DOCKER_OPTS": "--a --b", "FLANNEL_MTU": "9"}, 'DOCKER_OPTS="--a --b  --mtu=9"\n'),
    ],
)
def test_the_previous_value_of_the_combined_variable_is_first(preset: dict[str, str], line: str) -> None:
    assert format_docker_opts(preset, individual=False, combined=True) == line


def test_the_combined_variable_may_have_another_name() -> None:
    variables = {"OPTS": "--y", "DOCKER_OPTS": "--x", "FLANNEL_MTU": "9"}

    assert (
        format_docker_opts(variables, individual=False, combined=True, key="OPTS") == 'OPTS="--y  --mtu=9"\n'
    )


def test_other_options_in_the_environment_are_taken_in_the_order_of_their_names() -> None:
    variables = {"DOCKER_OPT_FOO": "--foo", "X_DOCKER_OPT_Q": "--q", "DOCKER_OPT_BIP": "--bip=9"}

    text = format_docker_opts({**variables, **FLANNEL}, individual=False, combined=True)

    assert text == 'DOCKER_OPTS=" --bip=10.100.15.1/24 --foo --ip-masq=true --mtu=1472 --q"\n'


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("", '="$  --mtu=9"\n'),
        ("DOCKER_OPT_MTU", 'DOCKER_OPT_MTU="--mtu=9  --mtu=9 DOCKER_OPT_MTU"\n'),
    ],
)
def test_an_invalid_key_has_the_original_outcome(key: str, line: str) -> None:
    assert format_docker_opts({"FLANNEL_MTU": "9"}, individual=False, combined=True, key=key) == line


def test_an_option_with_blanks_stays_whole() -> None:
    text = format_docker_opts({"DOCKER_OPT_LOG": "--log-opt a"}, individual=True, combined=True)

    assert text == 'DOCKER_OPT_LOG="--log-opt a"\nDOCKER_OPTS=" --log-opt a"\n'


@given(
    variables=st.dictionaries(
        st.sampled_from([*FLANNEL, "DOCKER_OPTS", "DOCKER_OPT_A", "Z"]),
        st.sampled_from(["true", "false", ""]),
    )
)
def test_the_combined_line_carries_every_individual_option_in_order(variables: dict[str, str]) -> None:
    individual = format_docker_opts(variables, individual=True, combined=False).splitlines()
    combined = format_docker_opts(variables, individual=False, combined=True)

    options = [line.partition("=")[2].strip('"') for line in individual]
    assert combined.endswith("".join(f" {option}" for option in options) + '"\n')


@pytest.mark.parametrize(
    ("route", "is_foreign"),
    [
        ("10.77.9.0/24 via 192.168.50.9 dev eth0 ", True),
        ("10.77.9.0/24 via 192.168.50.9 dev eth0 proto static metric 100 ", True),
        ("10.77.9.0/24 dev docker0 proto kernel scope link src 10.77.9.1 ", False),
        ("10.77.8.0/24 via 192.168.50.9 dev eth0 ", False),
        ("10.77.0.0/16 via 192.168.50.9 dev eth0 ", False),
        ("110.77.9.0/24 via 192.168.50.9 dev eth0 ", False),
        ("default via 10.77.9.0/24 dev eth0 ", False),
        ("", False),
    ],
)
def test_a_route_of_the_subnet_with_a_gateway_is_foreign(route: str, is_foreign: bool) -> None:
    assert foreign_routes("10.77.9.1/24", [route]) == [route] * is_foreign


@pytest.mark.parametrize("subnet", ["", "10.77.9.1", "nonsense", "10.77.9.x/24"])
def test_an_invalid_subnet_has_no_foreign_routes(subnet: str) -> None:
    assert foreign_routes(subnet, ["10.77.9.0/24 via 192.168.50.9 dev eth0"]) == []
