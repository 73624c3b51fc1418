"""The alloc backend: the host acquires a subnet and writes subnet.env. Other programs transport the
packets.
"""

from collections.abc import Iterable, Mapping

from msgspec import Struct

from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import BOTH_FAMILIES, Family, IpNetwork, NetworkConfig
from pyflannel.model.state import State
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend_keys import ineffective
from pyflannel.plan.routes import Routed


class AllocBackend(Struct, frozen=True, kw_only=True):
    """The alloc backend of one network.

    Attributes:
        lease_type: type in the lease, which is empty, as in the original.
        config_warnings: warnings about parts of the config without effect, one line each.
    """

    config_warnings: tuple[str, ...] = ()
    lease_type: str = ""
    way: str = "alloc"
    reads: tuple[str, ...] = ()
    port: None = None
    tunnel_port: None = None
    config_line: None = None
    routed: Routed = "nothing"
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

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> None:
        """Return nothing, because the backend requires no condition."""

    def plan_host(self, host: Host) -> State:
        """Return no objects, because other programs transport the packets."""
        return State.EMPTY

    def objection(self, peer: Lease, host: Host) -> None:
        """Return nothing, because peers are not checked."""

    def foreseen(self, peer: Lease) -> None:
        """Return nothing, because the backend reads no data of a peer."""

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IpNetwork, str]:
        """Return nothing, because peers are not checked."""
        return {}

    def guarded_path(self, host: Host) -> None:
        """Return nothing, because other programs transport the packets."""

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return nothing, because bridges need no objects."""
        return State.EMPTY

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return no objects, because other programs transport the packets."""
        return State.EMPTY


def parse(config: NetworkConfig) -> AllocBackend:
    """Return the backend of the config."""
    return AllocBackend(config_warnings=ineffective(config, (), BOTH_FAMILIES))
