"""The tunnel guard: a table of nf_tables that drops forged tunnel packets, and its entry for each peer."""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pyflannel.model.item import Item, Key, Marks, Rank
from pyflannel.model.packet_filter import device_of, filter_name

GuardMode = Literal["strict", "peer", "off"]
"""What the guard checks: outer and inner source, the outer source only, or nothing."""

STEM = "flannel-guard"
"""How the names of the tables begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedTunnel:
    """A tunnel of UDP datagrams.

    Attributes:
        link: of the inner packets, flannel0 or flannel.1.
        port: UDP port at which this host takes tunnel packets.
        vni: VXLAN network identifier; None if an inner packet follows the UDP header, as with udp.
    """

    link: str
    port: int
    vni: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedPath:
    """How packets of other hosts come to this one.

    Attributes:
        links: by which inner packets arrive.
        tunnel: None if peers send inner packets as they are, as with host-gw, or if the device checks them.
        refuses_clear: drop what comes to this host's subnet by the underlay without the overlay.
    """

    links: tuple[str, ...]
    tunnel: GuardedTunnel | None = None
    refuses_clear: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardTable(Item):
    """The table of a daemon.

    Attributes:
        device: device name that the daemon claims.
        underlay: link that carries the tunnel.
        address: of this host on the underlay.
        source_length: prefix length of nearly all peers' `sources`, which are the quickest to find.
        network: of the overlay; None for a table that is there and not planned.
        subnet: of this host.
        path: how packets of other hosts come.
        differences: what is in the table that no plan has, in words.
    """

    KIND = "guard_table"
    PLURAL = "tunnel guards"
    RANK = Rank.GUARD

    device: str
    underlay: str = ""
    address: IPv4Address | None = None
    source_length: int = 0
    network: IPv4Network | None = None
    subnet: IPv4Network | None = None
    path: GuardedPath | None = None
    differences: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What makes two values one table."""
        return "guard-table", self.device

    @property
    def name(self) -> str:
        """Name of the table in nf_tables."""
        return filter_name(STEM, self.device)

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"nftables table {self.name}"

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the name is that of the daemon's device."""
        return self.device == marks.device


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPeer(Item):
    """Tunnel packets from `address` are taken if their inner source is in `sources`.

    Attributes:
        device: device name that the daemon claims.
        subnet: of the peer.
        address: of the peer on the underlay.
        port: UDP port at which the peer takes tunnel packets.
        sources: the peer's subnet, or every address if only the outer source is checked.
    """

    KIND = "guard_peer"
    PLURAL = "peers of the tunnel guard"
    RANK = Rank.GUARD_PEER

    device: str
    subnet: IPv4Network
    address: IPv4Address
    port: int
    sources: IPv4Network

    @property
    def key(self) -> Key:
        """What makes two values one entry: the first address of the subnet, as subnets do not overlap."""
        return guard_peers(self.device), int(self.subnet.network_address)

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"tunnel guard of {self.device} for {self.subnet}"

    @property
    def requires(self) -> tuple[Key, ...]:
        """The table."""
        return (("guard-table", self.device),)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the entry is of the daemon's table."""
        return self.device == marks.device


def guard_peers(device: str) -> tuple[str, str]:
    """Return the table of the entries of a device's peers, in states."""
    return "guard-peer", device


def guard_device_of(table: str) -> str | None:
    """Return the device whose daemon has the table of this name; None if it is no tunnel guard."""
    return device_of(table, STEM)
