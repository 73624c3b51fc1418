"""The socket for Docker's plugin protocol, which provides a network driver and an IPAM driver with the
name `flannel`.
"""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from pyflannel.engine.docker_networks import DockerNetworks
from pyflannel.errors import FlannelError
from pyflannel.http.server import Handler, HttpServer, Request, Response, Routes
from pyflannel.http.sockets import UnixPlace, is_ours, serve_unix
from pyflannel.wire import docker_plugin as wire

log = logging.getLogger(__name__)

_Request = TypeVar("_Request")
_Answer = wire.Answer


async def serve_docker(path: Path, networks: DockerNetworks) -> None:
    """Serve the plugin at `path` until cancelled, then remove the socket."""
    place = UnixPlace(
        path=path,
        name="socket of the Docker plugin",
        consequence="Docker cannot use networks of flannel",
        hint="Run as root, or choose another --docker-plugin-socket and name it in"
        " /etc/docker/plugins/flannel.spec.",
    )
    await serve_unix(place, HttpServer(docker_routes(networks), admit=is_ours))


def docker_routes(networks: DockerNetworks) -> Routes:
    """Return the routes of the plugin's socket."""

    async def request_pool(request: wire.PoolRequest) -> _Answer:
        return wire.pool_answer(await networks.for_pool(request).request_pool(request))

    async def release_pool(request: wire.PoolReference) -> None:
        await networks.of_pool(request.pool).release_pool(request.pool)

    async def request_address(request: wire.AddressRequest) -> _Answer:
        return wire.address_answer(*await networks.of_pool(request.pool).request_address(request))

    async def release_address(request: wire.AddressRequest) -> None:
        await networks.of_pool(request.pool).release_address(request)

    async def create_network(request: wire.NetworkRequest) -> None:
        await (await networks.for_network(request)).create_network(request)

    async def delete_network(request: wire.NetworkRequest) -> None:
        await (await networks.of_network(request.network)).delete_network(request.network)

    async def create_endpoint(request: wire.EndpointRequest) -> _Answer:
        plugin = await networks.of_network(request.network)
        return wire.endpoint_answer(await plugin.create_endpoint(request), has_mac=bool(request.mac))

    async def delete_endpoint(request: wire.EndpointRequest) -> None:
        await (await networks.of_network(request.network)).delete_endpoint(request)

    async def join(request: wire.EndpointRequest) -> _Answer:
        plugin = await networks.of_network(request.network)
        endpoint, network, routes = await plugin.join(request)
        return wire.join_answer(endpoint, network, routes)

    async def leave(request: wire.EndpointRequest) -> None:
        await (await networks.of_network(request.network)).leave(request)

    async def revoke(request: wire.EndpointRequest) -> None:
        await (await networks.of_network(request.network)).revoke(request)

    return {
        ("POST", f"/{method}"): handler
        for method, handler in {
            "Plugin.Activate": _constant(wire.ACTIVATION),
            "IpamDriver.GetCapabilities": _constant(wire.IPAM_CAPABILITIES),
            "IpamDriver.GetDefaultAddressSpaces": _constant(wire.ADDRESS_SPACES),
            "IpamDriver.RequestPool": _handler(wire.PoolRequest, request_pool),
            "IpamDriver.ReleasePool": _handler(wire.PoolReference, release_pool),
            "IpamDriver.RequestAddress": _handler(wire.AddressRequest, request_address),
            "IpamDriver.ReleaseAddress": _handler(wire.AddressRequest, release_address),
            "NetworkDriver.GetCapabilities": _constant(wire.NETWORK_CAPABILITIES),
            "NetworkDriver.CreateNetwork": _handler(wire.NetworkRequest, create_network),
            "NetworkDriver.DeleteNetwork": _handler(wire.NetworkRequest, delete_network),
            "NetworkDriver.CreateEndpoint": _handler(wire.EndpointRequest, create_endpoint),
            "NetworkDriver.DeleteEndpoint": _handler(wire.EndpointRequest, delete_endpoint),
            "NetworkDriver.EndpointOperInfo": _constant(wire.ENDPOINT_INFO),
            "NetworkDriver.Join": _handler(wire.EndpointRequest, join),
            "NetworkDriver.Leave": _handler(wire.EndpointRequest, leave),
            "NetworkDriver.ProgramExternalConnectivity": _handler(wire.EndpointRequest, networks.publish),
            "NetworkDriver.RevokeExternalConnectivity": _handler(wire.EndpointRequest, revoke),
            "NetworkDriver.DiscoverNew": _constant(wire.NOTHING),
            "NetworkDriver.DiscoverDelete": _constant(wire.NOTHING),
        }.items()
    }


def _constant(answer: _Answer) -> Handler:
    async def handle(_: Request) -> Response:
        return _response(answer)

    return handle


def _handler(kind: type[_Request], perform: Callable[[_Request], Awaitable[_Answer | None]]) -> Handler:
    """Return the handler of a method. If a request fails, Docker prints the error to the user."""

    async def handle(request: Request) -> Response:
        try:
            return _response(await perform(wire.parse_request(request.body, kind)) or wire.NOTHING)
        except FlannelError as error:
            log.warning("Refused a request of Docker %s: %s", request.path.lstrip("/"), error.in_full)
            return _response(wire.error_answer(error))

    return handle


def _response(answer: _Answer) -> Response:
    return Response(status=200, body=wire.format_answer(answer), content_type=wire.CONTENT_TYPE)
