"""Docker and a host, as the network plugin sees them."""

import asyncio
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Any

from pyflannel.api.docker_plugin import docker_routes
from pyflannel.engine.docker_networks import DockerNetworks
from pyflannel.errors import NotReadyError, TargetError
from pyflannel.http.server import Request
from pyflannel.model.docker import NO_DOCKER, DockerEndpoint, DockerParts, HostSubnet, PublishedPort

NETWORK, ENDPOINT, OTHER = "4" * 64, "e" * 64, "f" * 64
ADDRESS = "10.100.3.66/27"


class Memory:
    """One file on a disk that may be full."""

    def __init__(self, content: bytes | None = None) -> None:
        self.content = content
        self.is_full = False

    async def load(self) -> bytes | None:
        return self.content

    async def save(self, parts: Iterable[bytes]) -> bool:
        if not self.is_full:
            self.content = b"".join(parts)
        return not self.is_full


class DockerHost:
    """A host whose reconciler applies each plan immediately, or never."""

    def __init__(self) -> None:
        self.progress = asyncio.Event()
        self.parts = NO_DOCKER
        self.is_ready = True
        self.is_stuck = False
        self.own = IPv4Network("10.100.3.0/24")
        self.ipv6_network: IPv6Network | None = None

    def subnet(self) -> HostSubnet:
        if not self.is_ready:
            raise NotReadyError("flanneld is not ready: it waits for the store", hint="Wait.")
        ipv6 = None if self.ipv6_network is None else next(self.ipv6_network.subnets(new_prefix=64))
        return HostSubnet(self.own, self.own.supernet(new_prefix=16), 1472, ipv6, self.ipv6_network)

    def ranges(self) -> tuple[IPv4Network | None, IPv6Network | None]:
        return (self.own.supernet(new_prefix=16), self.ipv6_network) if self.is_ready else (None, None)

    def plan(self, parts: DockerParts) -> None:
        self.parts = parts

    def objection(self) -> str | None:
        return "EPERM: Operation not permitted" if self.is_stuck else None


class Links:
    """The veths of a host. The bridges of the host are the bridges of the plan."""

    def __init__(self, host: DockerHost) -> None:
        self._host = host
        self.veths: dict[str, str] = {}
        self.routed: dict[IPv4Network, str] = {}
        self.loopback: set[str] = set()
        self.used_ports: set[int] = set()
        self.refuses = False

    async def connect(self, endpoint: DockerEndpoint, bridge: str, mtu: int) -> None:
        if self.refuses:
            raise TargetError("the container cannot be connected", hint="Look at dmesg.")
        self.veths[endpoint.link] = bridge

    async def disconnect(self, endpoint: DockerEndpoint) -> None:
        self.veths.pop(endpoint.link, None)

    async def attach(self, bridges: Mapping[str, str]) -> Sequence[str]:
        lost = [name for name, bridge in bridges.items() if self.veths.get(name, bridge) != bridge]
        self.veths.update({name: bridges[name] for name in lost})
        return lost

    async def names(self) -> Collection[str]:
        return self.veths

    def open_loopback(self, bridge: str) -> None:
        self.loopback.add(bridge)

    async def has_bridge(self, name: str) -> bool:
        return not self._host.is_stuck and name in {one.bridge for one in self._host.parts.networks}

    async def on_link(self) -> Mapping[IPv4Network, str]:
        return self.routed

    def port_in_use(self, port: PublishedPort) -> bool:
        return port.host_port in self.used_ports


class Caller:
    """Sends the requests of Docker's engine."""

    def __init__(self, networks: DockerNetworks) -> None:
        self._routes = docker_routes(networks)

    async def ask(self, method: str, **fields: object) -> dict[str, Any]:
        handler = self._routes["POST", f"/{method}"]
        body = json.dumps(fields).encode()
        answer = await handler(Request(method="POST", path=f"/{method}", body=body))
        document: dict[str, Any] = json.loads(answer.body)
        assert answer.status == 200
        assert document.get("Err") == document.get("Error")
        return document


async def nothing() -> None:
    """Isolate no flannel network, because there is only one flannel network."""


def portmap(host_port: int) -> dict[str, object]:
    return {"com.docker.network.portmap": [{"Proto": 6, "Port": 80, "HostPort": host_port}]}
