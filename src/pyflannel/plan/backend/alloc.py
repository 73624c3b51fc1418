"""The alloc backend: the host takes a subnet and says so in subnet.env; others see to how packets cross."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network

from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.state import State
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend_keys import ineffective, ipv4_network
from pyflannel.plan.routes import Routed


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocBackend:
    """The alloc backend of one network.

    Attributes:
        lease_type: empty, as the original leaves it.
        config_warnings: what has no effect in the config, a line each.
    """

    config_warnings: tuple[str, ...] = ()
    lease_type: str = ""
    port: None = None
    config_line: None = None
    routed: Routed = "nothing"
    is_encrypted: bool = False

    def lease_data(self, owner: str, wireguard: WireguardFacts) -> None:
        """Return nothing: subnet and address say it all."""

    def mtu(self, host: Host) -> int:
        """Return the octets of the largest packet that a container may send: the underlay's."""
        return host.underlay.mtu

    def notes(self, host: Host) -> tuple[str, ...]:
        """Return what a person should know of how it runs on this host, in a line each."""
        return self.config_warnings

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> None:
        """Return nothing: there is nothing that could be in the way."""

    def plan_host(self, host: Host) -> State:
        """Return nothing."""
        return State.EMPTY

    def objection(self, peer: Lease, host: Host) -> None:
        """Return nothing: peers are not looked at."""

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IPv4Network, str]:
        """Return nobody: peers are not looked at."""
        return {}

    def guarded_path(self, host: Host) -> None:
        """Return nothing: others see to how packets cross."""

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return nothing: bridges have what they need."""
        return State.EMPTY

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return nothing."""
        return State.EMPTY


def parse(config: NetworkConfig) -> AllocBackend:
    """Return the backend that the config asks for.

    Raises:
        ConfigError: IPv4 is off.
    """
    ipv4_network(config)
    return AllocBackend(config_warnings=ineffective(config, ()))
