"""Addresses on links."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from pyflannel.model.item_map import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address with its prefix length on a link; with an IPv4 one the kernel adds the connected route.

    Attributes:
        peer: the other end of a point-to-point address, which we never plan.
    """

    link: str
    address: IPv4Interface | IPv6Interface
    peer: IPv4Address | IPv6Address | None = None

    @property
    def key(self) -> Key:
        """What makes two values one kernel object."""
        return ("address", self.link), self.address
