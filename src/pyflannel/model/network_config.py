"""The network config: what the operator wrote at the store's `config` key, computed and checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

DEFAULT_BACKEND = "udp"

FAST_PATHS = ("safe", "off")
"""What FastPath may be: programs in the kernel carry packets, past no hook of its firewall; or none do."""


KEYS = (
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "EnableIPv4",
    "EnableIPv6",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "EnableNFTables",
    "FastPath",
    "Backend",
)
"""The keys that are read."""

LATER_KEYS = ("Networks", "IPv6Networks")
"""Keys that a release of the original reads, 0.20, and we do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    """One network that all hosts share, and how packets cross it.

    The values of a family that is off are as the operator wrote them: neither computed nor checked, nor used.

    Attributes:
        network: the whole IPv4 range; None only when IPv4 is off and the operator wrote none.
        subnet_length: prefix length of one host's subnet.
        subnet_min: base address of the first subnet that may be leased.
        subnet_max: base address of the last one, itself included.
        backend_type: lower case, `udp` when the config names none.
        backend: the Backend object as decoded JSON, `{}` when absent; keys as written.
        enable_nftables: rules by nftables rather than iptables.
        fast_path: one of FAST_PATHS; ours, the original passes it over.
        unread: keys that are there and have no effect, each once: of LATER_KEYS, or unknown, as written
            unless that does not bear printing.

    Source: flannel 0.28.9, the keys of its network config.
    """

    enable_ipv4: bool = True
    network: IPv4Network | None = None
    subnet_length: int = 0
    subnet_min: IPv4Address | None = None
    subnet_max: IPv4Address | None = None
    enable_ipv6: bool = False
    ipv6_network: IPv6Network | None = None
    ipv6_subnet_length: int = 0
    ipv6_subnet_min: IPv6Address | None = None
    ipv6_subnet_max: IPv6Address | None = None
    enable_nftables: bool = False
    fast_path: str = "safe"
    backend_type: str = DEFAULT_BACKEND
    backend: Mapping[str, object] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def admits(self, subnet: IPv4Network) -> bool:
        """Return whether a lease on `subnet` fits: right length, between first and last."""
        if not self.enable_ipv4 or self.subnet_min is None or self.subnet_max is None:
            return False
        return (
            subnet.prefixlen == self.subnet_length
            and self.subnet_min <= subnet.network_address <= self.subnet_max
        )
