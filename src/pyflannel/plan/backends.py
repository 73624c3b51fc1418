"""The backends there are: a closed mapping from type name to backend; nothing registers itself."""

from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network
from typing import Protocol

from pyflannel.errors import UnknownBackendError
from pyflannel.model.host import Bridge, Host, Underlay
from pyflannel.model.lease import BackendData, Lease
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardedPath
from pyflannel.model.wireguard import WireguardFacts
from pyflannel.plan.backend import alloc, host_gw, udp, vxlan, wireguard
from pyflannel.plan.backend_keys import without_effect
from pyflannel.plan.routes import Routed, network_notes


class Backend(Protocol):
    """How packets cross one network, as pure functions; a value made from the network config."""

    @property
    def lease_type(self) -> str:
        """What our lease says as BackendType."""

    @property
    def port(self) -> int | None:
        """UDP port that our lease publishes, or None."""

    @property
    def routed(self) -> Routed:
        """What its routes lead to."""

    @property
    def config_line(self) -> str | None:
        """What the original logs of its config when it has read it, or None."""

    @property
    def config_warnings(self) -> tuple[str, ...]:
        """What is odd about its config though it is right, in a line each: keys without effect."""

    @property
    def is_encrypted(self) -> bool:
        """Whether every packet to another host is encrypted."""

    def lease_data(self, owner: str, wireguard: WireguardFacts) -> BackendData | None:
        """Return what our lease publishes as BackendData, for the host with this identity."""

    def mtu(self, host: Host) -> int:
        """Return the octets of the largest packet that a container may send."""

    def notes(self, host: Host) -> tuple[str, ...]:
        """Return how it runs on this host where that is not as usual, a line each, with `config_warnings`."""

    def obstacle(self, underlay: Underlay, wireguard: WireguardFacts) -> str | None:
        """Return what it waits for where it cannot work on this host, in words; None if it can."""

    def plan_host(self, host: Host) -> State:
        """Return what the host itself needs, whatever peers there are."""

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return why a peer cannot be reached by this backend, in words for the log; None when it can."""

    def outranked(self, peers: Iterable[Lease], host: Host) -> Mapping[IPv4Network, str]:
        """Return the peers that give way to others which want the same thing, by subnet, and why.

        It depends on what the peers are, not on the order in which they came.
        """

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return what one peer needs; empty for one that there is an objection to."""

    def guarded_path(self, host: Host) -> GuardedPath | None:
        """Return how packets of other hosts come to this one; None if the backend does not know."""

    def plan_bridges(self, bridges: Iterable[Bridge], host: Host) -> State:
        """Return what the containers behind these bridges need; empty for most backends."""


_PARSERS: Mapping[str, Callable[[NetworkConfig], Backend]] = {
    "alloc": alloc.parse,
    "host-gw": host_gw.parse,
    "udp": udp.parse,
    "vxlan": vxlan.parse,
    "wireguard": wireguard.parse,
}

# Named by the original; a config that asks for one is right, but not for us yet.
_LATER = frozenset({"ipip", "ipsec", "extension", "tencent-vpc"})


def config_warnings(config: NetworkConfig) -> tuple[str, ...]:
    """Return what to say of a right config, in a line each: flannel takes it, and we do not, or not whole.

    Raises:
        ConfigError: no flannel knows the backend, or the backend's own part is wrong.
    """
    if config.backend_type in _LATER:
        later = f"Backend.Type {config.backend_type} is the original's; no flanneld of this version runs it"
        return (later, *without_effect(config))
    return backend_of(config).config_warnings


def notes_on(config: NetworkConfig, backend: Backend, host: Host) -> tuple[str, ...]:
    """Return how the network runs on this host where that is not as usual, a line each."""
    if backend.routed == "nothing":
        return backend.notes(host)
    notes = (*backend.notes(host), *network_notes(config.network, host.underlay, host.surroundings))
    return tuple(dict.fromkeys(notes))


def backend_of(config: NetworkConfig) -> Backend:
    """Return the backend that the config asks for.

    Raises:
        ConfigError: there is no such backend, or its own part of the config is wrong.
    """
    parser = _PARSERS.get(config.backend_type)
    if parser is None:
        later = " (not yet supported)" if config.backend_type in _LATER else ""
        raise UnknownBackendError(
            f"unknown backend type: {config.backend_type}{later}",
            hint=f"Set Backend.Type to one of: {', '.join(sorted(_PARSERS))}.",
        )
    return parser(config)
