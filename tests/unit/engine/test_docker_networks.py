"""The network plugin of Docker on a host with several flannel networks."""

import asyncio
from collections.abc import Callable, Coroutine
from ipaddress import IPv4Network
from typing import Any

import pytest

from doubles.docker_host import NETWORK, OTHER, Caller, DockerHost, Links, Memory, portmap
from doubles.fake_clock import FakeClock
from pyflannel.engine.docker_networks import DockerNetworks
from pyflannel.engine.docker_plugin import DockerPlugin
from pyflannel.model.docker import NO_DOCKER


class SeveralNetworks(Caller):
    """Docker's engine on a host with the flannel networks blue (10.101.0.0/16) and red (10.102.0.0/16)."""

    def __init__(self) -> None:
        self.memories = {name: Memory() for name in ("blue", "red")}
        self.hosts = {name: DockerHost() for name in self.memories}
        self.networks = DockerNetworks(has_names=True, remembered=lambda: self.memories)
        self.plugins: dict[str, DockerPlugin] = {}
        super().__init__(self.networks)
        for number, host in enumerate(self.hosts.values(), start=101):
            host.own = IPv4Network(f"10.{number}.3.0/24")

    async def start(self, name: str) -> None:
        host = self.hosts[name]
        self.plugins[name] = DockerPlugin(
            host=host, links=Links(host), memory=self.memories[name], clock=FakeClock(), network=name
        )
        await self.plugins[name].load()
        self.networks.add(self.plugins[name])

    async def create(
        self, driver: str | None, ipam: str | None, identifier: str = NETWORK, pool: str | None = None
    ) -> dict[str, Any]:
        """Create a network with these values of `-o flannel.network` and of `--ipam-opt`."""
        given = {"Pool": pool}
        if pool is None:
            options = {} if ipam is None else {"flannel.network": ipam}
            given = await self.ask("IpamDriver.RequestPool", Pool="", Options=options, V6=False)
        if "Err" in given:
            return given
        data = {"Pool": given["Pool"], "Gateway": str(given["Pool"]).replace("64/27", "65/27")}
        generic = {} if driver is None else {"flannel.network": driver}
        made = await self.ask(
            "NetworkDriver.CreateNetwork",
            NetworkID=identifier,
            IPv4Data=[data],
            Options={"com.docker.network.generic": generic},
        )
        if "Err" in made and "PoolID" in given:
            await self.ask("IpamDriver.ReleasePool", PoolID=given["PoolID"])
        return {**given, **made}


def run_several(act: Callable[[SeveralNetworks], Coroutine[Any, Any, None]]) -> SeveralNetworks:
    async def main() -> SeveralNetworks:
        several = SeveralNetworks()
        for name in several.memories:
            await several.start(name)
        await act(several)
        return several

    return asyncio.run(main())


BLUE = "docker network create -d flannel --ipam-driver flannel -o flannel.network=blue"


@pytest.mark.parametrize(
    ("driver", "ipam", "message"),
    [
        (None, None, f"Run, for example: {BLUE} --ipam-opt flannel.network=blue NAME"),
        ("blue", None, f"Run, for example: {BLUE} --ipam-opt flannel.network=blue NAME"),
        (None, "blue", f"it is missing. Run: {BLUE} --ipam-opt flannel.network=blue NAME"),
        ("red", "blue", f"it is red. Run: {BLUE} --ipam-opt flannel.network=blue NAME"),
        (
            "green",
            "green",
            "the flannel network green does not exist on this host; the existing networks are: blue, red",
        ),
        (
            "green",
            "blue",
            "the flannel network green does not exist on this host; the existing networks are: blue, red",
        ),
    ],
)
def test_a_choice_of_the_flannel_network_without_both_options_is_refused(
    driver: str | None, ipam: str | None, message: str
) -> None:
    async def act(several: SeveralNetworks) -> None:
        assert message in (await several.create(driver, ipam))["Err"]

    several = run_several(act)

    assert [host.parts.networks for host in several.hosts.values()] == [(), ()]
    assert not any(plugin.status().networks for plugin in several.plugins.values())


def test_addresses_of_another_ipam_driver_are_refused_with_the_command_for_the_flannel_network() -> None:
    async def act(several: SeveralNetworks) -> None:
        refused = await several.create("blue", None, pool="172.18.0.64/27")
        assert f"Run: {BLUE} --ipam-opt flannel.network=blue NAME" in refused["Err"]

    run_several(act)


def test_networks_of_docker_in_two_flannel_networks_are_isolated_also_after_a_restart() -> None:
    async def act(several: SeveralNetworks) -> None:
        blue = await several.create("blue", "blue")
        red = await several.create("red", "red", OTHER)
        assert blue["PoolID"] == "flannel/blue/10.101.3.64/27"
        assert red["PoolID"] == "flannel/red/10.102.3.64/27"
        ranges = {"blue": IPv4Network("10.101.0.0/16"), "red": IPv4Network("10.102.0.0/16")}
        for name, other in (("blue", "red"), ("red", "blue")):
            parts = several.hosts[name].parts
            assert [one.name for one in parts.networks] == [NETWORK if name == "blue" else OTHER]
            assert parts.others == (ranges[other],)

        several.networks.remove(several.plugins["red"])
        several.hosts["red"].is_ready = False
        several.hosts["blue"].parts = NO_DOCKER
        await several.start("blue")
        await several.networks.isolate()
        assert several.hosts["blue"].parts.others == (ranges["red"],)

        del several.memories["red"]  # flannelctl cleanup
        await several.networks.isolate()
        assert several.hosts["blue"].parts.others == ()

    run_several(act)


def test_requests_about_a_flannel_network_that_has_ended_are_refused_and_change_nothing() -> None:
    async def act(several: SeveralNetworks) -> None:
        pool = (await several.create("blue", "blue"))["PoolID"]
        before = several.memories["blue"].content
        several.networks.remove(several.plugins["blue"])

        removed = await several.ask("NetworkDriver.DeleteNetwork", NetworkID=NETWORK)
        released = await several.ask("IpamDriver.ReleasePool", PoolID=pool)

        assert "the flannel network blue does not run on this host" in removed["Err"]
        assert "the flannel network blue does not run on this host" in released["Err"]
        assert several.memories["blue"].content == before
        unknown = await several.ask("NetworkDriver.DeleteNetwork", NetworkID=OTHER)
        assert unknown == {}

    run_several(act)


def test_a_port_is_published_once_by_all_flannel_networks() -> None:
    async def act(several: SeveralNetworks) -> None:
        answers = []
        for name, network in (("blue", NETWORK), ("red", OTHER)):
            pool = await several.create(name, name, network)
            address = str(pool["Pool"]).replace("64/27", "66/27")
            about = {"NetworkID": network, "EndpointID": network}
            await several.ask("NetworkDriver.CreateEndpoint", **about, Interface={"Address": address})
            publish = "NetworkDriver.ProgramExternalConnectivity"
            answers.append(await several.ask(publish, **about, Options=portmap(8080)))

        assert answers[0] == {}
        assert "port 0.0.0.0:8080/tcp of this host is in use" in answers[1]["Err"]

    run_several(act)
