"""The backends there are: a closed mapping from type name to backend; nothing registers itself."""

from collections.abc import Callable, Mapping
from typing import Protocol

from pyflannel.errors import ConfigError
from pyflannel.model.backend_data import BackendData
from pyflannel.model.host import Host
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.state import State
from pyflannel.plan.backend import udp


class Backend(Protocol):
    """How packets cross one network, as pure functions; a value made from the network config."""

    @property
    def lease_type(self) -> str:
        """What our lease says as BackendType."""

    @property
    def port(self) -> int | None:
        """UDP port that our lease publishes, or None."""

    def lease_data(self, owner: str) -> BackendData | None:
        """Return what our lease publishes as BackendData, for the host with this identity."""

    def mtu(self, host: Host) -> int:
        """Return the octets of the largest packet that a container may send."""

    def plan_host(self, host: Host) -> State:
        """Return what the host itself needs, whatever peers there are."""

    def objection(self, peer: Lease, host: Host) -> str | None:
        """Return why a peer cannot be reached by this backend, in words for the log; None when it can."""

    def plan_peer(self, peer: Lease, host: Host) -> State:
        """Return what one peer needs; empty for one that there is an objection to."""


_PARSERS: Mapping[str, Callable[[NetworkConfig], Backend]] = {"udp": udp.parse}

# Named by the original; a config that asks for one is right, but not for us yet.
_LATER = frozenset({"vxlan", "host-gw", "ipip", "wireguard", "ipsec", "extension", "alloc", "tencent-vpc"})


def unsupported(config: NetworkConfig) -> str | None:
    """Return what to say of a config that flannel takes and we do not yet; None when we do too.

    Raises:
        ConfigError: no flannel knows the backend, or the backend's own part is wrong.
    """
    if config.backend_type in _LATER:
        return f"Backend.Type {config.backend_type} is the original's; no flanneld of this version runs it"
    backend_of(config)
    return None


def backend_of(config: NetworkConfig) -> Backend:
    """Return the backend that the config asks for.

    Raises:
        ConfigError: there is no such backend, or its own part of the config is wrong.
    """
    parser = _PARSERS.get(config.backend_type)
    if parser is None:
        later = " (not yet supported)" if config.backend_type in _LATER else ""
        raise ConfigError(
            f"unknown backend type: {config.backend_type}{later}",
            hint=f"Set Backend.Type to one of: {', '.join(sorted(_PARSERS))}.",
        )
    return parser(config)
