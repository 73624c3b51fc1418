"""Decisions of the Docker plugin about parts of the subnet, pools and addresses."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from pyflannel.errors import DockerPluginError
from pyflannel.model.docker import DockerNetwork, DockerState, Pool
from pyflannel.plan.docker_plugin import (
    add_network,
    divide,
    mac_of,
    release_address,
    release_pool,
    request_address,
    request_pool,
)

HOST = IPv4Network("10.100.3.0/24")
EMPTY = DockerState()


def pool(
    state: DockerState = EMPTY,
    *,
    wanted: str = "",
    choice: str = "",
    taken: tuple[str, ...] = (),
    options: Mapping[str, str] | None = None,
    host: IPv4Network = HOST,
) -> tuple[DockerState, Pool]:
    return request_pool(
        state,
        host,
        tuple(map(IPv4Network, taken)),
        wanted=IPv4Network(wanted) if wanted else None,
        choice=IPv4Network(choice) if choice else None,
        options=options or {},
    )


@pytest.mark.parametrize("length", [8, 16, 20, 24, 26])
def test_the_parts_of_a_subnet_are_disjoint_and_complete(length: int) -> None:
    host = IPv4Network(f"10.0.0.0/{length}")
    division = divide(host)

    assert division is not None
    parts = (division.docker0, division.cni, *division.networks)
    assert sum(part.num_addresses for part in parts) == host.num_addresses
    assert len(set(parts)) == 8


def test_a_small_subnet_has_no_parts() -> None:
    assert divide(IPv4Network("10.0.0.0/27")) is None


def test_each_network_gets_a_different_part() -> None:
    state, pools = EMPTY, []
    for _ in range(6):
        state, given = pool(state)
        pools.append(str(given.subnet))

    assert pools == [f"10.100.3.{base}/27" for base in (64, 96, 128, 160, 192, 224)]


def test_the_request_after_the_last_part_is_refused() -> None:
    """Docker repeats a request while the answer overlaps a route of the host, and ends with the refusal."""
    state = EMPTY
    for _ in range(6):
        state, _ = pool(state)

    with pytest.raises(DockerPluginError, match="is free"):
        pool(state)


def test_a_part_with_a_route_of_another_program_is_not_assigned() -> None:
    _, given = pool(taken=("10.100.3.64/26",))

    assert given.subnet == IPv4Network("10.100.3.128/27")


@pytest.mark.parametrize("route", ["10.100.3.0/24", "10.100.0.0/16"])
def test_a_route_that_contains_the_subnet_is_named_in_the_refusal(route: str) -> None:
    with pytest.raises(DockerPluginError, match=route) as refused:
        pool(taken=(route,))

    assert "mk-docker-opts" in refused.value.hint


def test_a_released_part_is_assigned_again() -> None:
    state, first = pool()

    _, again = pool(release_pool(state, first.name))

    assert again == first


def test_a_network_may_be_larger_or_smaller() -> None:
    state, large = pool(options={"flannel.subnet-len": "26"})
    _, small = pool(state, options={"flannel.subnet-len": "29"})

    assert (str(large.subnet), str(small.subnet)) == ("10.100.3.64/26", "10.100.3.128/29")


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [
        ("10.99.0.0/24", "not a part of the subnet"),
        ("10.100.3.0/24", "not a part of the subnet"),
        ("10.100.0.0/16", "not a part of the subnet"),
        ("10.100.3.0/27", "part of docker0"),
        ("10.100.3.32/28", "part of CNI"),
        ("10.100.3.64/30", "too small"),
        ("10.100.3.64/26", "which this host uses"),
    ],
)
def test_a_subnet_that_the_user_chose_is_checked(wanted: str, reason: str) -> None:
    state, _ = pool()

    with pytest.raises(DockerPluginError, match=reason):
        pool(state, wanted=wanted)


def test_a_subnet_that_the_user_chose_is_assigned() -> None:
    state, given = pool(wanted="10.100.3.128/25", choice="10.100.3.192/26")
    _, _, address = request_address(state, given.name, None)

    assert (given.subnet, address) == (IPv4Network("10.100.3.128/25"), IPv4Address("10.100.3.193"))


def test_a_range_outside_the_subnet_is_refused() -> None:
    with pytest.raises(DockerPluginError, match="is not in the subnet"):
        pool(wanted="10.100.3.128/25", choice="10.100.3.64/27")


@pytest.mark.parametrize(
    "options",
    [
        {"color": "red"},
        {"flannel.subnet-len": "x"},
        {"flannel.subnet-len": "30"},
    ],
)
def test_an_unknown_or_wrong_option_is_refused(options: Mapping[str, str]) -> None:
    with pytest.raises(DockerPluginError, match=next(iter(options))):
        pool(options=options)


def test_a_subnet_without_parts_is_refused() -> None:
    with pytest.raises(DockerPluginError, match="too small"):
        pool(host=IPv4Network("10.100.3.0/28"))


def test_no_address_is_assigned_twice() -> None:
    state, given = pool()
    addresses = []
    for _ in range(30):
        state, _, address = request_address(state, given.name, None)
        addresses.append(address)

    assert len(set(addresses)) == 30
    assert set(addresses) == set(given.subnet.hosts())
    with pytest.raises(DockerPluginError, match="every address"):
        request_address(state, given.name, None)


def test_a_released_address_is_assigned_again() -> None:
    state, given = pool()
    state, _, first = request_address(state, given.name, None)

    _, _, again = request_address(release_address(state, given.name, first), given.name, None)

    assert again == first


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("10.100.3.65", "in use"),
        ("10.100.3.64", "first or the last"),
        ("10.100.3.95", "first or the last"),
        ("10.100.4.1", "not in the subnet"),
    ],
)
def test_an_address_that_the_user_chose_is_checked(address: str, reason: str) -> None:
    state, given = pool()
    state, _, _ = request_address(state, given.name, None)

    with pytest.raises(DockerPluginError, match=reason):
        request_address(state, given.name, IPv4Address(address))


def test_an_unknown_pool_is_refused_and_released() -> None:
    with pytest.raises(DockerPluginError, match="does not exist"):
        request_address(EMPTY, "flannel/10.1.0.0/27", None)
    assert release_address(EMPTY, "flannel/10.1.0.0/27", IPv4Address("10.1.0.1")) == EMPTY
    assert release_pool(EMPTY, "flannel/10.1.0.0/27") == EMPTY


def test_a_network_of_another_ipam_driver_is_refused_with_the_correct_command() -> None:
    network = DockerNetwork(name="n", gateway=IPv4Interface("172.18.0.1/16"))

    with pytest.raises(DockerPluginError) as refused:
        add_network(EMPTY, network, ())

    assert "docker network create -d flannel --ipam-driver flannel NAME" in refused.value.hint


def test_an_unknown_option_of_a_network_is_refused() -> None:
    state, given = pool()
    network = DockerNetwork(name="n", gateway=IPv4Interface("10.100.3.65/27"))
    assert given.subnet == network.subnet

    with pytest.raises(DockerPluginError, match="color"):
        add_network(state, network, ["color"])


def test_the_mac_address_is_that_of_dockers_bridge_driver() -> None:
    assert mac_of(IPv4Address("172.17.0.2")) == "02:42:ac:11:00:02"
