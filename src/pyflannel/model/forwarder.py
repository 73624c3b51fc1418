"""The user-space forwarder of the udp backend: its process, its peers, and the senders it rejected."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pyflannel.model.item import Key


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarder:
    """The process that moves packets between a TUN device and a UDP socket.

    Attributes:
        link: name of the TUN device that it is attached to.
        tunnel_address: source of the ICMP errors that it sends: the base address of our subnet.
        subnet: our own subnet; only packets to it are taken from peers.
        listen_address: address of the underlay interface, where the socket is bound.
        port: UDP port, bound and, unless a peer publishes another, sent to.
        mtu: octets of the largest inner packet.
        is_attached: False when the device went away under it.
        is_current: False when it is of another version than ours.
    """

    link: str
    tunnel_address: IPv4Address
    subnet: IPv4Network
    listen_address: IPv4Address
    port: int
    mtu: int
    is_attached: bool = True
    is_current: bool = True

    @property
    def key(self) -> Key:
        """What makes two values one object: one forwarder a device."""
        return "forwarder", self.link


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderPeer:
    """Packets to `subnet` go in datagrams to `address`:`port`; those from it come from `address` only."""

    link: str
    subnet: IPv4Network
    address: IPv4Address
    port: int

    @property
    def key(self) -> Key:
        """What makes two values one entry; address and port may be replaced."""
        return ("forwarder-peer", self.link), self.subnet


StrangerReason = Literal["stranger", "impostor", "not_ours"]
"""No host has the inner source; another host has it; the inner destination is not ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """Packets from one address that were dropped for one reason, since counting began.

    Attributes:
        address: the sender's on the underlay, as the outer header says: it may be forged.
        age_s: seconds since the latest packet.
        inner_source: of the latest packet, as is `inner_destination`.
    """

    address: IPv4Address
    reason: StrangerReason
    packets: int
    age_s: float
    inner_source: IPv4Address
    inner_destination: IPv4Address
