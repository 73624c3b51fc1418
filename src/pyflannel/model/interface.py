"""Interfaces: what a host offers to carry the tunnel, as it was observed."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceAddress:
    """An address that an interface holds.

    Attributes:
        is_global: usable beyond the link (scope global, and not a link-local address).
        is_permanent: it has no lifetime; one by DHCP has.
        is_secondary: another address of its prefix came before it (IPv4), or it is temporary (IPv6).
        is_deprecated: no new connection may use it.
    """

    address: IPv4Interface | IPv6Interface
    is_global: bool = True
    is_permanent: bool = True
    is_secondary: bool = False
    is_deprecated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A link with its addresses, in the kernel's order.

    Attributes:
        kind: the kernel's kind; "" for a physical device.
        alias: free text.
        on_link: prefixes that the host reaches by it without a gateway, sorted; without the default route.
        driver: the kernel driver, `vmxnet3`, `veth`; "" when it does not say, or there is no IPv4 address.
    """

    name: str
    index: int
    mtu: int
    is_up: bool = True
    is_loopback: bool = False
    kind: str = ""
    alias: str = ""
    addresses: tuple[InterfaceAddress, ...] = ()
    on_link: tuple[IPv4Network, ...] = ()
    driver: str = ""

    def holds(self, address: IPv4Address | IPv6Address) -> bool:
        """Return whether it has exactly this address."""
        return any(held.address.ip == address for held in self.addresses)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultRoute:
    """A route to everywhere.

    Attributes:
        link: name of the interface that it leaves by.
        source: the address that it prefers for the host's own packets, when it names one.
    """

    link: str
    metric: int = 0
    source: IPv4Address | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interfaces:
    """All interfaces of a host, by index, and its IPv4 default routes, in the kernel's order."""

    interfaces: tuple[Interface, ...] = ()
    default_routes: tuple[DefaultRoute, ...] = ()

    def named(self, name: str) -> Interface | None:
        """Return the interface of this name."""
        return next((one for one in self.interfaces if one.name == name), None)

    def holder(self, address: IPv4Address | IPv6Address) -> Interface | None:
        """Return the interface that has this address."""
        return next((one for one in self.interfaces if one.holds(address)), None)
