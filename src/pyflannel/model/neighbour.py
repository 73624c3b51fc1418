"""Neighbours: which MAC address an IP address has on a link."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A neighbour entry, as planned or as found.

    Attributes:
        mac: six octets in lower-case hexadecimal, with colons; "" when the kernel has none.
        is_permanent: neither aged nor asked for (NUD_PERMANENT).
    """

    link: str
    address: IPv4Address | IPv6Address
    mac: str
    is_permanent: bool = True

    @property
    def key(self) -> tuple[str, str, IPv4Address | IPv6Address]:
        """What makes two values one kernel object."""
        return "neighbour", self.link, self.address
