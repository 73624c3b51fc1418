"""The veths of Docker's containers, and the routes of the host that Docker compares with the prefix of a
new network.
"""

import contextlib
import errno
import socket
from collections.abc import Collection, Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Self

from pyflannel.errors import target_errors
from pyflannel.kernel.host.machine import set_ipv6
from pyflannel.kernel.network.device_ioctls import link_index
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.kernel.network.requests import GONE
from pyflannel.model.docker import DockerEndpoint, PublishedPort
from pyflannel.model.route import SCOPE_LINK
from pyflannel.wire.netlink import bridges, links, routes
from pyflannel.wire.netlink.message import INET, Request

_HINT = "Look at the kernel's log (dmesg)."
_SOCKET_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class KernelContainerLinks:
    """The ContainerLinks of the network namespace of this process.

    Raises:
        TargetError: on entering, if the kernel refuses to create a socket.
    """

    async def __aenter__(self) -> Self:
        self._requests = RequestSocket()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._requests.close()

    async def connect(self, endpoint: DockerEndpoint, bridge: str, mtu: int) -> None:
        """Create the veth of a container, with its outer end as a port of the bridge. Docker moves the
        inner end into the container.
        """
        await self.disconnect(endpoint)
        with target_errors(f"the container cannot be connected to {bridge}", hint=_HINT):
            await self._ask(links.create_veth(endpoint.link, endpoint.inner_link, queues=1))
            try:
                outer, inner = link_index(endpoint.link), link_index(endpoint.inner_link)
                await self._ask(links.change_link(outer, mtu=mtu))
                await self._ask(links.change_link(outer, alias=f"flannel endpoint {endpoint.name}"))
                await self._ask(links.change_link(inner, mtu=mtu))
                with contextlib.suppress(OSError):  # /proc/sys is read-only in some containers
                    set_ipv6(endpoint.link, False)
                await self._attach(outer, link_index(bridge))
                await self._ask(links.change_link(outer, is_up=True))
            except OSError:
                await self.disconnect(endpoint)
                raise

    async def disconnect(self, endpoint: DockerEndpoint) -> None:
        """Delete the outer end of the veth. The kernel then deletes the inner end."""
        with target_errors(f"link {endpoint.link} cannot be deleted", hint=_HINT):
            try:
                await self._ask(links.delete_link(link_index(endpoint.link)))
            except OSError as error:
                if error.errno not in GONE:
                    raise

    async def attach(self, wanted: Mapping[str, str]) -> Sequence[str]:
        """Make each link the port of its bridge again, after the bridge was deleted and created."""
        found = await self._requests.dump(links.dump_links(), bridges.parse_bridge_link)
        by_name = {link.name: link for link in found}
        changed = []
        for name, bridge in wanted.items():
            port, master = by_name.get(name), by_name.get(bridge)
            if port is None or master is None or port.bridge == master.index:
                continue
            with contextlib.suppress(OSError):  # one of the links was just deleted
                await self._attach(port.index, master.index)
                changed.append(name)
        return changed

    async def _attach(self, port: int, bridge: int) -> None:
        """Make a link a port of the bridge.

        A container may use its own published port, so the bridge sends frames back to the port on which they
        arrived (hairpin mode).
        """
        await self._ask(links.enslave(port, bridge))
        await self._ask(links.reflect(port))

    def open_loopback(self, bridge: str) -> None:
        """Set route_localnet on the bridge, so that ports at 127.0.0.1 can lead to containers. The plan drops
        packets with addresses of 127.0.0.0/8 that arrive at the bridge.
        """
        with target_errors(f"ports at 127.0.0.1 cannot lead to {bridge}", hint="Mount /proc/sys writable."):
            Path(f"/proc/sys/net/ipv4/conf/{bridge}/route_localnet").write_text("1")

    async def names(self) -> Collection[str]:
        """Return the names of all links."""
        return {link.name for link in await self._requests.dump(links.dump_links(), links.parse_link)}

    async def has_bridge(self, name: str) -> bool:
        """Return whether the bridge exists and is up."""
        found = await self._requests.dump(links.dump_links(), links.parse_link)
        return any(link.name == name and link.kind == "bridge" and link.is_up for link in found)

    async def on_link(self) -> Mapping[IPv4Network, str]:
        """Return the destinations of routes with scope link. Docker compares a new network only with these
        destinations.
        """
        found = await self._requests.dump(links.dump_links(), links.parse_link)
        names = {link.index: link.name for link in found}
        dumped = await self._requests.dump(routes.dump_routes(INET), routes.parse_route)
        return {
            route.destination: names.get(route.index, "")
            for route in dumped
            if route.scope == SCOPE_LINK
            and isinstance(route.destination, IPv4Network)
            and route.destination.prefixlen
        }

    def port_in_use(self, port: PublishedPort) -> bool:
        """Return whether bind would fail because another program uses the port. The method tries to bind a
        socket.
        """
        kind = _SOCKET_TYPES.get(port.protocol)
        if kind is None:
            return False
        with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
            if port.protocol == "tcp":  # a closed connection does not use the port any more
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((str(port.host_address or ""), port.host_port))
            except OSError as error:
                return error.errno == errno.EADDRINUSE
        return False

    async def _ask(self, request: Request) -> None:
        """Send one request.

        Raises:
            OSError: the kernel refused the call.
        """
        (answer,) = await self._requests.transact([request])
        if answer.errno:
            raise OSError(answer.errno, answer.text or errno.errorcode.get(answer.errno, ""))
