"""Addresses on links."""

from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An address with its prefix length on a link; the kernel adds the connected route of an IPv4 one by itself."""

    link: str
    address: IPv4Interface | IPv6Interface

    @property
    def key(self) -> tuple[str, str, IPv4Interface | IPv6Interface]:
        """What makes two values one kernel object."""
        return "address", self.link, self.address
