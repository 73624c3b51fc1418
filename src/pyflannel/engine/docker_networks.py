"""The flannel networks of this host, in the form that the network plugin for Docker uses."""

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network, IPv6Network

from pyflannel.engine.docker_plugin import DockerPlugin
from pyflannel.engine.supervisor import Supervisor
from pyflannel.errors import DockerPluginError, NotReadyError, TargetError, WireError
from pyflannel.model.docker import DockerParts, HostSubnet, network_of_pool
from pyflannel.model.link import Address, Link
from pyflannel.model.packet_filter import NftTable
from pyflannel.plan.docker_plugin import NETWORK_OPTION, flannel_network
from pyflannel.ports import Memory
from pyflannel.wire.docker_plugin import EndpointRequest, NetworkRequest, PoolRequest, parse_state

_KINDS = (Link, Address, NftTable)
"""The kinds of objects of the plan that implement networks of Docker."""


class SupervisedHost:
    """The DockerHost that a supervisor provides."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self.progress = supervisor.progress

    def subnet(self) -> HostSubnet:
        """Return the facts of the host: see `DockerHost`."""
        inputs = self._supervisor.condition.inputs
        config, backend = inputs.config, inputs.backend
        if config is not None and not config.enable_ipv4:
            raise DockerPluginError(
                "the flannel network has no IPv4 addresses", hint="Write a network config with Network."
            )
        host = self._supervisor.planner.host(inputs, 4)
        subnet = None if host is None else host.subnet
        if (
            host is None
            or not isinstance(subnet, IPv4Network)
            or config is None
            or config.network is None
            or backend is None
        ):
            raise NotReadyError(
                f"flanneld is not ready. flanneld waits for {self._supervisor.waiting_for}",
                hint="Run flannelctl status.",
            )
        ipv6 = self._supervisor.planner.host(inputs, 6) if config.enable_ipv6 else None
        return HostSubnet(
            subnet,
            config.network,
            backend.mtu(host),
            None if ipv6 is None else ipv6.lease.ipv6_subnet,
            config.ipv6_network,
            0 if ipv6 is None else min(backend.mtu(host), backend.mtu(ipv6)),
        )

    def ranges(self) -> tuple[IPv4Network | None, IPv6Network | None]:
        """Return the range of the flannel network in each family: see `DockerHost`."""
        config = self._supervisor.condition.inputs.config
        return (None, None) if config is None else (config.network, config.ipv6_network)

    def plan(self, parts: DockerParts) -> None:
        """Add these networks and ports to the plan."""
        self._supervisor.plan_docker(parts)

    def objection(self) -> str | None:
        """Return the reason why a part of the plan is not in place: see `DockerHost`."""
        reconciler = self._supervisor.reconciler
        if all(reconciler.is_in_place(kind) for kind in _KINDS):
            return None
        refused = (one for one in reconciler.refused() if isinstance(one.operation.subject, _KINDS))
        return next((one.cause for one in refused), "")


class DockerNetworks:
    """The plugins of all flannel networks of this host. For each request of Docker, this class finds the
    plugin that must handle the request.

    Args:
        has_names: True if the daemon runs networks with names.
        remembered: function that returns the saved state of the plugin for each flannel network that this
            host has or had.
    """

    def __init__(self, *, has_names: bool, remembered: Callable[[], Mapping[str, Memory]]) -> None:
        self._has_names = has_names
        self._remembered = remembered
        self._plugins: dict[str, DockerPlugin] = {}
        self._publishing = asyncio.Lock()

    def add(self, plugin: DockerPlugin) -> None:
        """Pass the requests about a flannel network to its plugin."""
        self._plugins[plugin.network] = plugin

    def remove(self, plugin: DockerPlugin) -> None:
        """Stop using a plugin, because its flannel network was stopped on this host."""
        if self._plugins.get(plugin.network) is plugin:  # otherwise a new instance of the network has started
            del self._plugins[plugin.network]

    @property
    def _known(self) -> list[str] | None:
        return sorted(self._plugins) if self._has_names else None

    async def isolate(self) -> None:
        """Isolate each flannel network from the other flannel networks."""
        if self._has_names:
            names = {*self._plugins, *self._remembered()}
            found = {name: one.ranges for name, one in self._plugins.items()}
            ranges = {name: ipv4 for name, (ipv4, _) in found.items() if ipv4 is not None}
            ipv6_ranges = {name: ipv6 for name, (_, ipv6) in found.items() if ipv6 is not None}
            for plugin in list(self._plugins.values()):
                await plugin.isolate(names, ranges, ipv6_ranges)

    def for_pool(self, request: PoolRequest) -> DockerPlugin:
        """Return the plugin that gives addresses for a new network.

        Raises:
            DockerPluginError: the user chose no flannel network, or a network that does not exist.
            NotReadyError: the flannel network is starting.
        """
        return self._running(flannel_network((request.options or {}).get(NETWORK_OPTION), self._known))

    async def for_network(self, request: NetworkRequest) -> DockerPlugin:
        """Return the plugin for a new network, isolated from the other flannel networks: see `for_pool`.

        Raises:
            DockerPluginError: the same as for `for_pool`, and also if the options of the two drivers
                disagree.
        """
        pools = [data.pool for data in request.ipv4 or []]
        holders = [name for name, one in self._plugins.items() if any(map(one.has_pool, pools))]
        option = request.driver_options.get(NETWORK_OPTION)
        name = flannel_network(option, self._known, holder=holders[0] if holders else None)
        await self.isolate()
        return self._running(name)

    def of_pool(self, pool: str) -> DockerPlugin:
        """Return the plugin that gave the addresses of a network of Docker.

        Raises:
            DockerPluginError: the flannel network of the plugin does not run.
            NotReadyError: the flannel network is starting.
        """
        return self._running(network_of_pool(pool))

    async def of_network(self, network: str) -> DockerPlugin:
        """Return the plugin of a network of Docker; if no plugin knows the network, return any plugin.

        Raises:
            DockerPluginError: the flannel network of the plugin does not run.
            NotReadyError: no flannel network runs yet.
        """
        for plugin in self._plugins.values():
            if plugin.has_network(network):
                return plugin
        if self._has_names:
            for name, memory in self._remembered().items():
                if name not in self._plugins and await _has_network(memory, network):
                    raise _does_not_run(name)
        return next(iter(self._plugins.values()), None) or self._running("")

    async def publish(self, request: EndpointRequest) -> None:
        """Publish the ports of a container, unless another flannel network has published one of these
        ports.
        """
        async with self._publishing:
            plugin = await self.of_network(request.network)
            others = [port for one in self._plugins.values() if one is not plugin for port in one.ports]
            await plugin.publish(request, others)

    def _running(self, name: str) -> DockerPlugin:
        if (plugin := self._plugins.get(name)) is not None:
            return plugin
        if name != "" and self._has_names:
            raise _does_not_run(name)
        raise NotReadyError("flanneld is starting", hint="Try again.")


async def _has_network(memory: Memory, network: str) -> bool:
    try:
        saved = await memory.load()
        return saved is not None and network in parse_state(saved).networks
    except (TargetError, WireError):
        return False


def _does_not_run(name: str) -> DockerPluginError:
    text = f"the flannel network {name}" if name else "the flannel network without a name"
    return DockerPluginError(
        f"{text} does not run on this host",
        hint="Write the config of this network to the store again, or restore the flags of flanneld.",
    )
