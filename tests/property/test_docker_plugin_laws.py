"""Laws of the Docker plugin: no address twice, no overlap, nothing left, and no request that makes the plugin
fail.
"""

import json
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import combinations
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import DockerPluginError, WireError
from pyflannel.model.docker import DockerEndpoint, DockerNetwork, DockerState
from pyflannel.plan.docker_plugin import (
    add_network,
    divide,
    put_endpoint,
    release_address,
    release_pool,
    remove_endpoint,
    remove_network,
    request_address,
    request_pool,
    without_dead,
)
from pyflannel.wire.docker_plugin import (
    AddressRequest,
    EndpointRequest,
    NetworkRequest,
    PoolReference,
    PoolRequest,
    format_state,
    parse_request,
    parse_state,
)

HOST = IPv4Network("10.100.3.0/24")
DIVISION = divide(HOST)
Given = tuple[str, IPv4Address]


class Docker:
    """An engine that creates networks and containers, and ends them in any order."""

    def __init__(self) -> None:
        self.state = DockerState()
        self.given: list[Given] = []
        self.containers: dict[str, Given] = {}
        self._number = 0

    def restart(self) -> None:
        """Read the state as the next daemon does."""
        self.state = parse_state(format_state(self.state))

    def create_network(self, options: dict[str, str], wanted: IPv4Network | None) -> None:
        self.state, pool = request_pool(self.state, HOST, (), wanted=wanted, choice=None, options=options)
        self.state, _, gateway = request_address(self.state, pool.name, None)
        self._number += 1
        network = DockerNetwork(
            name=f"{self._number:064}", gateway=IPv4Interface((gateway, pool.subnet.prefixlen))
        )
        self.state = add_network(self.state, network, ())
        self.given.append((pool.name, gateway))

    def start(self, place: int, wanted: int | None) -> None:
        network = list(self.state.networks.values())[place % len(self.state.networks)]
        pool = next(one for one in self.state.pools.values() if one.subnet == network.subnet)
        address = None if wanted is None else pool.subnet[wanted % pool.subnet.num_addresses]
        self.state, _, found = request_address(self.state, pool.name, address)
        self._number += 1
        name = f"{self._number:064}"
        endpoint = DockerEndpoint(
            name=name,
            network=network.name,
            address=IPv4Interface((found, pool.subnet.prefixlen)),
            mac="02:42:00:00:00:00",
            sandbox=f"/netns/{name}",
        )
        self.state = put_endpoint(self.state, endpoint)
        self.given.append((pool.name, found))
        self.containers[name] = pool.name, found

    def end(self, place: int) -> None:
        name = list(self.containers)[place % len(self.containers)]
        pool, address = self.containers.pop(name)
        self.state = remove_endpoint(self.state, name)
        self.state = release_address(self.state, pool, address)
        self.given.remove((pool, address))

    def collect(self) -> None:
        """Remove the objects of ended containers while all containers run, which changes nothing."""
        links = [endpoint.link for endpoint in self.state.endpoints.values()]
        assert without_dead(self.state, links) == self.state

    def remove_network(self, network: DockerNetwork) -> None:
        """Remove a network in the order of Docker's requests."""
        pool = f"flannel/{network.subnet}"
        self.state = release_address(self.state, pool, network.gateway.ip)
        self.state = release_pool(self.state, pool)
        self.state = remove_network(self.state, network.name)
        self.given.remove((pool, network.gateway.ip))


steps = st.lists(
    st.tuples(
        st.sampled_from(["network", "network", "start", "start", "start", "end", "restart", "collect"]),
        st.integers(0, 300),
        st.none() | st.integers(0, 300),
    ),
    max_size=60,
)


def perform(docker: Docker, kind: str, place: int, wanted: int | None) -> None:
    match kind:
        case "network":
            length = {} if wanted is None else {"flannel.subnet-len": str(24 + wanted % 7)}
            subnet = (
                None
                if wanted is None or wanted % 2
                else IPv4Network((HOST[place % 256], 32)).supernet(new_prefix=25 + wanted % 6)
            )
            docker.create_network(length, subnet)
        case "start" if docker.state.networks:
            docker.start(place, wanted)
        case "end" if docker.containers:
            docker.end(place)
        case "restart":
            docker.restart()
        case "collect":
            docker.collect()
        case _:
            pass


@given(steps)
def test_no_address_is_assigned_twice_and_no_object_is_left(
    history: list[tuple[str, int, int | None]],
) -> None:
    docker = Docker()
    assert DIVISION is not None

    for step in history:
        with suppress(DockerPluginError):
            perform(docker, *step)
        addresses = [address for _, address in docker.given]
        assert len(set(addresses)) == len(addresses)
        parts = [pool.subnet for pool in docker.state.pools.values()]
        parts += [DIVISION.docker0, DIVISION.cni]
        assert not any(one.overlaps(other) for one, other in combinations(parts, 2))

    while docker.containers:
        docker.end(0)
    for network in tuple(docker.state.networks.values()):
        docker.remove_network(network)
    kept = {name for name, _ in docker.given}
    assert not docker.state.networks
    assert not docker.state.endpoints
    assert not kept


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["PoolID", "Pool", "SubPool", "Address", "Options", "V6", "NetworkID", "EndpointID", "IPv4Data"]
requests = st.dictionaries(st.sampled_from([*NAMES, "Interface", "SandboxKey"]), values) | values
KINDS = (PoolRequest, PoolReference, AddressRequest, NetworkRequest, EndpointRequest)


def read_all(request: Any) -> None:
    """Read each part of a request that needs more than its JSON type."""
    if isinstance(request, EndpointRequest):
        assert request.address is None or request.address.version == 4
        request.ports(IPv4Address("10.1.2.3"))
    if isinstance(request, NetworkRequest):
        assert isinstance(request.is_internal, bool)
        assert list(request.driver_options) is not None


@given(
    st.sampled_from(KINDS), requests.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60)
)
def test_a_request_is_read_or_refused(kind: type[Any], body: bytes) -> None:
    with suppress(WireError, DockerPluginError):
        read_all(parse_request(body, kind))


@given(requests.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60))
def test_a_saved_state_is_read_or_refused(body: bytes) -> None:
    with suppress(WireError):
        parse_state(body)
