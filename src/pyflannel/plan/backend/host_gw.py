"""The host-gw backend: packets cross the underlay as they are, each peer being the next hop to its subnet.

There is no tunnel and no device of ours, so hosts must be on one link, and know each other by the addresses
that they have there. IPv6 will be one route more for each peer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend_keys import ineffective, ipv4_network
from pyflannel.plan.routes import Routed, direct_route, peer_objection

_NAMED = 4
"""So many of our prefixes a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostGwBackend:
    """The host-gw backend of one network.

    Attributes:
        config_warnings: what has no effect in the config, a line each.
    """

    config_warnings: tuple[str, ...] = ()
    lease_type: str = "host-gw"
    port: None = None
    config_line: None = None
    routed: Routed = "peers"
    is_encrypted: bool = False

    def lease_data(self, owner: str, wireguard: WireguardFacts) -> None:
        """Return nothing: subnet and address say it all."""

    def mtu(self, host: Host) -> int:
        """Return the octets of the largest packet that a container may send: the underlay's."""
        return host.underlay.mtu

    def notes(self, host: Host) -> tuple[str, ...]:
        """Return what a person should know of how it runs on this host, in a line each."""
        return self.config_warnings

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> str | None:
        """Return what keeps it from working: peers are told an address that the interface does not have."""
        if underlay.public_ip == underlay.address:
            return None
        return (
            "another backend: your PublicIP differs from interface IP, meaning that probably you're on a NAT,"
            f" which is not supported by host-gw backend ({underlay.public_ip} is not {underlay.address} of"
            f" {underlay.link})"
        )

    def plan_host(self, host: Host) -> State:
        """Return nothing: the underlay is there already."""
        return State.EMPTY

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return why a peer cannot be the next hop: another backend, or it is not on our link."""
        attributes, underlay = peer.attributes, host.underlay
        if attributes.backend_type != self.lease_type:
            return f"Ignoring non-host-gw subnet: type={attributes.backend_type}"
        if (why := peer_objection(peer, host)) is not None:
            return why
        if underlay.reaches(attributes.public_ip):
            return None
        prefixes = [str(prefix) for prefix in underlay.on_link[:_NAMED]]
        more = ["…"] if len(underlay.on_link) > _NAMED else []
        return (
            f"{attributes.public_ip} is not on our link, which host-gw needs: without a gateway"
            f" {underlay.link} reaches {', '.join(prefixes + more) or 'nobody'}"
        )

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IPv4Network, str]:
        """Return nobody: no two peers want the same thing."""
        return {}

    def guarded_path(self, host: Host) -> GuardedPath:
        """Return the underlay, by which peers send inner packets as they are."""
        return GuardedPath(links=(host.underlay.link,))

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return nothing: bridges have what they need."""
        return State.EMPTY

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return the one route by way of the peer."""
        if self.objection(peer, host) is not None:
            return State.EMPTY
        return State.of(direct_route(peer, host))


def parse(config: NetworkConfig) -> HostGwBackend:
    """Return the backend that the config asks for.

    Raises:
        ConfigError: IPv4 is off.
    """
    ipv4_network(config)
    return HostGwBackend(config_warnings=ineffective(config, ()))
