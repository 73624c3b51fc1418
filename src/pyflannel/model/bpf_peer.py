"""Entries of the fast path's table of peers."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.item_map import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfPeer:
    """Packets to `subnet` go in datagrams to `address`:`port`; those from it come from `address` only.

    Attributes:
        device: name of the TUN device of the tunnel.
        is_direct: the kernel sends to it; False when its packets take the way through user space, because
            it cannot read what a sender leaves to hardware to finish.
    """

    device: str
    subnet: IPv4Network
    address: IPv4Address
    port: int
    is_direct: bool = True

    @property
    def key(self) -> Key:
        """What makes two values one entry; all else may be replaced."""
        return ("bpf-peer", self.device), self.subnet
