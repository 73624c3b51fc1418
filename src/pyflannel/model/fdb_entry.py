"""FDB entries of vxlan devices: behind which host a MAC address is."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pyflannel.model.item_map import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class FdbEntry:
    """Frames to `mac` are sent to the VTEP at `destination`.

    Attributes:
        mac: six octets in lower-case hexadecimal, with colons.
        others: further destinations, each of which would get a copy; we never plan any. Sorted.
        is_permanent: neither aged nor learned over (NUD_PERMANENT or NUD_NOARP).
        is_plain: by the device's own port, VNI and underlay; we plan no other.
    """

    link: str
    mac: str
    destination: IPv4Address | IPv6Address
    others: tuple[IPv4Address | IPv6Address, ...] = ()
    is_permanent: bool = True
    is_plain: bool = True

    @property
    def key(self) -> Key:
        """What makes two values one kernel object."""
        return ("fdb", self.link), self.mac
