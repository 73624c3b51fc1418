"""The udp backend: packets use a TUN device and the forwarder process, one inner packet per datagram.

flannel0 has the base address of this host's subnet with the prefix of the whole network, so that the kernel
itself routes the network to it (release 0.6.2). If the host serves Docker's network plugin, the address has
the prefix /32 and the route has scope global, as in later releases. The effect for peers is the same. The
forwarder has a table with the subnet and the address of each peer.
"""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.errors import ConfigError
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import BackendPart, Lease
from pyflannel.model.link import Address, Link
from pyflannel.model.network_config import IPV4_ONLY, Family, IpNetwork, NetworkConfig
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_GLOBAL, SCOPE_LINK, Route
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath, GuardedTunnel
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend_keys import BackendKeys, ineffective
from pyflannel.plan.fast_path import ipsec_note, plan_last_hops, plan_peer_entry, plan_programs, udp_tunnel
from pyflannel.plan.routes import Routed, address_objection, route_objection

KEYS = ("Port",)

OVERHEAD = 28
"""Bytes that the tunnel adds: an IPv4 header (20) and a UDP header (8)."""

DEFAULT_PORT = 8285
_PORTS = range(1, 65536)
QUEUE_LENGTH = 500
"""Length of the transmit queue in packets, which is the kernel's default for a TUN device."""


class UdpBackend(Struct, frozen=True, kw_only=True):
    """The udp backend of one network.

    Attributes:
        network: the whole range of the network, which is routed to the device.
        port: UDP port of the host, and of each peer that publishes no other port.
        config_warnings: warnings about parts of the config without effect, one line each.
    """

    network: IPv4Network
    port: int = DEFAULT_PORT
    config_warnings: tuple[str, ...] = ()
    lease_type: str = ""
    way: str = "udp"
    reads: tuple[str, ...] = ()
    config_line: None = None
    routed: Routed = "network"
    families: tuple[Family, ...] = IPV4_ONLY
    is_encrypted: bool = False

    @property
    def tunnel_port(self) -> int:
        """UDP port on which this host receives tunnel packets."""
        return self.port

    def tunnel_port_in(self, family: Family) -> int:
        """Return the UDP port of the tunnel of an address family."""
        return self.tunnel_port

    def lease_data(self, owner: str, wireguard: WireguardFacts, family: Family = 4) -> None:
        """Return nothing, because the subnet and the address are sufficient."""

    def mtu(self, host: Host) -> int:
        """Return the size of the largest packet of a container, in bytes."""
        return host.underlay.mtu - OVERHEAD

    def notes(self, host: Host) -> tuple[str, ...]:
        """Return notes about unusual properties of the backend on this host, one line each."""
        why = route_objection(self.network, host.underlay, host.surroundings)
        ipsec = ipsec_note(host, self.port)
        return (
            *self.config_warnings,
            *(() if why is None else (f"Network {why}",)),
            *(() if ipsec is None else (ipsec,)),
        )

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> None:
        """Return nothing, because the backend works on each host with UDP."""

    def plan_host(self, host: Host) -> State:
        """Return the device, its address, the route of the network, the forwarder and the programs."""
        base = host.ipv4.subnet.network_address
        return State.of(
            Link(
                name=host.device,
                kind="tun",
                mtu=self.mtu(host),
                queue_length=QUEUE_LENGTH,
                alias=host.mark,
                owner=host.device_owner,
            ),
            *self._network_route(host, base),
            Forwarder(
                link=host.device,
                tunnel_address=base,
                subnet=host.ipv4.subnet,
                listen_address=host.ipv4.address,
                port=self.port,
                mtu=self.mtu(host),
            ),
            *plan_programs(host, udp_tunnel(host, self.port, self.mtu(host))),
        )

    def _network_route(self, host: Host, base: IPv4Address) -> tuple[Address | Route, ...]:
        """Return the device's address and the route of the network; only the address if the route is refused.

        The kernel adds the route with the address. The plan contains this route nevertheless, so that it is
        restored if only the route is removed or replaced.
        """
        if route_objection(self.network, host.underlay, host.surroundings) is not None:
            return (Address(link=host.device, address=IPv4Interface(base)),)
        if host.serves_docker:
            return (
                Address(link=host.device, address=IPv4Interface(base)),
                Route(destination=self.network, link=host.device, protocol=host.protocol, scope=SCOPE_GLOBAL),
            )
        return (
            Address(link=host.device, address=IPv4Interface((base, self.network.prefixlen))),
            Route(
                destination=self.network,
                link=host.device,
                source=base,
                protocol=PROTOCOL_KERNEL,
                scope=SCOPE_LINK,
            ),
        )

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return the reason why the peer cannot be reached: it uses another backend, or an unusable
        address.
        """
        if peer.attributes.backend_type not in ("", "udp"):
            return f"Ignoring non-udp subnet: type={peer.attributes.backend_type}"
        return address_objection(peer.attributes.public_ip, host)

    def foreseen(self, peer: Lease) -> Lease:
        """Return the lease of the peer with this backend, because the network config contains the port."""
        return replace(peer, attributes=peer.attributes.with_backend(BackendPart(port=self.port)))

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IpNetwork, str]:
        """Return nothing, because no two peers need the same object."""
        return {}

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return the entries of one peer in the tables of the forwarder and of the programs.

        A peer of the original publishes neither type nor port, so it uses the port of the config.
        """
        if self.objection(peer, host) is not None:
            return State.EMPTY
        port = peer.attributes.port or self.port
        return State.of(
            ForwarderPeer(link=host.device, subnet=peer.ipv4.subnet, address=peer.ipv4.address, port=port),
            *plan_peer_entry(peer, host, self.port, port),
        )

    def guarded_path(self, host: Host) -> GuardedPath:
        """Return the tunnel. The programs and the forwarder also check arriving packets themselves."""
        tunnel = GuardedTunnel(link=host.device, port=self.port)
        return GuardedPath(links=(host.device,), tunnel=tunnel)

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return the programs and entries that send frames directly to containers."""
        return State.of(*plan_last_hops(bridges, host, udp_tunnel(host, self.port, self.mtu(host))))


def parse(config: NetworkConfig) -> UdpBackend:
    """Return the backend of the config.

    Raises:
        ConfigError: IPv4 is disabled, or Port is not a UDP port; the message names the key and the value.
    """
    if not config.enable_ipv4 or config.network is None:
        raise ConfigError(
            "EnableIPv4=false: the udp backend carries IPv4 only",
            hint="Set Backend.Type to vxlan, host-gw or wireguard; or omit EnableIPv4 and set Network.",
        )
    port = BackendKeys("UDP", config.backend).number("Port", DEFAULT_PORT, _PORTS)
    return UdpBackend(network=config.network, port=port, config_warnings=ineffective(config, KEYS))
