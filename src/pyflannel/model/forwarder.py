"""The user-space forwarder of the udp backend: its process, its peers, and the senders it rejected."""

from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.item import Item, Key, LinkChanges, Marks, Rank
from pyflannel.model.network_config import IpAddress


class Forwarder(Item, frozen=True, kw_only=True):
    """The process that moves packets between a TUN device and a UDP socket.

    Attributes:
        link: name of the TUN device.
        tunnel_address: source address of its ICMP errors, which is the base address of this host's subnet.
        subnet: this host's subnet; only packets to it are accepted from peers.
        listen_address: address of the underlay interface, to which the socket is bound.
        port: UDP port of this host, and of each peer that publishes no other port.
        mtu: size in bytes of the largest inner packet.
        is_attached: False if the TUN device was deleted.
        is_current: False if the version of the forwarder differs from that of the daemon.
    """

    KIND = "forwarder"
    PLURAL = "forwarders"
    RANK = Rank.FORWARDER
    IS_HOST_PART = True

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
        """The identity of the object. A device has only one forwarder."""
        return "forwarder", self.link

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"forwarder of {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    def is_marked(self, marks: Marks) -> bool:
        """Return True, because a run directory contains only the forwarder of its daemon."""
        return True

    def after(self, changes: LinkChanges) -> "Forwarder":
        """Return the forwarder after these changes. If the device of the forwarder was created again, the
        forwarder is not attached.
        """
        return replace(self, is_attached=False) if self.link in changes.recreated else self


class ForwarderPeer(Item, frozen=True, kw_only=True):
    """A peer: packets to `subnet` are sent to `address`:`port`; packets from the peer must come from
    `address`.
    """

    KIND = "forwarder_peer"
    PLURAL = "peers of the forwarder"
    RANK = Rank.PEER

    link: str
    subnet: IPv4Network
    address: IPv4Address
    port: int

    @property
    def key(self) -> Key:
        """The identity of the entry; address and port can be replaced in place."""
        return ("forwarder-peer", self.link), self.subnet

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"peer {self.subnet} of {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    @property
    def requires(self) -> tuple[Key, ...]:
        """The key of the forwarder whose table contains the entry."""
        return (("forwarder", self.link),)

    def is_marked(self, marks: Marks) -> bool:
        """Return True, because a run directory contains only the forwarder of its daemon."""
        return True

    def after(self, changes: LinkChanges) -> "ForwarderPeer":
        """Return the entry unchanged, because the forwarder keeps its table even without a device."""
        return self


StrangerReason = Literal["stranger", "impostor", "not_ours"]
"""The reason for a dropped packet. `stranger`: no host holds the inner source. `impostor`: another host than
the sender holds the inner source. `not_ours`: the inner destination is not in this host's subnet."""


class Stranger(Struct, frozen=True, kw_only=True):
    """Packets from one address that were dropped for one reason, since the counters started.

    Attributes:
        address: source address of the outer header, which may be forged.
        age_s: seconds since the latest packet.
        inner_source: inner source address of the latest packet.
        inner_destination: inner destination address of the latest packet.
    """

    address: IpAddress
    reason: StrangerReason
    packets: int
    age_s: float
    inner_source: IpAddress
    inner_destination: IpAddress
