"""The network config: the operator's value at the store's `config` key, completed and checked."""

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from msgspec import Struct, field

Family = Literal[4, 6]
"""An address family."""

IPV4_ONLY: tuple[Family, ...] = (4,)
BOTH_FAMILIES: tuple[Family, ...] = (4, 6)

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network


def is_part(one: IpNetwork, other: IpNetwork) -> bool:
    """Return whether a network is a part of another network, or equal to it."""
    if isinstance(one, IPv4Network) and isinstance(other, IPv4Network):
        return one.subnet_of(other)
    return isinstance(one, IPv6Network) and isinstance(other, IPv6Network) and one.subnet_of(other)


# The types of documents, because msgspec cannot read a union of two types of addresses.
if TYPE_CHECKING:
    AnyAddress = IpAddress
    AnyNetwork = IpNetwork
else:

    @runtime_checkable
    class AnyAddress(Protocol):
        """An IpAddress as one type."""

        packed: bytes
        """The address as bytes in network byte order."""

    @runtime_checkable
    class AnyNetwork(Protocol):
        """An IpNetwork as one type."""

        prefixlen: int
        """The length of the prefix in bits."""


DEFAULT_BACKEND = "udp"

FAST_PATHS = ("safe", "flow", "off")
"""The values of FastPath. `safe`: eBPF programs carry the packets, and every hook of the firewall applies.
`flow`: packets of known flows also bypass the firewall. `off`: no eBPF programs.
"""


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
"""The supported keys of the network config."""

LATER_KEYS = ("Networks", "IPv6Networks")
"""Keys of flannel 0.20 that pyflannel does not support."""


class NetworkConfig(Struct, frozen=True, kw_only=True):
    """One network of all hosts, and its backend.

    The values of a disabled family are as the operator wrote them. These values are not completed, checked or
    used.

    Attributes:
        network: the whole IPv4 range; None only if IPv4 is disabled and the operator wrote no range.
        subnet_length: prefix length of one host's subnet.
        subnet_min: base address of the first subnet that may be leased.
        subnet_max: base address of the last subnet that may be leased.
        backend_type: type of the backend in lower case; `udp` if the config contains no type.
        backend: the Backend object as decoded JSON, or `{}` if absent; its keys are as written.
        enable_nftables: True to use nftables instead of iptables.
        fast_path: one of FAST_PATHS. The original ignores this key.
        is_assigned: True if another program assigns the subnets, with any length. In Kubernetes, the subnet
            of a host is the podCIDR of its Node.
        unread: keys in the config without effect, each key once: keys of LATER_KEYS, or unknown keys, as
            written if they are printable.

    Source: the keys of the network config in flannel 0.28.9.
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
    is_assigned: bool = False
    unread: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[Family, ...]:
        """The enabled address families, IPv4 first."""
        return (*((4,) if self.enable_ipv4 else ()), *((6,) if self.enable_ipv6 else ()))

    def range_of(self, family: Family) -> IpNetwork | None:
        """Return the whole range of an enabled family; None if the family is disabled."""
        if family == 4:
            return self.network if self.enable_ipv4 else None
        return self.ipv6_network if self.enable_ipv6 else None

    @property
    def ranges(self) -> tuple[IpNetwork, ...]:
        """The ranges of the enabled families."""
        return tuple(found for family in self.families if (found := self.range_of(family)) is not None)

    def length_of(self, family: Family) -> int:
        """Return the prefix length of one host's subnet in a family."""
        return self.subnet_length if family == 4 else self.ipv6_subnet_length

    def admits(self, subnet: IpNetwork) -> bool:
        """Return whether a lease on `subnet` is allowed, which is true if its length is correct and it is in
        the range.

        Without IPv6, an IPv6 subnet has no effect and is allowed.
        """
        if self.is_assigned:
            return self._contains(subnet)
        if isinstance(subnet, IPv6Network):
            if not self.enable_ipv6 or self.ipv6_subnet_min is None or self.ipv6_subnet_max is None:
                return not self.enable_ipv6
            is_in_range = self.ipv6_subnet_min <= subnet.network_address <= self.ipv6_subnet_max
            return subnet.prefixlen == self.ipv6_subnet_length and is_in_range
        if not self.enable_ipv4 or self.subnet_min is None or self.subnet_max is None:
            return False
        return (
            subnet.prefixlen == self.subnet_length
            and self.subnet_min <= subnet.network_address <= self.subnet_max
        )

    def _contains(self, subnet: IpNetwork) -> bool:
        """Return whether a subnet of any length is in the range. Without IPv6, an IPv6 subnet is allowed."""
        if isinstance(subnet, IPv6Network):
            return not self.enable_ipv6 or (
                self.ipv6_network is not None and subnet.subnet_of(self.ipv6_network)
            )
        return self.enable_ipv4 and self.network is not None and subnet.subnet_of(self.network)
