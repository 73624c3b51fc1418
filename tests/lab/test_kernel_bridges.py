"""The bridges of a real namespace, and the containers behind them while they start, change and end."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Interface
from typing import TypeVar

import pytest

from pyflannel.kernel.network.interfaces import KernelBridges
from pyflannel.model.host import Bridge, BridgedContainer

Result = TypeVar("Result")

CONTAINER = "10.100.15.2"
MAC = "02:42:0a:64:0f:02"


@pytest.fixture
def container(make_namespace):
    return make_namespace()


@pytest.fixture
def host(namespace, container):
    """A host with docker0 and one container that has sent a packet."""
    namespace.ip("link add docker0 type bridge")
    namespace.ip("address add 10.100.15.1/24 dev docker0")
    namespace.ip("link set docker0 up")
    plug_in(namespace, container, "veth1", CONTAINER, MAC)
    return namespace


def plug_in(host, container, port: str, address: str, mac: str) -> None:
    host.ip(f"link add {port} type veth peer name eth0 netns {container.name}")
    host.ip(f"link set {port} master docker0 up")
    container.ip(f"link set eth0 address {mac} up")
    container.ip(f"address add {address}/24 dev eth0")
    container.command("ping", "-c1", "-W5", "10.100.15.1")


def asked(namespace, work: Callable[[KernelBridges], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with KernelBridges() as source:
            return await work(source)

    return namespace.run(run)


def observed(namespace) -> tuple[Bridge, ...]:
    return asked(namespace, KernelBridges.observe)


def bridge(*obstacles: str, port: str = "veth1", mac: str = MAC) -> Bridge:
    return Bridge(
        name="docker0",
        addresses=(IPv4Interface("10.100.15.1/24"),),
        obstacles=obstacles,
        containers=(BridgedContainer(address=IPv4Address(CONTAINER), mac=mac, port=port),),
    )


def test_a_container_is_known_by_address_mac_and_port(host) -> None:
    assert observed(host) == (bridge(),)


def test_a_bridge_without_an_address_is_no_gateway(host) -> None:
    host.ip("link add br1 type bridge")

    assert [each.name for each in observed(host)] == ["docker0"]


@pytest.mark.parametrize(
    ("words", "obstacle"),
    [
        (
            "tc qdisc add dev docker0 root tbf rate 1gbit burst 64kb latency 10ms",
            "it has the queueing discipline tbf",
        ),
        ("nft add table bridge filter", "nftables has tables of the bridge family"),
    ],
)
def test_features_that_the_program_would_bypass_are_obstacles(host, words: str, obstacle: str) -> None:
    host.command(*words.split())

    assert observed(host) == (bridge(obstacle),)


def test_a_bridge_that_filters_vlans(host) -> None:
    try:
        host.ip("link set docker0 type bridge vlan_filtering 1")
    except AssertionError as error:
        if "not supported" not in str(error):
            raise
        pytest.skip("this kernel's bridges cannot filter VLANs (CONFIG_BRIDGE_VLAN_FILTERING)")

    assert observed(host) == (bridge("it filters VLANs"),)


def test_containers_behind_a_blocked_port_are_not_found(host) -> None:
    host.ip("link set docker0 type bridge stp_state 1")
    host.ip("link set veth1 down")
    host.ip("link set veth1 up")  # the port is in the STP state "listening" for half a minute
    host.command("bridge", "fdb", "replace", MAC, "dev", "veth1", "master", "static")
    assert "forwarding" not in host.command("bridge", "link", "show", "dev", "veth1")

    assert observed(host)[0].containers == ()


def test_other_tables_and_queues_are_no_obstacle(host) -> None:
    host.command("nft", "add", "table", "inet", "filter")
    words = "tc qdisc add dev veth1 root tbf rate 1gbit burst 64kb latency 10ms"
    host.command(*words.split())

    assert observed(host) == (bridge(),)


@pytest.mark.parametrize(
    "words",
    [
        "nft add table bridge filter",
        "ip link delete veth1",
        "ip neighbour replace 10.100.15.9 lladdr 02:42:0a:64:0f:09 dev docker0",
        "ip address add 10.100.15.254/24 dev docker0",
        "ip link set docker0 type bridge stp_state 1",
    ],
)
def test_each_change_is_announced(host, listen, words: str) -> None:
    async def work(source: KernelBridges) -> None:
        await source.observe()
        async with listen(source.changes()) as wakes:
            await asyncio.to_thread(host.command, *words.split())
            await wakes.next()

    asked(host, work)


def test_no_socket_is_open_before_the_first_use(namespace) -> None:
    """The kernel would queue a notification of each vxlan peer for an open socket."""

    async def work() -> None:
        before = os.listdir("/proc/self/fd")
        async with KernelBridges() as source:
            assert os.listdir("/proc/self/fd") == before
            await source.observe()
            assert len(os.listdir("/proc/self/fd")) > len(before)
        assert os.listdir("/proc/self/fd") == before

    namespace.run(work)


def test_a_container_that_moves_to_another_port_is_found_there(host, container) -> None:
    """The MAC address of the container changes too. The list contains only the new port."""
    host.ip("link delete veth1")
    plug_in(host, container, "veth2", CONTAINER, "02:42:0a:64:0f:99")

    assert observed(host) == (bridge(port="veth2", mac="02:42:0a:64:0f:99"),)
