"""The network plugin for Docker, which performs Docker's requests and keeps their results.

Docker never repeats a request: neither after its own restart nor after a restart of flanneld. Therefore each
change is saved before it takes effect. Networks and published ports are a part of the plan of the host, and
the reconciler creates and repairs them. Only the veths of containers are created in this module, because
Docker moves one end of each into a container.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network

from msgspec.structs import replace

from pyflannel.engine.pacing import pause
from pyflannel.errors import DockerPluginError, NotReadyError, TargetError, WireError
from pyflannel.model.docker import DockerEndpoint, DockerNetwork, DockerState, Ipv6Pool, Pool, PublishedPort
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.status import DockerNetworkStatus, DockerPortStatus, DockerStatus
from pyflannel.plan.docker_plugin import (
    add_network,
    create_command,
    mac_of,
    put_endpoint,
    release_address,
    release_pool,
    remove_endpoint,
    remove_network,
    request_address,
    request_ipv6_pool,
    request_pool,
    without_dead,
)
from pyflannel.ports import Clock, ContainerLinks, DockerHost, Memory
from pyflannel.wire.docker_plugin import (
    AddressRequest,
    EndpointRequest,
    NetworkRequest,
    PoolRequest,
    format_state,
    parse_address,
    parse_as,
    parse_state,
)

log = logging.getLogger(__name__)

_IN_PLACE_S = 10.0
"""Deadline in seconds for the reconciler to create an object. Normally the reconciler needs milliseconds;
Docker waits for half a minute."""

_LOOK_S = 0.01

_ATTACH_S = 10.0
"""Longest interval in seconds between two checks of the links of containers."""


class DockerPlugin:
    """The networks of Docker in one flannel network. One request is performed at a time.

    Attributes:
        network: the name of the flannel network; "" if the host has only one network, without a name.
    """

    def __init__(
        self, *, host: DockerHost, links: ContainerLinks, memory: Memory, clock: Clock, network: str = ""
    ) -> None:
        self.network = network
        self._host = host
        self._links = links
        self._memory = memory
        self._clock = clock
        self._lock = asyncio.Lock()
        self._state: DockerState | None = None
        self._damage: TargetError | WireError | None = None

    async def load(self) -> None:
        """Read the state of the previous run, and add it to the plan."""
        try:
            saved = await self._memory.load()
            self._state = DockerState() if saved is None else parse_state(saved)
        except (TargetError, WireError) as error:
            self._damage = error
            log.error("Could not read the networks of Docker: %s", error.in_full)
            return
        self._host.plan(self._state.plan)

    async def run(self, isolate: Callable[[], Awaitable[None]]) -> None:
        """Connect containers again each time a bridge was created again, until cancelled.

        `isolate` is called each time the range of the flannel network may have changed.
        """
        while True:
            self._host.progress.clear()
            await isolate()
            async with self._lock:
                await self._attach()
            await pause(self._clock, _ATTACH_S, until=self._host.progress)

    async def _attach(self) -> None:
        state = self._state
        if state is None or not state.endpoints:
            return
        wanted = {
            endpoint.link: network.bridge
            for endpoint in state.endpoints.values()
            if (network := state.networks.get(endpoint.network)) is not None
        }
        try:
            changed = await self._links.attach(wanted)
        except TargetError as error:
            log.warning("Could not check the links of containers: %s", error.in_full)
            return
        for name in changed:
            log.info("Connected a container again link=%s bridge=%s", name, wanted[name])
        published = {
            wanted[one.link] for one in state.endpoints.values() if one.ports and one.link in changed
        }
        for bridge in published:
            with suppress(TargetError):
                self._links.open_loopback(bridge)

    def status(self) -> DockerStatus:
        """Return the networks and the published ports."""
        state = self._state or DockerState()
        bridges = {network.subnet: network.bridge for network in state.networks.values()}
        return DockerStatus(
            networks=tuple(
                DockerNetworkStatus(
                    subnet=pool.subnet,
                    bridge=bridges.get(pool.subnet, ""),
                    used=len(pool.used),
                    usable=pool.subnet.num_addresses - 2,
                )
                for pool in sorted(state.pools.values(), key=lambda pool: pool.subnet)
            ),
            ports=tuple(
                DockerPortStatus(
                    protocol=port.protocol,
                    host_address=port.host_address,
                    host_port=port.host_port,
                    address=port.address,
                    port=port.port,
                )
                for port in sorted(state.plan.ports, key=lambda port: port.host_port)
            ),
        )

    @property
    def ranges(self) -> tuple[IPv4Network | None, IPv6Network | None]:
        """The range of the flannel network in each family; None while it is unknown, or if the network has
        no range in this family.
        """
        return self._host.ranges()

    @property
    def ports(self) -> tuple[PublishedPort, ...]:
        """The published ports."""
        return () if self._state is None else self._state.plan.ports

    def has_network(self, name: str) -> bool:
        """Return whether this is the plugin of a network of Docker."""
        return self._state is not None and name in self._state.networks

    def has_pool(self, subnet: str) -> bool:
        """Return whether the addresses of a network are from this plugin."""
        pools = () if self._state is None else self._state.pools.values()
        return any(str(pool.subnet) == subnet for pool in pools)

    async def isolate(
        self,
        names: Collection[str],
        ranges: Mapping[str, IPv4Network],
        ipv6_ranges: Mapping[str, IPv6Network],
    ) -> None:
        """Isolate this flannel network from the other flannel networks.

        Args:
            names: the flannel networks that exist on this host.
            ranges: known IPv4 ranges of the flannel networks of this host.
            ipv6_ranges: known IPv6 ranges of the flannel networks of this host.
        """
        names = {*names} - {self.network}
        async with self._lock:
            state = self._state
            if state is None or self._damage is not None:
                return
            others = {name: one for name, one in {**state.others, **ranges}.items() if name in names}
            ipv6 = {**state.ipv6_others, **ipv6_ranges}
            ipv6 = {name: one for name, one in ipv6.items() if name in names}
            with suppress(DockerPluginError):  # the failure is logged, and the next call tries again
                await self._save(replace(state, others=others, ipv6_others=ipv6))

    # Requests about addresses.

    async def request_pool(self, request: PoolRequest) -> Pool | Ipv6Pool:
        """Return the addresses of a new network in one family."""
        async with self._lock:
            state, host = self._known(), self._host.subnet()
            if request.is_ipv6:
                state, ipv6 = request_ipv6_pool(
                    state,
                    host.ipv6_subnet,
                    wanted=parse_as(IPv6Network, request.pool) if request.pool else None,
                    choice=parse_as(IPv6Network, request.choice) if request.choice else None,
                    network=self.network,
                )
                await self._save(state)
                return ipv6
            routed = await self._links.on_link()
            state, pool = request_pool(
                state,
                host.subnet,
                tuple(routed),
                wanted=parse_as(IPv4Network, request.pool) if request.pool else None,
                choice=parse_as(IPv4Network, request.choice) if request.choice else None,
                options=request.options or {},
                network=self.network,
            )
            await self._save(state)
            log.info("Gave Docker the addresses of a network pool=%s", pool.subnet)
            return pool

    async def release_pool(self, name: str) -> None:
        """Free the addresses of a network."""
        async with self._lock:
            await self._save(release_pool(self._known(), name))

    async def request_address(self, request: AddressRequest) -> tuple[IpAddress, Pool | Ipv6Pool]:
        """Return an address of a pool.

        If Docker requests no particular address, the gateway gets the first address.
        """
        wanted = parse_address(request.address) if request.address else None
        async with self._lock:
            try:
                state, pool, address = request_address(self._known(), request.pool, wanted)
            except DockerPluginError:
                living = without_dead(self._known(), await self._links.names())
                state, pool, address = request_address(living, request.pool, wanted)
            await self._save(state)
            return address, pool

    async def release_address(self, request: AddressRequest) -> None:
        """Free an address."""
        address = parse_address(request.address)
        async with self._lock:
            await self._save(release_address(self._known(), request.pool, address))

    # Requests about networks.

    async def create_network(self, request: NetworkRequest) -> None:
        """Create the bridge of a network, and return when containers can be connected to it."""
        gateways = [data.gateway for data in request.ipv4 or [] if data.gateway]
        ipv6_gateways = [data.gateway for data in request.ipv6 or [] if data.gateway]
        if not gateways or len(gateways) > 1 or (request.has_ipv6 and len(ipv6_gateways) != 1):
            raise DockerPluginError(
                "the network has no addresses of flannel, or several prefixes of one family",
                hint=f"Run: {create_command(self.network)}" + (" --ipv6" if request.has_ipv6 else ""),
            )
        network = DockerNetwork(
            name=request.network,
            gateway=parse_as(IPv4Interface, gateways[0]),
            is_internal=request.is_internal,
            ipv6_gateway=parse_as(IPv6Interface, ipv6_gateways[0]) if request.has_ipv6 else None,
        )
        async with self._lock:
            before = self._known()
            await self._save(add_network(before, network, request.driver_options, self.network))
            try:
                await self._wait_for_bridge(network)
            except NotReadyError:
                await self._save(before)
                raise
            log.info("Created a network of Docker subnet=%s bridge=%s", network.subnet, network.bridge)

    async def delete_network(self, name: str) -> None:
        """Remove the bridge of a network, and the remaining objects of its containers."""
        async with self._lock:
            state = self._known()
            for endpoint in state.endpoints.values():
                if endpoint.network == name:
                    await self._links.disconnect(endpoint)
            await self._save(remove_network(state, name))
            await self._wait_in_place()

    # Requests about containers.

    async def create_endpoint(self, request: EndpointRequest) -> DockerEndpoint:
        """Record a container with the address that the IPAM driver gave it."""
        address = request.address
        async with self._lock:
            state = self._known()
            network = self._network(state, request.network)
            if address is None or address.ip not in network.subnet:
                raise DockerPluginError(
                    f"the address {address} is not in the subnet {network.subnet} of the network",
                    hint=f"Run: {create_command(self.network)}",
                )
            ipv6, gateway = request.ipv6_address, network.ipv6_gateway
            if ipv6 is not None and (gateway is None or ipv6.ip not in gateway.network):
                raise DockerPluginError(
                    f"the address {ipv6} is not in the IPv6 subnet of the network",
                    hint="Remove the network and create it again.",
                )
            endpoint = DockerEndpoint(
                name=request.endpoint,
                network=network.name,
                address=address,
                mac=request.mac or mac_of(address.ip),
                ipv6_address=ipv6,
            )
            await self._save(put_endpoint(state, endpoint))
            return endpoint

    async def join(
        self, request: EndpointRequest
    ) -> tuple[DockerEndpoint, DockerNetwork, tuple[IpNetwork, ...]]:
        """Connect a container to its bridge; also return the routes that the container needs.

        A container gets the routes to the other hosts once, because a second network has the same routes.
        These routes exclude the subnet of this host, because Docker refuses a second network within an
        existing route.
        """
        async with self._lock:
            state, host = self._known(), self._host.subnet()
            network = self._network(state, request.network)
            endpoint = self._endpoint(state, request.endpoint)
            if not network.subnet.subnet_of(host.subnet):
                raise _moved(network.subnet, host.subnet)
            ipv6 = network.ipv6_gateway
            if ipv6 is not None and not (host.ipv6_subnet and ipv6.network.subnet_of(host.ipv6_subnet)):
                raise _moved(ipv6.network, host.ipv6_subnet)
            await self._wait_for_bridge(network)
            await self._links.connect(endpoint, network.bridge, host.mtu if ipv6 is None else host.ipv6_mtu)
            routes: tuple[IpNetwork, ...] = tuple(sorted(host.network.address_exclude(host.subnet)))
            if endpoint.ipv6_address is not None and host.ipv6_network and host.ipv6_subnet:
                routes += tuple(sorted(host.ipv6_network.address_exclude(host.ipv6_subnet)))
            has_routes = request.sandbox and any(
                one.sandbox == request.sandbox and one.name != endpoint.name
                for one in state.endpoints.values()
            )
            await self._save(put_endpoint(state, replace(endpoint, sandbox=request.sandbox)))
            return endpoint, network, () if has_routes else routes

    async def leave(self, request: EndpointRequest) -> None:
        """Record that a container has left the network. After this request, Docker moves the link of the
        container back to the host.
        """
        async with self._lock:
            state = self._known()
            if (endpoint := state.endpoints.get(request.endpoint)) is not None:
                await self._save(put_endpoint(state, replace(endpoint, sandbox="", ports=())))

    async def delete_endpoint(self, request: EndpointRequest) -> None:
        """Remove the link of a container."""
        async with self._lock:
            state = self._known()
            if (endpoint := state.endpoints.get(request.endpoint)) is not None:
                await self._links.disconnect(endpoint)
                await self._save(remove_endpoint(state, endpoint.name))

    async def publish(self, request: EndpointRequest, others: Collection[PublishedPort] = ()) -> None:
        """Publish the ports of a container. `others` are the ports that other flannel networks have
        published.
        """
        async with self._lock:
            before = self._known()
            endpoint = self._endpoint(before, request.endpoint)
            ports = request.ports(endpoint.address.ip)
            used = [port for one in before.endpoints.values() if one is not endpoint for port in one.ports]
            for port in ports:
                if self._links.port_in_use(port) or any(port.overlaps(other) for other in (*used, *others)):
                    raise DockerPluginError(
                        f"port {port} of this host is in use", hint="Publish another port: -p PORT:PORT."
                    )
            if not ports and not endpoint.ports:
                return
            await self._save(put_endpoint(before, replace(endpoint, ports=ports)))
            try:
                await self._wait_in_place()
                self._links.open_loopback(self._network(before, endpoint.network).bridge)
            except (NotReadyError, TargetError):
                await self._save(before)
                raise

    async def revoke(self, request: EndpointRequest) -> None:
        """Stop publishing the ports of a container."""
        async with self._lock:
            state = self._known()
            endpoint = state.endpoints.get(request.endpoint)
            if endpoint is not None and endpoint.ports:
                await self._save(put_endpoint(state, replace(endpoint, ports=())))

    # Methods that read and save the state of the plugin.

    def _known(self) -> DockerState:
        if self._damage is not None:
            raise DockerPluginError(
                f"flannel's file of the networks of Docker: {self._damage}", hint=self._damage.hint
            )
        if self._state is None:
            raise NotReadyError("flanneld is starting", hint="Try again.")
        return self._state

    def _network(self, state: DockerState, name: str) -> DockerNetwork:
        if (network := state.networks.get(name)) is None:
            raise DockerPluginError(
                "flanneld does not know this network, because its saved state was deleted",
                hint="Remove the network and create it again.",
            )
        return network

    def _endpoint(self, state: DockerState, name: str) -> DockerEndpoint:
        if (endpoint := state.endpoints.get(name)) is None:
            raise DockerPluginError(
                "flanneld does not know this container, because its saved state was deleted",
                hint="Start the container again.",
            )
        return endpoint

    async def _save(self, state: DockerState) -> None:
        """Save a state, and then add it to the plan."""
        before = self._known()
        if state == before:
            return
        if not await self._memory.save([format_state(state)]):
            raise DockerPluginError(
                "flanneld cannot save the networks of Docker",
                hint="Make the state directory of flanneld writable, or free space on its file system. Read "
                "the log of flanneld.",
            )
        self._state = state
        if state.plan != before.plan:
            self._host.plan(state.plan)

    async def _wait_for_bridge(self, network: DockerNetwork) -> None:
        async def is_there() -> bool:
            return await self._links.has_bridge(network.bridge)

        await self._wait(is_there, f"bridge {network.bridge} of the network")

    async def _wait_in_place(self) -> None:
        async def is_in_place() -> bool:
            return self._host.objection() is None

        await self._wait(is_in_place, "the network of the container")

    async def _wait(self, is_done: Callable[[], Awaitable[bool]], name: str) -> None:
        end = self._clock.now() + _IN_PLACE_S
        while not await is_done():
            if self._clock.now() >= end:
                why = self._host.objection() or "flanneld is busy"
                raise NotReadyError(
                    f"flanneld did not create {name} within {_IN_PLACE_S:g} s: {why}",
                    hint="Run flannelctl status.",
                )
            await self._clock.sleep(_LOOK_S)


def _moved(subnet: IpNetwork, host: IpNetwork | None) -> DockerPluginError:
    return DockerPluginError(
        f"the network has addresses of {subnet}, and the subnet of this host is {host}",
        hint="Remove the network and create it again.",
    )
