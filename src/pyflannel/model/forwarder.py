"""The user-space forwarder of the udp backend: its process, its peers, and the senders it rejected."""

from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pyflannel.model.item import Item, Key, LinkChanges, Marks, Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarder(Item):
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
        """What makes two values one object: one forwarder a device."""
        return "forwarder", self.link

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"forwarder of {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    def is_marked(self, marks: Marks) -> bool:
        """Return True: a run directory has the forwarder of its daemon alone."""
        return True

    def after(self, changes: LinkChanges) -> "Forwarder":
        """Return the forwarder; it loses its device when that is created again."""
        return replace(self, is_attached=False) if self.link in changes.recreated else self


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwarderPeer(Item):
    """Packets to `subnet` go in datagrams to `address`:`port`; those from it come from `address` only."""

    KIND = "forwarder_peer"
    PLURAL = "peers of the forwarder"
    RANK = Rank.PEER

    link: str
    subnet: IPv4Network
    address: IPv4Address
    port: int

    @property
    def key(self) -> Key:
        """What makes two values one entry; address and port may be replaced."""
        return ("forwarder-peer", self.link), self.subnet

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"peer {self.subnet} of {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    @property
    def requires(self) -> tuple[Key, ...]:
        """The forwarder that has the table."""
        return (("forwarder", self.link),)

    def is_marked(self, marks: Marks) -> bool:
        """Return True: a run directory has the forwarder of its daemon alone."""
        return True

    def after(self, changes: LinkChanges) -> "ForwarderPeer":
        """Return the entry: the forwarder keeps its table without a device."""
        return self


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
