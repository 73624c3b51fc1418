"""The udp backend: packets cross a TUN device and a process of ours, one inner packet a datagram.

flannel0 has the base address of our subnet with the prefix of the whole network, so that the kernel itself
routes the network to it (release 0.6.2; later releases use /32 and a route, which looks the same to a peer).
The forwarder takes it from there: it knows each peer's subnet and address.
"""

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network

from pyflannel.errors import ConfigError
from pyflannel.model.address import Address
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import Host
from pyflannel.model.lease import Lease
from pyflannel.model.link import Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, Route
from pyflannel.model.state import State

OVERHEAD = 28
"""Octets that the tunnel adds: an IPv4 header (20) and a UDP header (8)."""

DEFAULT_PORT = 8285
QUEUE_LENGTH = 500
"""Packets; what the kernel gives a TUN device by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UdpBackend:
    """The udp backend of one network.

    Attributes:
        network: the whole range, routed to the device.
        port: UDP port of the host, and of every peer that publishes no other.
    """

    network: IPv4Network
    port: int = DEFAULT_PORT
    lease_type: str = ""

    def lease_data(self, owner: str) -> None:
        """Return nothing: subnet and address say it all."""

    def mtu(self, host: Host) -> int:
        """Return the octets of the largest packet that a container may send."""
        return host.underlay.mtu - OVERHEAD

    def plan_host(self, host: Host) -> State:
        """Return the device, its address, the route of the network and the forwarder."""
        base = host.lease.subnet.network_address
        return State.of(
            Link(
                name=host.device,
                kind="tun",
                mtu=self.mtu(host),
                queue_length=QUEUE_LENGTH,
                alias=host.mark,
            ),
            Address(link=host.device, address=IPv4Interface((base, self.network.prefixlen))),
            # The kernel adds this route with the address; it is planned all the same, so that it comes
            # back when it alone is removed or replaced.
            Route(
                destination=self.network,
                link=host.device,
                source=base,
                protocol=PROTOCOL_KERNEL,
                scope=SCOPE_LINK,
            ),
            Forwarder(
                link=host.device,
                tunnel_address=base,
                subnet=host.lease.subnet,
                listen_address=host.underlay.address,
                port=self.port,
                mtu=self.mtu(host),
            ),
        )

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return why the peer cannot be reached: it has another backend."""
        if peer.attributes.backend_type not in ("", "udp"):
            return f"Ignoring non-udp subnet: type={peer.attributes.backend_type}"
        return None

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return what makes one peer's subnet reachable: an entry in the forwarder's table.

        A peer of the original publishes neither type nor port: it listens where the config says.
        """
        if self.objection(peer, host) is not None:
            return State.EMPTY
        return State.of(
            ForwarderPeer(
                link=host.device,
                subnet=peer.subnet,
                address=peer.attributes.public_ip,
                port=peer.attributes.port or self.port,
            )
        )


def parse(config: NetworkConfig) -> UdpBackend:
    """Return the backend that the config asks for.

    Raises:
        ConfigError: IPv4 is off, or Port is no UDP port; the message names key and value.
    """
    if not config.enable_ipv4 or config.network is None:
        raise ConfigError(
            "the udp backend carries IPv4 only, and the config has EnableIPv4=false",
            hint="Set EnableIPv4 and Network, or choose another Backend.Type.",
        )
    port: object = DEFAULT_PORT
    for key, value in config.backend.items():
        if key.lower() == "port" and value is not None:
            port = value
    if type(port) is not int or not 0 < port < 65536:
        raise ConfigError(
            f"error decoding UDP backend config: Backend.Port is {port!r}, not a UDP port",
            hint="Give Backend.Port a whole number from 1 to 65535, or leave it out for 8285.",
        )
    return UdpBackend(network=config.network, port=port)
