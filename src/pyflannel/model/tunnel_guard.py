"""The tunnel guard: tables of nf_tables that drop forged tunnel packets, and the entries of the peers in
these tables.

Each address family has a table, and a tunnel carries only inner packets of the same family as its outer
header.
"""

from collections.abc import Iterable
from typing import Literal

from msgspec import Struct

from pyflannel.model.item import Item, Key, Marks, Rank
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.packet_filter import device_of, filter_name

GuardMode = Literal["strict", "peer", "off"]
"""Modes of the guard: it checks the outer and the inner source (strict), only the outer source (peer), or
nothing (off)."""

STEM = "flannel-guard"
"""Common prefix of the names of the tables."""


class GuardedTunnel(Struct, frozen=True, kw_only=True):
    """A tunnel of UDP datagrams.

    Attributes:
        link: link of the inner packets, for example flannel0 or flannel.1.
        port: UDP port on which this host receives tunnel packets.
        vni: VXLAN network identifier; None if an inner packet follows the UDP header, as with udp.
    """

    link: str
    port: int
    vni: int | None = None


class GuardedPath(Struct, frozen=True, kw_only=True):
    """The path of packets from other hosts to this host.

    Attributes:
        links: links at which inner packets arrive.
        tunnel: the tunnel; None if peers send inner packets without a tunnel, as with host-gw, or if the
            device checks them.
        refuses_clear: True to drop unencrypted packets to this host's subnet that arrive at the underlay.
        others: additional tunnels, during a change of the backend.
    """

    links: tuple[str, ...]
    tunnel: GuardedTunnel | None = None
    refuses_clear: bool = False
    others: tuple[GuardedTunnel, ...] = ()

    @property
    def tunnels(self) -> tuple[GuardedTunnel, ...]:
        """All tunnels. Tunnels with a VNI are first, because their rules match only their own port."""
        found = self.others if self.tunnel is None else (self.tunnel, *self.others)
        return tuple(sorted(found, key=lambda one: one.vni is None))


def joined(paths: Iterable[GuardedPath | None]) -> GuardedPath | None:
    """Return the path that accepts the packets of each of these paths; None if there are no paths."""
    found = [path for path in paths if path is not None]
    if len(found) < 2:
        return found[0] if found else None
    tunnels = tuple(dict.fromkeys(tunnel for path in found for tunnel in path.tunnels))
    return GuardedPath(
        links=tuple(dict.fromkeys(link for path in found for link in path.links)),
        tunnel=tunnels[0] if tunnels else None,
        others=tunnels[1:],
        refuses_clear=all(path.refuses_clear for path in found),
    )


class GuardTable(Item, frozen=True, kw_only=True):
    """The table of a daemon in one address family.

    Attributes:
        device: device name that the daemon claims.
        underlay: link that carries the tunnel.
        address: address of this host on the underlay.
        source_length: prefix length of the `sources` of most peers, for which the look-up is fastest.
        network: network of the overlay; None for an existing table that is not planned.
        subnet: subnet of this host.
        path: path of packets from other hosts.
        users: local users besides root that may send tunnel packets, for example the user of flanneld.
        differences: descriptions of unplanned content of the table.
    """

    KIND = "guard_table"
    PLURAL = "tunnel guards"
    RANK = Rank.GUARD
    IS_SELF_CONTAINED = True

    device: str
    family: Family = 4
    underlay: str = ""
    address: IpAddress | None = None
    source_length: int = 0
    network: IpNetwork | None = None
    subnet: IpNetwork | None = None
    path: GuardedPath | None = None
    users: tuple[int, ...] = ()
    differences: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """The identity of the table."""
        return guard_table(self.device, self.family)

    @property
    def name(self) -> str:
        """Name of the table in nf_tables."""
        return filter_name(STEM, self.device)

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"nftables table {self.name}" if self.family == 4 else f"nftables table ip6 {self.name}"

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the name contains the daemon's device."""
        return self.device == marks.device


class GuardPeer(Item, frozen=True, kw_only=True):
    """A peer: tunnel packets from `address` are accepted if their inner source is in `sources`.

    Attributes:
        device: device name that the daemon claims.
        subnet: subnet of the peer.
        address: address of the peer on the underlay.
        port: UDP port on which the peer receives tunnel packets.
        other_ports: UDP ports on which the peer receives packets of additional tunnels, during a change of
            the backend.
        sources: the peer's subnet, or all addresses if only the outer source is checked.
    """

    KIND = "guard_peer"
    PLURAL = "peers of the tunnel guard"
    RANK = Rank.GUARD_PEER
    IS_SELF_CONTAINED = True

    device: str
    subnet: IpNetwork
    address: IpAddress
    port: int
    sources: IpNetwork
    other_ports: tuple[int, ...] = ()

    @property
    def ports(self) -> tuple[int, ...]:
        """All UDP ports on which the peer receives tunnel packets."""
        return (self.port, *self.other_ports)

    @property
    def family(self) -> Family:
        """The address family of the tunnel and of its packets."""
        return self.subnet.version

    @property
    def key(self) -> Key:
        """The identity of the entry, which is the first address of the subnet, because subnets do not
        overlap.
        """
        return guard_peers(self.device, self.family), int(self.subnet.network_address)

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"tunnel guard of {self.device} for {self.subnet}"

    @property
    def requires(self) -> tuple[Key, ...]:
        """The key of the table that contains the entry."""
        return (guard_table(self.device, self.family),)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the entry belongs to the daemon's table."""
        return self.device == marks.device


def guard_table(device: str, family: Family) -> Key:
    """Return the key of a device's table."""
    return "guard-table", (device, family)


def guard_peers(device: str, family: Family) -> tuple[str, str, Family]:
    """Return the first part of the keys of a device's peers, which names their table."""
    return "guard-peer", device, family


def guard_device_of(table: str) -> str | None:
    """Return the device of the daemon with the table of this name; None if the table is not a tunnel
    guard.
    """
    return device_of(table, STEM)
