"""Neighbours: which MAC address an IP address has on a link."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pyflannel.model.item_map import Key


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
    def key(self) -> Key:
        """What makes two values one kernel object."""
        return ("neighbour", self.link, self.address.version), int(self.address)
