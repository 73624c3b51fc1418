"""Networks and containers of Docker on this host that get their addresses from flannel."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Generic, Self, TypeVar

from msgspec import Struct, field
from msgspec.structs import replace

from pyflannel.model.network_config import IpNetwork


class HostSubnet(Struct, frozen=True):
    """The properties of this host on which a network of Docker depends.

    Attributes:
        subnet: the subnet of the host.
        network: the range of the flannel network.
        mtu: size in bytes of the largest packet of a container.
        ipv6_subnet: the IPv6 subnet of the host; None if the flannel network has IPv4 only.
        ipv6_network: the IPv6 range of the flannel network.
        ipv6_mtu: size in bytes of the largest packet of a container with addresses of both families.
    """

    subnet: IPv4Network
    network: IPv4Network
    mtu: int
    ipv6_subnet: IPv6Network | None = None
    ipv6_network: IPv6Network | None = None
    ipv6_mtu: int = 0


class Division(Struct, frozen=True):
    """The parts of a host's subnet. Each address belongs to one part, so that it is assigned only once.

    Attributes:
        docker0: part of Docker's default bridge; the file of Docker's options contains it.
        cni: part of the containers that a CNI runtime starts.
        networks: parts of the networks that users create in Docker, with one part for each network.
    """

    docker0: IPv4Network
    cni: IPv4Network
    networks: tuple[IPv4Network, ...]


_Network = TypeVar("_Network", IPv4Network, IPv6Network)
_Address = TypeVar("_Address", IPv4Address, IPv6Address)


class FamilyPool(Struct, Generic[_Network, _Address], frozen=True, kw_only=True):
    """The addresses of one network of Docker in one family.

    Attributes:
        subnet: the prefix of the network.
        choice: the part of the prefix from which addresses are chosen (`--ip-range`).
        used: addresses in use, including that of the gateway.
        network: name of the flannel network; "" if the host has only one network, without a name.
    """

    subnet: _Network
    choice: _Network
    used: frozenset[_Address] = frozenset()
    network: str = ""

    @property
    def name(self) -> str:
        """The identifier in Docker's requests: see `network_of_pool`."""
        return "/".join(("flannel", *filter(None, [self.network]), str(self.subnet)))

    def marked(self, address: _Address, *, is_used: bool) -> Self:
        """Return a copy of the pool in which an address is in use if `is_used` is true, and otherwise
        free.
        """
        return replace(self, used=self.used | {address} if is_used else self.used - {address})


class Pool(FamilyPool[IPv4Network, IPv4Address], frozen=True, kw_only=True):
    """The IPv4 addresses of one network of Docker."""


class Ipv6Pool(FamilyPool[IPv6Network, IPv6Address], frozen=True, kw_only=True):
    """The IPv6 addresses of one network of Docker."""


def network_of_pool(name: str) -> str:
    """Return the name of the flannel network in the identifier of a pool."""
    match name.split("/"):
        case ["flannel", network, _, _]:
            return network
        case _:
            return ""


class DockerNetwork(Struct, frozen=True, kw_only=True):
    """A network of Docker with the driver flannel.

    Attributes:
        name: Docker's identifier. Docker does not pass the name that the user gave.
        gateway: address of the bridge.
        is_internal: True if its containers can reach only the overlay.
        ipv6_gateway: IPv6 address of the bridge; None for a network with IPv4 only.
    """

    name: str
    gateway: IPv4Interface
    is_internal: bool = False
    ipv6_gateway: IPv6Interface | None = None

    @property
    def subnet(self) -> IPv4Network:
        """The prefix of the network's containers."""
        return self.gateway.network

    @property
    def bridge(self) -> str:
        """The name of the network's bridge, which has at most 15 bytes and contains as many digits of
        Docker's identifier as fit.
        """
        return f"flbr-{self.name[:10]}"


class PublishedPort(Struct, frozen=True, kw_only=True):
    """A port of the host whose packets go to a container.

    Attributes:
        protocol: `tcp`, `udp` or `sctp`.
        host_address: the address of the host; None for all addresses.
    """

    protocol: str
    host_address: IPv4Address | None = None
    host_port: int
    address: IPv4Address
    port: int

    def overlaps(self, other: "PublishedPort") -> bool:
        """Return whether a packet may match both ports."""
        is_same_address = None in (self.host_address, other.host_address) or (
            self.host_address == other.host_address
        )
        return is_same_address and self.protocol == other.protocol and (self.host_port == other.host_port)

    def __str__(self) -> str:
        host = f"{self.host_address or '0.0.0.0'}:{self.host_port}"
        return f"{host}/{self.protocol}"


class DockerEndpoint(Struct, frozen=True, kw_only=True):
    """The connection of a container to a network.

    Attributes:
        name: Docker's identifier.
        network: identifier of the network.
        sandbox: path of the container's network namespace; "" if the container has not joined.
        ports: published ports of the container.
        ipv6_address: IPv6 address of the container; None in a network with only IPv4.
    """

    name: str
    network: str
    address: IPv4Interface
    mac: str
    sandbox: str = ""
    ports: tuple[PublishedPort, ...] = ()
    ipv6_address: IPv6Interface | None = None

    @property
    def link(self) -> str:
        """The name of the host's end of the container's veth."""
        return f"flv{self.name[:12]}"

    @property
    def inner_link(self) -> str:
        """The name of the container's end of its veth, until Docker renames it."""
        return f"flc{self.name[:12]}"


class DockerState(Struct, frozen=True, kw_only=True):
    """The complete state that the plugin keeps. Docker never repeats a request, even after a restart of
    Docker or flanneld.

    Attributes:
        others: ranges of the other flannel networks of this host, by their names. These ranges are kept, so
            that the containers are isolated from them before the configs of all networks are known.
        ipv6_others: IPv6 ranges of the other flannel networks of this host, by their names.
    """

    pools: Mapping[str, Pool] = field(default_factory=dict)
    networks: Mapping[str, DockerNetwork] = field(default_factory=dict)
    endpoints: Mapping[str, DockerEndpoint] = field(default_factory=dict)
    others: Mapping[str, IPv4Network] = field(default_factory=dict)
    ipv6_pools: Mapping[str, Ipv6Pool] = field(default_factory=dict)
    ipv6_others: Mapping[str, IPv6Network] = field(default_factory=dict)

    @property
    def plan(self) -> "DockerParts":
        """The part of the state on which the plan of the host depends."""
        ports = (port for endpoint in self.endpoints.values() for port in endpoint.ports)
        return DockerParts(
            networks=tuple(self.networks.values()),
            ports=tuple(ports),
            others=(*sorted(set(self.others.values())), *sorted(set(self.ipv6_others.values()))),
        )


class DockerParts(Struct, frozen=True, kw_only=True):
    """The networks and published ports that the plan of the host contains.

    Attributes:
        others: ranges of other flannel networks of this host, from which this network is isolated.
    """

    networks: tuple[DockerNetwork, ...] = ()
    ports: tuple[PublishedPort, ...] = ()
    others: tuple[IpNetwork, ...] = ()


NO_DOCKER = DockerParts()
"""The value for a host without networks of Docker."""
