"""Entries of the fast path's table of this host's containers."""

from dataclasses import dataclass
from ipaddress import IPv4Address

from pyflannel.model.item_map import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfContainer:
    """Frames for `address` that the tunnel brought, and that go to `mac`, go straight to `link`.

    Attributes:
        device: name of the TUN device of the tunnel.
        mac: six octets in lower-case hexadecimal, with colons.
        link: the host's end of the container's veth.
    """

    device: str
    address: IPv4Address
    mac: str
    link: str

    @property
    def key(self) -> Key:
        """What makes two values one entry: MAC address and link may be replaced."""
        return ("bpf-container", self.device), self.address
