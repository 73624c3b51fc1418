"""Docker's plugin protocol: requests of a real engine, answers, and the saved state."""

import json
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

import pytest
from msgspec.structs import replace

from pyflannel.errors import DockerPluginError, FlannelError, WireError
from pyflannel.model.docker import DockerEndpoint, DockerNetwork, DockerState, Ipv6Pool, Pool, PublishedPort
from pyflannel.wire.docker_plugin import (
    AddressRequest,
    EndpointRequest,
    NetworkRequest,
    PoolRequest,
    error_answer,
    format_state,
    join_answer,
    parse_request,
    parse_state,
)

SUBNET = IPv4Network("10.100.3.64/27")
ADDRESS = IPv4Address("10.100.3.66")
PORT = PublishedPort(protocol="tcp", host_port=8080, address=ADDRESS, port=80)
IPV6_SUBNET = IPv6Network("fd00:5::/80")
NETWORK = DockerNetwork(
    name="n" * 64,
    gateway=IPv4Interface("10.100.3.65/27"),
    ipv6_gateway=IPv6Interface("fd00:5::1/80"),
)
ENDPOINT = DockerEndpoint(
    name="e" * 64,
    network="n" * 64,
    address=IPv4Interface("10.100.3.66/27"),
    mac="02:42:0a:64:03:42",
    sandbox="/var/run/docker/netns/5d",
    ports=(PORT,),
    ipv6_address=IPv6Interface("fd00:5::2/80"),
)
STATE = DockerState(
    pools={"flannel/10.100.3.64/27": Pool(subnet=SUBNET, choice=SUBNET, used=frozenset([ADDRESS]))},
    networks={"n" * 64: NETWORK},
    endpoints={ENDPOINT.name: ENDPOINT},
    others={"red": IPv4Network("10.102.0.0/16")},
    ipv6_pools={"flannel/fd00:5::/80": Ipv6Pool(subnet=IPV6_SUBNET, choice=IPV6_SUBNET)},
    ipv6_others={"red": IPv6Network("fd00:6::/48")},
)


def program(*bindings: dict[str, object]) -> EndpointRequest:
    options = {"com.docker.network.portmap": list(bindings)}
    request = {"NetworkID": "n", "EndpointID": "e", "Options": options}
    return parse_request(json.dumps(request).encode(), EndpointRequest)


def binding(**changes: object) -> dict[str, object]:
    """A published port as Docker 20.10 sends it."""
    usual = {"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}
    return {**usual, **changes}


def test_a_pool_request_without_options_is_read() -> None:
    body = b'{"AddressSpace":"flannel","Pool":"","SubPool":"","Options":null,"V6":false}'

    assert parse_request(body, PoolRequest) == PoolRequest()


def test_a_request_for_the_gateway_is_recognised() -> None:
    body = b'{"PoolID":"p","Address":"","Options":{"RequestAddressType":"com.docker.network.gateway"}}'

    assert parse_request(body, AddressRequest).is_for_gateway


def test_the_options_of_a_network_are_read() -> None:
    options = {"com.docker.network.generic": {"a": "b"}, "com.docker.network.internal": True}
    body = json.dumps({"NetworkID": "n", "Options": options, "IPv4Data": [{"Pool": "10.1.0.0/24"}]})

    request = parse_request(body.encode(), NetworkRequest)

    assert (dict(request.driver_options), request.is_internal, request.has_ipv6) == ({"a": "b"}, True, False)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"PoolID":1}', b"[" * 100_000])
def test_another_body_is_refused(body: bytes) -> None:
    with pytest.raises(WireError):
        parse_request(body, AddressRequest)


def test_a_published_port_is_read() -> None:
    assert program(binding(HostIP="0.0.0.0")).ports(ADDRESS) == (PORT,)


def test_a_published_port_at_one_address_is_read() -> None:
    (port,) = program(binding(HostIP="127.0.0.1", Proto=17)).ports(ADDRESS)

    assert (port.host_address, str(port)) == (IPv4Address("127.0.0.1"), "127.0.0.1:8080/udp")


@pytest.mark.parametrize(
    "changes",
    [
        {"HostPort": 0, "HostPortEnd": 0},
        {"HostPort": 8000, "HostPortEnd": 8010},
        {"HostIP": "2001:db8::1"},
    ],
)
def test_a_port_that_cannot_be_published_is_refused_with_the_remedy(changes: dict[str, object]) -> None:
    with pytest.raises(DockerPluginError) as refused:
        program(binding(**changes)).ports(ADDRESS)

    assert refused.value.hint


def test_an_error_has_the_keys_of_both_drivers() -> None:
    error = FlannelError("it failed", hint="Try again.")

    assert error_answer(error) == {"Err": "it failed. Try again.", "Error": "it failed. Try again."}


def test_an_internal_network_has_no_default_route() -> None:
    routes = (IPv4Network("10.100.128.0/17"),)

    answer = join_answer(ENDPOINT, replace(NETWORK, is_internal=True), routes)

    assert answer == {
        "InterfaceName": {"SrcName": "flceeeeeeeeeeee", "DstPrefix": "eth"},
        "Gateway": "",
        "GatewayIPv6": "",
        "StaticRoutes": [{"Destination": "10.100.128.0/17", "RouteType": 0, "NextHop": "10.100.3.65"}],
    }


def test_the_state_is_read_as_it_was_written() -> None:
    assert parse_state(format_state(STATE)) == STATE


@pytest.mark.parametrize("length", [0, 10, 100])
def test_a_state_cut_short_is_refused(length: int) -> None:
    with pytest.raises(WireError):
        parse_state(format_state(STATE)[:length])
