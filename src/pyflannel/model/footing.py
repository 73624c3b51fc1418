"""Where a host stands in its network."""

from dataclasses import dataclass
from ipaddress import IPv4Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Footing:
    """What is known of a host's place, whether its daemon runs or not.

    Attributes:
        network: the whole range.
        subnet: the host's own share.
        underlay: name of the interface that carries the tunnel.
    """

    network: IPv4Network | None = None
    subnet: IPv4Network | None = None
    underlay: str | None = None
