"""Docker's plugin protocol: requests and answers of a network driver and its IPAM driver, and the state that
they save.

Docker sends JSON by POST to a path such as `/NetworkDriver.Join`. The answer to a failed request is an object
with the error text: a network driver names the key `Err`, an IPAM driver names it `Error`.

Source: moby/libnetwork, docs/remote.md, docs/ipam.md, and the requests of Docker 20.10.24.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Any, TypeVar

import msgspec

from pyflannel.errors import DockerPluginError, FlannelError, WireError
from pyflannel.model.docker import DockerEndpoint, DockerNetwork, DockerState, Ipv6Pool, Pool, PublishedPort
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.wire.json_values import address_of_text

CONTENT_TYPE = "application/vnd.docker.plugins.v1.2+json"

PROTOCOLS: Mapping[int, str] = {6: "tcp", 17: "udp", 132: "sctp"}
"""Names of the IP protocols that Docker publishes."""

GATEWAY_REQUEST = "com.docker.network.gateway"
_REQUEST_TYPE = "RequestAddressType"
_DRIVER_OPTIONS = "com.docker.network.generic"
_INTERNAL = "com.docker.network.internal"
_IPV6 = "com.docker.network.enable_ipv6"
_PORT_MAP = "com.docker.network.portmap"

_HINT = "Report the version of Docker on this host."


class PoolRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The request IpamDriver.RequestPool: the pool is "" if the driver chooses the pool."""

    pool: str = msgspec.field(name="Pool", default="")
    choice: str = msgspec.field(name="SubPool", default="")
    options: dict[str, str] | None = msgspec.field(name="Options", default=None)
    is_ipv6: bool = msgspec.field(name="V6", default=False)


class PoolReference(msgspec.Struct, frozen=True, kw_only=True):
    """The request IpamDriver.ReleasePool: the identifier of the released pool."""

    pool: str = msgspec.field(name="PoolID")


class AddressRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The requests IpamDriver.RequestAddress and ReleaseAddress: the address is "" if the driver chooses the
    address.
    """

    pool: str = msgspec.field(name="PoolID")
    address: str = msgspec.field(name="Address", default="")
    options: dict[str, str] | None = msgspec.field(name="Options", default=None)

    @property
    def is_for_gateway(self) -> bool:
        """True if the bridge gets the address."""
        return (self.options or {}).get(_REQUEST_TYPE) == GATEWAY_REQUEST


class NetworkData(msgspec.Struct, frozen=True, kw_only=True):
    """A prefix of a network that an IPAM driver has assigned."""

    pool: str = msgspec.field(name="Pool", default="")
    gateway: str = msgspec.field(name="Gateway", default="")


class NetworkRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The requests NetworkDriver.CreateNetwork and DeleteNetwork."""

    network: str = msgspec.field(name="NetworkID")
    options: dict[str, Any] | None = msgspec.field(name="Options", default=None)
    ipv4: list[NetworkData] | None = msgspec.field(name="IPv4Data", default=None)
    ipv6: list[NetworkData] | None = msgspec.field(name="IPv6Data", default=None)

    @property
    def driver_options(self) -> Mapping[str, object]:
        """Options that the user gave with `-o`."""
        found = (self.options or {}).get(_DRIVER_OPTIONS)
        return found if isinstance(found, dict) else {}

    @property
    def is_internal(self) -> bool:
        """True if the user gave `--internal`."""
        return (self.options or {}).get(_INTERNAL) is True

    @property
    def has_ipv6(self) -> bool:
        """True if the user gave `--ipv6`."""
        return (self.options or {}).get(_IPV6) is True


class _Interface(msgspec.Struct, frozen=True, kw_only=True):
    address: str = msgspec.field(name="Address", default="")
    ipv6_address: str = msgspec.field(name="AddressIPv6", default="")
    mac: str = msgspec.field(name="MacAddress", default="")


class _PortBinding(msgspec.Struct, frozen=True, kw_only=True):
    protocol: int = msgspec.field(name="Proto", default=0)
    port: int = msgspec.field(name="Port", default=0)
    host_ip: str = msgspec.field(name="HostIP", default="")
    host_port: int = msgspec.field(name="HostPort", default=0)
    last_host_port: int = msgspec.field(name="HostPortEnd", default=0)


class EndpointRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The requests NetworkDriver.CreateEndpoint, Join, Leave, and the other requests about one endpoint."""

    network: str = msgspec.field(name="NetworkID")
    endpoint: str = msgspec.field(name="EndpointID")
    interface: _Interface | None = msgspec.field(name="Interface", default=None)
    sandbox: str = msgspec.field(name="SandboxKey", default="")
    options: dict[str, Any] | None = msgspec.field(name="Options", default=None)

    @property
    def address(self) -> IPv4Interface | None:
        """The address that the IPAM driver gave; None if it gave no address.

        Raises:
            WireError: the text is not an IPv4 address with a prefix length.
        """
        if self.interface is None or not self.interface.address:
            return None
        return parse_as(IPv4Interface, self.interface.address)

    @property
    def ipv6_address(self) -> IPv6Interface | None:
        """The IPv6 address that the IPAM driver gave; None if it gave no IPv6 address."""
        if self.interface is None or not self.interface.ipv6_address:
            return None
        return parse_as(IPv6Interface, self.interface.ipv6_address)

    @property
    def mac(self) -> str:
        """The MAC address that the user gave; "" if the user gave no MAC address."""
        return "" if self.interface is None else self.interface.mac

    def ports(self, address: IPv4Address) -> tuple[PublishedPort, ...]:
        """Return the published ports of the container with this address.

        Raises:
            DockerPluginError: the plugin cannot publish one of the ports.
            WireError: the request does not have the form of Docker's requests.
        """
        found = (self.options or {}).get(_PORT_MAP) or []
        try:
            bindings = msgspec.convert(found, type=list[_PortBinding])
        except msgspec.MsgspecError as error:
            raise _malformed(error) from error
        return tuple(_published(one, address) for one in bindings)


def _published(binding: _PortBinding, address: IPv4Address) -> PublishedPort:
    protocol = PROTOCOLS.get(binding.protocol)
    if protocol is None:
        raise WireError(f"IP protocol {binding.protocol} cannot be published", hint=_HINT)
    if not binding.host_port or binding.last_host_port not in (0, binding.host_port):
        raise DockerPluginError(
            f"port {binding.port}/{protocol} is not published at exactly one port of the host",
            hint="Docker cannot show a port that a plugin chooses."
            f" Name the port of the host: -p 8080:{binding.port}.",
        )
    if ":" in binding.host_ip and binding.host_ip != "::":
        raise DockerPluginError(
            f"port {binding.port}/{protocol} is published at {binding.host_ip}, and flannel has no IPv6 here",
            hint="Publish the port at an IPv4 address, or at all addresses.",
        )
    host = binding.host_ip if binding.host_ip not in ("", "::", "0.0.0.0") else None
    return PublishedPort(
        protocol=protocol,
        host_address=None if host is None else parse_as(IPv4Address, host),
        host_port=binding.host_port,
        address=address,
        port=binding.port,
    )


_Request = TypeVar("_Request")


def parse_request(body: bytes, kind: type[_Request]) -> _Request:
    """Return a request of Docker.

    Raises:
        WireError: the request does not have the form of Docker's requests.
    """
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from error


def _malformed(error: Exception) -> WireError:
    return WireError(f"the request does not have the form of Docker's requests: {error}", hint=_HINT)


_Address = TypeVar(
    "_Address", IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
)


def parse_as(kind: type[_Address], text: str) -> _Address:
    """Return the address or prefix in a text.

    Raises:
        WireError: the text contains neither an address nor a prefix.
    """
    try:
        return kind(text)
    except ValueError as error:
        raise WireError(
            f"{text!r} is not an address of {kind.__name__[:4]}: {error}",
            hint="Write 10.1.2.3 or fd00::1, for example.",
        ) from error


def parse_address(text: str) -> IpAddress:
    """Return an address of either family.

    Raises:
        WireError: the text is not an address.
    """
    text = text.partition("/")[0]
    return parse_as(IPv6Address, text) if ":" in text else parse_as(IPv4Address, text)


# Answers to Docker's requests.

Answer = Mapping[str, object]
"""An answer, before its conversion to JSON."""

NOTHING: Answer = {}
ACTIVATION: Answer = {"Implements": ["NetworkDriver", "IpamDriver"]}
NETWORK_CAPABILITIES: Answer = {"Scope": "local", "ConnectivityScope": "global"}
"""The scope is local, because Docker refuses scope global outside a swarm."""

IPAM_CAPABILITIES: Answer = {"RequiresMACAddress": False, "RequiresRequestReplay": False}
ADDRESS_SPACES: Answer = {
    "LocalDefaultAddressSpace": "flannel",
    "GlobalDefaultAddressSpace": "flannel-global",
}
ENDPOINT_INFO: Answer = {"Value": {}}


def pool_answer(pool: Pool | Ipv6Pool) -> Answer:
    """Return the answer to RequestPool."""
    return {"PoolID": pool.name, "Pool": str(pool.subnet), "Data": {}}


def address_answer(address: IpAddress, pool: Pool | Ipv6Pool) -> Answer:
    """Return the answer to RequestAddress."""
    return {"Address": f"{address}/{pool.subnet.prefixlen}", "Data": {}}


def endpoint_answer(endpoint: DockerEndpoint, *, has_mac: bool) -> Answer:
    """Return the answer to CreateEndpoint. If Docker itself gave an attribute, Docker accepts no value for
    it.
    """
    return {"Interface": {} if has_mac else {"MacAddress": endpoint.mac}}


_BY_GATEWAY = 0  # types.NEXTHOP of libnetwork


def join_answer(endpoint: DockerEndpoint, network: DockerNetwork, routes: tuple[IpNetwork, ...]) -> Answer:
    """Return the answer to Join: Docker moves the link into the container and configures it there."""
    gateways = {4: str(network.gateway.ip)}
    if network.ipv6_gateway is not None:
        gateways[6] = str(network.ipv6_gateway.ip)
    return {
        "InterfaceName": {"SrcName": endpoint.inner_link, "DstPrefix": "eth"},
        "Gateway": "" if network.is_internal else gateways[4],
        "GatewayIPv6": "" if network.is_internal else gateways.get(6, ""),
        "StaticRoutes": [
            {"Destination": str(route), "RouteType": _BY_GATEWAY, "NextHop": gateways[route.version]}
            for route in routes
            if route.version in gateways
        ],
    }


def error_answer(error: FlannelError) -> Answer:
    """Return the answer to a failed request, with both names of the key."""
    return {"Err": error.in_full, "Error": error.in_full}


def format_answer(answer: Answer) -> bytes:
    """Return an answer as JSON."""
    return msgspec.json.encode(answer)


# The file with the state of the plugin.


def format_state(state: DockerState) -> bytes:
    """Return the content of the file for this state."""
    return (
        msgspec.json.format(msgspec.json.encode(state, enc_hook=str, order="deterministic"), indent=1) + b"\n"
    )


def parse_state(document: bytes) -> DockerState:
    """Return the state in the file.

    Raises:
        WireError: `format_state` did not write this file, or the file is incomplete.
    """
    try:
        return msgspec.json.decode(document, type=DockerState, dec_hook=address_of_text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(
            f"the file is damaged: {error}",
            hint="Remove the networks of Docker with the driver flannel, then delete the file.",
        ) from error
