"""WireGuard: the device of a host, its peers, and the WireGuard properties of the host that a plan needs."""

import binascii
from base64 import b64decode, b64encode
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

from msgspec import Struct, field

from pyflannel.model.item import Item, Key, LinkChanges, Marks, Rank
from pyflannel.model.network_config import Family, IpAddress
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.store_record import Secret

DEVICE = "flannel-wg"
"""Name of the device, which is the same as in the original."""

LOG_NAME = "wireguard-go.log"
"""Name of the file in the run directory that receives the output of wireguard-go."""

KEY_BYTES = 32


def wireguard_link(device: str, family: Family = 4) -> str:
    """Return the WireGuard device of the daemon that claims `device`: `flannel-wg` for flannel0.

    The device of IPv6 is `flannel-wg-v6`, or `flannel-wg1-v6` for flannel1.
    """
    name = DEVICE if device == FIRST_DEVICE else f"{DEVICE}{device.removeprefix('flannel')}"
    return name if family == 4 else f"{name}-v6"


def parse_key(text: str) -> str | None:
    """Return a key in the form that `wg` writes; None if the text is not 32 bytes in base64."""
    try:
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return b64encode(data).decode() if len(data) == KEY_BYTES else None


def sorted_networks(
    networks: Iterable[IPv4Network | IPv6Network],
) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks in order, IPv4 first."""
    return tuple(sorted(networks, key=lambda each: (each.version, int(each.network_address), each.prefixlen)))


class WireguardFacts(Struct, frozen=True, kw_only=True):
    """The WireGuard properties of this host that a plan needs.

    Attributes:
        key: public key of the device; "" while unknown.
        published: public key in the lease of this host. This key differs from `key` only during a rotation.
        is_in_kernel: True if the kernel has WireGuard; False if wireguard-go carries the packets.
        problem: reason why WireGuard is unusable, in one line; "" if it is usable.
    """

    key: str = ""
    published: str = ""
    is_in_kernel: bool = False
    problem: str = ""


UNKNOWN = WireguardFacts(problem="the WireGuard key of this host")
"""The value before flanneld has read the WireGuard properties of the host."""


class WireguardDevice(Item, frozen=True, kw_only=True):
    """A link that encrypts packets, with its key and its UDP port.

    Attributes:
        public_key: public key of this host; "" if the device has no private key.
        port: UDP port.
        is_in_kernel: True if the kernel encrypts; False if a process of wireguard-go does, which is attached
            to a TUN device.
        sources: source addresses on the underlay. wireguard-go keeps sending from the previous addresses
            after a change.
    """

    KIND = "wireguard_device"
    PLURAL = "WireGuard devices"
    RANK = Rank.FORWARDER
    IS_HOST_PART = True
    IS_BOUND_TO_LINK = True

    link: str
    public_key: str
    port: int
    is_in_kernel: bool
    sources: tuple[IpAddress, ...] = ()

    @property
    def key(self) -> Key:
        """The identity of the object. A link has only one configuration."""
        return "wireguard", self.link

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"WireGuard of {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the link belongs to pyflannel."""
        return _is_ours(self.link, marks)

    def after(self, changes: LinkChanges) -> "WireguardDevice | None":
        """Return the device; None if its link is created again, which also ends wireguard-go."""
        return None if self.link in changes.recreated else self


class WireguardPeer(Item, frozen=True, kw_only=True):
    """The part of a peer in one family. Packets to and from `allowed` are encrypted with the key of the peer.

    The parts of a peer on one device are one peer of WireGuard, with the same endpoint and options.

    Attributes:
        allowed: subnets of the peer, sorted.
        family: the address family of these subnets.
        shares_device: True if the device carries both families.
        endpoint: `ADDRESS:PORT` or `[ADDRESS]:PORT` to send to until another endpoint is learned from a
            handshake; "" for no endpoint.
        keeps_family: True if an endpoint of the other family is never learned.
        keepalive_s: interval of keepalive packets; 0 for no keepalive packets.
        preshared_key: preshared key; empty for no key.
    """

    KIND = "wireguard_peer"
    PLURAL = "WireGuard peers"
    RANK = Rank.PEER
    IS_BOUND_TO_LINK = True

    link: str
    public_key: str
    allowed: tuple[IPv4Network | IPv6Network, ...]
    endpoint: str = ""
    keepalive_s: int = 0
    preshared_key: Secret = field(default_factory=lambda: Secret(""))
    family: Family = 4
    shares_device: bool = False
    keeps_family: bool = False

    @property
    def key(self) -> Key:
        """The identity of the part; all other attributes can be replaced in place."""
        return ("wireguard-peer", self.link, self.family), self.public_key

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        part = " for IPv6" if self.family == 6 else ""
        return f"WireGuard peer {self.public_key} of {self.link}{part}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    @property
    def requires(self) -> tuple[Key, ...]:
        """The key of the WireGuard device that contains the peer."""
        return (("wireguard", self.link),)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the link belongs to pyflannel."""
        return _is_ours(self.link, marks)


def _is_ours(link: str, marks: Marks) -> bool:
    if link in marks.links:
        return True
    device = marks.device
    return device is not None and link in (wireguard_link(device), wireguard_link(device, 6))


class WireguardContact(Struct, frozen=True, kw_only=True):
    """The contact of a device with a peer.

    Attributes:
        public_key: public key of the peer.
        endpoint: current destination of packets to the peer; "" if it is unknown.
        handshake_age_s: seconds since the latest handshake; None if there was no handshake.
        received: number of bytes received from the peer.
        sent: number of bytes sent to the peer.
    """

    public_key: str
    endpoint: str = ""
    handshake_age_s: float | None = None
    received: int = 0
    sent: int = 0

    def joined(self, other: "WireguardContact") -> "WireguardContact":
        """Return the combined contact of two devices, one per family, with the same peer."""
        ages = [one.handshake_age_s for one in (self, other) if one.handshake_age_s is not None]
        return WireguardContact(
            public_key=self.public_key,
            endpoint=self.endpoint or other.endpoint,
            handshake_age_s=min(ages, default=None),
            received=self.received + other.received,
            sent=self.sent + other.sent,
        )
