"""The host-gw backend: packets are sent without a tunnel, and each peer is the gateway of its subnet.

There is no tunnel and no device. Therefore, all hosts must be on one link, and publish their addresses on
this link.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import BOTH_FAMILIES, Family, IpNetwork, NetworkConfig
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend_keys import ineffective
from pyflannel.plan.routes import NO_IPV6, Routed, direct_route, peer_objection

_NAMED = 4
"""Maximum number of prefixes of this host that a message names."""


class HostGwBackend(Struct, frozen=True, kw_only=True):
    """The host-gw backend of one network.

    Attributes:
        config_warnings: warnings about parts of the config without effect, one line each.
    """

    config_warnings: tuple[str, ...] = ()
    lease_type: str = "host-gw"
    way: str = "host-gw"
    reads: tuple[str, ...] = ()
    port: None = None
    tunnel_port: None = None
    config_line: None = None
    routed: Routed = "peers"
    families: tuple[Family, ...] = BOTH_FAMILIES
    is_encrypted: bool = False

    def tunnel_port_in(self, family: Family) -> None:
        """Return nothing, because the backend has no tunnel."""

    def lease_data(self, owner: str, wireguard: WireguardFacts, family: Family = 4) -> None:
        """Return nothing, because the subnet and the address are sufficient."""

    def mtu(self, host: Host) -> int:
        """Return the size of the largest packet of a container, in bytes: the underlay's MTU."""
        return host.underlay.mtu

    def notes(self, host: Host) -> tuple[str, ...]:
        """Return notes about unusual properties of the backend on this host, one line each."""
        return self.config_warnings

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> str | None:
        """Return the reason why the backend cannot work: the published address is not an address of the
        interface.
        """
        for public, address in (
            (underlay.public_ip, underlay.address),
            (underlay.public_ipv6, underlay.ipv6_address),
        ):
            if public != address:
                return (
                    "another backend: your PublicIP differs from interface IP, meaning that probably you're"
                    f" on a NAT, which is not supported by host-gw backend ({public} is not {address} of"
                    f" {underlay.link})"
                )
        return None

    def plan_host(self, host: Host) -> State:
        """Return nothing, because the underlay exists already."""
        return State.EMPTY

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return the reason why a peer cannot be the gateway: it uses another backend, or is not on the
        link.
        """
        part, underlay = peer.part(host.family), host.underlay
        if peer.attributes.backend_type != self.lease_type:
            return f"Ignoring non-host-gw subnet: type={peer.attributes.backend_type}"
        if part is None:
            return NO_IPV6
        if (why := peer_objection(part, host)) is not None:
            return why
        if underlay.reaches(part.address):
            return None
        prefixes = [str(prefix) for prefix in underlay.on_link[:_NAMED]]
        more = ["…"] if len(underlay.on_link) > _NAMED else []
        return (
            f"{part.address} is not on the link of this host, which host-gw needs: without a gateway"
            f" {underlay.link} reaches {', '.join(prefixes + more) or 'no other host'}"
        )

    def foreseen(self, peer: Lease) -> None:
        """Return nothing, because packets of a peer are received without an object for it."""

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IpNetwork, str]:
        """Return nothing, because no two peers need the same object."""
        return {}

    def guarded_path(self, host: Host) -> GuardedPath:
        """Return the underlay, at which inner packets arrive without a tunnel."""
        return GuardedPath(links=(host.underlay.link,))

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return nothing, because bridges need no objects."""
        return State.EMPTY

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return the route with the peer as gateway."""
        part = peer.part(host.family)
        if part is None or self.objection(peer, host) is not None:
            return State.EMPTY
        return State.of(direct_route(part, host))


def parse(config: NetworkConfig) -> HostGwBackend:
    """Return the backend of the config."""
    return HostGwBackend(config_warnings=ineffective(config, (), BOTH_FAMILIES))
