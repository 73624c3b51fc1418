"""The network plugin for Docker on doubles: the requests of a real engine, faults and restarts."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from functools import partial
from ipaddress import IPv4Interface, IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from doubles.docker_host import (
    ADDRESS,
    ENDPOINT,
    NETWORK,
    OTHER,
    Caller,
    DockerHost,
    Links,
    Memory,
    nothing,
    portmap,
)
from doubles.fake_clock import FakeClock
from pyflannel.engine.docker_networks import DockerNetworks
from pyflannel.engine.docker_plugin import DockerPlugin
from pyflannel.kernel.host.files import FileMemory
from pyflannel.model.docker import NO_DOCKER


class Engine(Caller):
    """Docker's engine on a host with one flannel network."""

    def __init__(self, memory: "Memory | FileMemory") -> None:
        self.memory = memory
        self.clock = FakeClock()
        self.host = DockerHost()
        self.links = Links(self.host)
        self.plugin = DockerPlugin(host=self.host, links=self.links, memory=memory, clock=self.clock)
        networks = DockerNetworks(has_names=False, remembered=dict)
        networks.add(self.plugin)
        super().__init__(networks)

    async def create_network(self, name: str = NETWORK, **options: object) -> dict[str, Any]:
        pool = await self.ask("IpamDriver.RequestPool", Pool="", Options={}, V6=False)
        if "Err" in pool:
            return pool
        kind = {"RequestAddressType": "com.docker.network.gateway"}
        gateway = await self.ask("IpamDriver.RequestAddress", PoolID=pool["PoolID"], Options=kind)
        data = {"Pool": pool["Pool"], "Gateway": gateway["Address"]}
        made = await self.ask("NetworkDriver.CreateNetwork", NetworkID=name, IPv4Data=[data], Options=options)
        return {**pool, **gateway, **made}

    async def start(self, endpoint: str = ENDPOINT, **options: object) -> dict[str, Any]:
        """Start a container as `docker run` does. Return the answer to Join, or the first error."""
        pool = next(iter(json.loads(self.memory.content or b"{}")["pools"]))
        given = await self.ask("IpamDriver.RequestAddress", PoolID=pool, Address="")
        if "Err" in given:
            return given
        about: dict[str, object] = {"NetworkID": NETWORK, "EndpointID": endpoint}
        made = await self.ask(
            "NetworkDriver.CreateEndpoint", **about, Interface={"Address": given["Address"]}
        )
        if "Err" in made:
            return made
        joined = await self.ask("NetworkDriver.Join", **about, SandboxKey=f"/netns/{endpoint[:2]}")
        if "Err" in joined or not options:
            return joined
        return await self.ask("NetworkDriver.ProgramExternalConnectivity", **about, Options=options)

    async def stop(self, endpoint: str = ENDPOINT) -> None:
        about: dict[str, object] = {"NetworkID": NETWORK, "EndpointID": endpoint}
        for method in ("RevokeExternalConnectivity", "Leave", "DeleteEndpoint"):
            assert await self.ask(f"NetworkDriver.{method}", **about) == {}


def run(act: Callable[[Engine], Coroutine[Any, Any, None]], memory: Memory | None = None) -> Engine:
    async def main() -> Engine:
        engine = Engine(memory or Memory())
        await engine.plugin.load()
        await act(engine)
        return engine

    return asyncio.run(main())


def test_a_network_and_a_container_are_created_and_removed() -> None:
    async def act(engine: Engine) -> None:
        made = await engine.create_network()
        assert (made["Pool"], made["Address"]) == ("10.100.3.64/27", "10.100.3.65/27")
        assert [one.gateway for one in engine.host.parts.networks] == [IPv4Interface("10.100.3.65/27")]

        joined = await engine.start()
        assert joined["InterfaceName"] == {"SrcName": "flceeeeeeeeeeee", "DstPrefix": "eth"}
        assert joined["Gateway"] == "10.100.3.65"
        assert engine.links.veths == {"flveeeeeeeeeeee": "flbr-4444444444"}

        await engine.stop()
        for address in ("10.100.3.66", "10.100.3.65"):
            await engine.ask("IpamDriver.ReleaseAddress", PoolID=made["PoolID"], Address=address)
        await engine.ask("IpamDriver.ReleasePool", PoolID=made["PoolID"])
        assert await engine.ask("NetworkDriver.DeleteNetwork", NetworkID=NETWORK) == {}

    engine = run(act)

    assert (engine.host.parts, engine.links.veths) == (NO_DOCKER, {})
    assert not any(json.loads(engine.memory.content or b"").values())


def test_a_container_gets_routes_to_other_hosts_once_and_none_to_the_subnet_of_this_host() -> None:
    """Docker refuses a second network of a container if its prefix is within an existing route."""

    async def act(engine: Engine) -> None:
        await engine.create_network()
        first = await engine.start()
        routes = [IPv4Network(route["Destination"]) for route in first["StaticRoutes"]]
        assert not any(route.overlaps(engine.host.own) for route in routes)
        assert sum(route.num_addresses for route in routes) == 2**16 - 2**8

        second = await engine.ask(
            "NetworkDriver.CreateEndpoint",
            NetworkID=NETWORK,
            EndpointID=OTHER,
            Interface={"Address": "10.100.3.70/27"},
        )
        assert second == {"Interface": {"MacAddress": "02:42:0a:64:03:46"}}
        joined = await engine.ask(
            "NetworkDriver.Join", NetworkID=NETWORK, EndpointID=OTHER, SandboxKey="/netns/ee"
        )
        assert joined["StaticRoutes"] == []

    run(act)


def test_no_address_is_assigned_twice_after_a_restart() -> None:
    memory = Memory()

    async def before(engine: Engine) -> None:
        await engine.create_network()
        await engine.start(**portmap(8080))

    async def after(engine: Engine) -> None:
        assert [port.host_port for port in engine.host.parts.ports] == [8080]
        await engine.start(OTHER)
        assert (await engine.create_network("5" * 64))["Pool"] == "10.100.3.96/27"

    run(before, memory)
    run(after, memory)

    addresses = {one["address"] for one in json.loads(memory.content or b"")["endpoints"].values()}
    assert addresses == {ADDRESS, "10.100.3.67/27"}


def test_a_port_is_published_once() -> None:
    async def act(engine: Engine) -> None:
        await engine.create_network()
        assert await engine.start(**portmap(8080)) == {}
        assert engine.links.loopback == {"flbr-4444444444"}

        refused = await engine.start(OTHER, **portmap(8080))
        assert "port 0.0.0.0:8080/tcp of this host is in use" in refused["Err"]

        await engine.stop()
        assert engine.host.parts.ports == ()

    run(act)


def test_the_status_shows_networks_and_published_ports() -> None:
    async def act(engine: Engine) -> None:
        await engine.create_network()
        await engine.ask("IpamDriver.RequestPool", Pool="", Options={})
        await engine.start(**portmap(8080))

        status = engine.plugin.status()

        shown = [(str(one.subnet), one.bridge, one.used, one.usable) for one in status.networks]
        assert shown == [("10.100.3.64/27", "flbr-4444444444", 2, 30), ("10.100.3.96/27", "", 0, 30)]
        (port,) = status.ports
        assert (port.host_port, str(port.address), port.port) == (8080, "10.100.3.66", 80)

    run(act)


def test_a_port_of_another_program_is_refused() -> None:
    async def act(engine: Engine) -> None:
        engine.links.used_ports.add(8080)
        await engine.create_network()

        assert "in use" in (await engine.start(**portmap(8080)))["Err"]
        assert engine.host.parts.ports == ()

    run(act)


def test_a_host_without_a_lease_refuses_with_the_reason() -> None:
    async def act(engine: Engine) -> None:
        engine.host.is_ready = False

        assert "waits for the store" in (await engine.create_network())["Err"]

    run(act)


def test_a_bridge_that_does_not_appear_leaves_no_network() -> None:
    async def act(engine: Engine) -> None:
        engine.host.is_stuck = True
        creating = asyncio.ensure_future(engine.create_network())
        for _ in range(2000):
            await asyncio.sleep(0)
            await engine.clock.advance(0.01)
            if creating.done():
                break

        assert "EPERM" in (await creating)["Err"]
        assert engine.host.parts == NO_DOCKER

    run(act)


def test_a_full_disk_changes_nothing() -> None:
    async def act(engine: Engine) -> None:
        await engine.create_network()
        engine.memory.is_full = True
        before, parts = engine.memory.content, engine.host.parts

        assert "cannot save" in (await engine.start())["Err"]
        assert (engine.memory.content, engine.host.parts) == (before, parts)

    run(act)


def test_a_damaged_state_file_is_refused_and_not_overwritten() -> None:
    memory = Memory(b'{"pools":')

    async def act(engine: Engine) -> None:
        assert "damaged" in (await engine.create_network())["Err"]

    run(act, memory)

    assert memory.content == b'{"pools":'


def test_an_unreadable_state_file_is_refused_and_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "docker-networks.json"
    path.mkdir()

    async def main() -> None:
        engine = Engine(FileMemory(path, is_vital=True))
        await engine.plugin.load()
        assert "cannot be read" in (await engine.create_network())["Err"]

    asyncio.run(main())

    assert path.is_dir()


def test_a_network_of_another_subnet_refuses_containers() -> None:
    async def act(engine: Engine) -> None:
        await engine.create_network()
        engine.host.own = IPv4Network("10.100.9.0/24")

        assert "Remove the network and create it again" in (await engine.start())["Err"]

    run(act)


def test_a_container_is_connected_again_after_its_bridge_was_created_again() -> None:
    async def act(engine: Engine) -> None:
        await engine.create_network()
        await engine.start(**portmap(8080))
        async with engine.clock.running(engine.plugin.run(nothing)):
            engine.links.veths["flveeeeeeeeeeee"] = ""
            engine.links.loopback.clear()
            engine.host.progress.set()
            await engine.clock.settle()

            assert engine.links.veths == {"flveeeeeeeeeeee": "flbr-4444444444"}
            assert engine.links.loopback == {"flbr-4444444444"}

    run(act)


@pytest.mark.parametrize("method", ["Leave", "DeleteEndpoint", "RevokeExternalConnectivity"])
def test_the_request_to_end_an_unknown_container_succeeds(method: str) -> None:
    async def act(engine: Engine) -> None:
        about: dict[str, object] = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
        assert await engine.ask(f"NetworkDriver.{method}", **about) == {}

    run(act)


def test_an_unknown_network_is_refused_with_the_remedy() -> None:
    async def act(engine: Engine) -> None:
        about: dict[str, object] = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
        refused = await engine.ask("NetworkDriver.CreateEndpoint", **about, Interface={"Address": ADDRESS})

        assert "Remove the network and create it again" in refused["Err"]

    run(act)


def test_an_address_whose_release_was_not_received_is_assigned_when_no_other_is_free() -> None:
    async def act(engine: Engine) -> None:
        pool = (await engine.create_network())["PoolID"]
        await engine.start()
        engine.links.veths.clear()
        while "Err" not in (given := await engine.ask("IpamDriver.RequestAddress", PoolID=pool)):
            last = given["Address"]

        assert last == ADDRESS

    run(act)


def test_the_late_end_of_a_container_does_not_free_the_address_of_its_successor() -> None:
    async def act(engine: Engine) -> None:
        pool = (await engine.create_network())["PoolID"]
        await engine.start()
        engine.links.veths.clear()
        wish = {"PoolID": pool, "Address": "10.100.3.66"}
        await engine.ask("IpamDriver.RequestAddress", **wish)
        about = {"NetworkID": NETWORK, "EndpointID": OTHER}
        await engine.ask("NetworkDriver.CreateEndpoint", **about, Interface={"Address": ADDRESS})

        await engine.stop()
        await engine.ask("IpamDriver.ReleaseAddress", **wish)

        assert "is in use" in (await engine.ask("IpamDriver.RequestAddress", **wish))["Err"]

    run(act)


def test_fifty_containers_at_once_have_fifty_addresses() -> None:
    async def act(engine: Engine) -> None:
        await engine.ask("IpamDriver.RequestPool", Pool="", Options={"flannel.subnet-len": "25"})
        pool = "flannel/10.100.3.128/25"
        answers = await asyncio.gather(
            *(engine.ask("IpamDriver.RequestAddress", PoolID=pool) for _ in range(50))
        )
        assert len({answer["Address"] for answer in answers}) == 50

    run(act)


def test_a_network_with_both_families_gives_addresses_of_both() -> None:
    memory = Memory()

    async def act(engine: Engine) -> None:
        engine.host.ipv6_network = IPv6Network("fd00:5::/48")
        about: dict[str, object] = {"NetworkID": NETWORK, "EndpointID": ENDPOINT}
        kind = {"RequestAddressType": "com.docker.network.gateway"}
        ask_pool = partial(engine.ask, "IpamDriver.RequestPool", Pool="", Options={})
        pools = [await ask_pool(V6=False), await ask_pool(V6=True)]
        assert pools[1]["Pool"] == "fd00:5:0:0:4000::/80"
        gateways = [
            await engine.ask("IpamDriver.RequestAddress", PoolID=pool["PoolID"], Options=kind)
            for pool in pools
        ]
        ipv4, ipv6 = (
            {"Pool": pool["Pool"], "Gateway": gateway["Address"]}
            for pool, gateway in zip(pools, gateways, strict=True)
        )
        made = await engine.ask(
            "NetworkDriver.CreateNetwork",
            NetworkID=NETWORK,
            IPv4Data=[ipv4],
            IPv6Data=[ipv6],
            Options={"com.docker.network.enable_ipv6": True},
        )
        assert made == {}
        given = [
            (await engine.ask("IpamDriver.RequestAddress", PoolID=pool["PoolID"]))["Address"]
            for pool in pools
        ]
        assert given == ["10.100.3.66/27", "fd00:5::4000:0:0:2/80"]
        both = {"Address": given[0], "AddressIPv6": given[1]}
        await engine.ask("NetworkDriver.CreateEndpoint", **about, Interface=both)
        joined = await engine.ask("NetworkDriver.Join", **about, SandboxKey="/netns/ee")
        assert (joined["Gateway"], joined["GatewayIPv6"]) == ("10.100.3.65", "fd00:5::4000:0:0:1")
        hops = {route["Destination"]: route["NextHop"] for route in joined["StaticRoutes"]}
        assert hops["fd00:5:0:8000::/49"] == "fd00:5::4000:0:0:1"
        assert hops["10.100.128.0/17"] == "10.100.3.65"
        network = engine.host.parts.networks[0]
        assert str(network.ipv6_gateway) == "fd00:5::4000:0:0:1/80"

    async def after(engine: Engine) -> None:
        engine.host.ipv6_network = IPv6Network("fd00:5::/48")
        pool = "flannel/fd00:5:0:0:4000::/80"
        again = await engine.ask("IpamDriver.RequestAddress", PoolID=pool)
        assert again["Address"] == "fd00:5::4000:0:0:3/80"
        await engine.stop()
        await engine.ask("IpamDriver.ReleaseAddress", PoolID=pool, Address="fd00:5::4000:0:0:2")
        again = await engine.ask("IpamDriver.RequestAddress", PoolID=pool)
        assert again["Address"] == "fd00:5::4000:0:0:2/80"

    run(act, memory)
    run(after, memory)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("fd00:5::/80", "is not a free part of fd00:5:0:0:4000:: to"),
        ("fd00:6::/80", "is not a free part of"),
        ("fd00:5:0:0:4000::/124", "is not a free part of"),
        ("10.100.3.64/27", "is not an address of IPv6"),
    ],
)
def test_an_ipv6_subnet_of_the_user_is_checked(wanted: str, message: str) -> None:
    async def act(engine: Engine) -> None:
        engine.host.ipv6_network = IPv6Network("fd00:5::/48")
        refused = await engine.ask("IpamDriver.RequestPool", Pool=wanted, Options={}, V6=True)
        assert message in refused["Err"]

    run(act)


def test_a_flannel_network_without_ipv6_refuses_ipv6_with_the_remedy() -> None:
    async def act(engine: Engine) -> None:
        refused = await engine.ask("IpamDriver.RequestPool", Pool="", Options={}, V6=True)
        assert "Write a network config with EnableIPv6 and IPv6Network" in refused["Err"]

    run(act)


def test_one_flannel_network_without_a_name_cannot_be_chosen() -> None:
    async def act(engine: Engine) -> None:
        options = {"flannel.network": "blue"}
        refused = await engine.ask("IpamDriver.RequestPool", Pool="", Options=options, V6=False)
        assert "there is no flannel network blue" in refused["Err"]

    run(act)
