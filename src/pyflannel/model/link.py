"""Links of a host, with their addresses, vxlan parameters and veth parameters."""

import re
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from msgspec import Struct

from pyflannel.model.item import Item, Key, LinkChanges, LinkPrefix, Marks, Rank


class Vxlan(Struct, frozen=True, kw_only=True):
    """The parameters of a vxlan device, as planned or as read from the kernel.

    Attributes:
        vni: VXLAN network identifier, 0 to 2^24 - 1.
        port: UDP destination port.
        parent: name of the underlay interface; "" if the device is not bound to an interface.
        local: source address of the tunnel; None if the kernel chooses the address.
        group: destination of packets without an FDB entry; it is never planned.
        has_gbp: True if the device uses the group policy extension.
        learns: True if the device learns FDB entries from received packets.
        reports_misses: True if the device reports unknown addresses to user space (l2miss or l3miss), as
            release 0.6 requested.
        offloads_checksums: True if the device offloads inner checksums to the underlay device
            (tx-checksum-ip-generic).
    """

    vni: int
    port: int
    parent: str
    local: IPv4Address | IPv6Address | None
    group: IPv4Address | IPv6Address | None = None
    has_gbp: bool = False
    learns: bool = False
    reports_misses: bool = False
    offloads_checksums: bool = True

    def becomes(self, other: "Vxlan") -> bool:
        """Return whether an existing device can be changed into `other`; otherwise the device must be
        created again.
        """
        return self.fixed == other.fixed

    def excludes(self, other: "Vxlan") -> bool:
        """Return whether the kernel refuses a device with these parameters while a device with `other`
        exists.

        Devices share the socket of a port, and the VNI identifies the device of a packet. With the group
        policy extension, a device has its own socket, and a port can have only one socket
        (drivers/net/vxlan).
        """
        is_one_port = (self.port, self._is_ipv6) == (other.port, other._is_ipv6)
        return is_one_port and (self.vni == other.vni or self.has_gbp != other.has_gbp)

    @property
    def fixed(self) -> tuple[object, ...]:
        """The parameters that the kernel does not change in an existing device.

        With IPv6, the kernel keeps the source address with the route of each FDB entry. The kernel sends from
        the previous address as long as this route is valid, even if another source address is set.
        """
        is_bound, source = bool(self.parent), self.local if self._is_ipv6 else None
        constants = self.group, self.has_gbp, self.reports_misses
        return (self.vni, self.port, is_bound, self._is_ipv6, source, *constants)

    @property
    def _is_ipv6(self) -> bool:
        return self.local is not None and self.local.version == 6


class Veth(Struct, frozen=True, kw_only=True):
    """The parameters of one end of a veth. Both ends always exist together.

    Attributes:
        peer: name of the other end; "" if it is in another network namespace. The name never changes in
            place.
        has_gro: True if this end coalesces the TCP segments that the other end sent. Coalescing needs GRO on
            this end and no TSO on the other end, because the kernel does not coalesce packets of a sender
            with TSO.
    """

    peer: str
    has_gro: bool = False

    def becomes(self, other: "Veth") -> bool:
        """Return whether this end can be changed into `other` in place; otherwise the link is created
        again.
        """
        return self.peer == other.peer


MARK = "pyflannel"
"""Prefix of the alias of every pyflannel link. Each daemon of a host has its own alias."""

_IDENTITY = re.compile(r"[0-9a-f]{32}")
_WITH_OWNER = re.compile(rf"({MARK}(?: .*)?) owner=({_IDENTITY.pattern})")


def is_random_identity(owner: str) -> bool:
    """Return whether flanneld generated this identity. flanneld does not keep an identity that an operator
    set.
    """
    return _IDENTITY.fullmatch(owner) is not None


def split_alias(text: str) -> tuple[str, str]:
    """Return the mark and the owner in the kernel's alias of a link; "" for the owner if the alias
    contains no owner.
    """
    found = _WITH_OWNER.fullmatch(text)
    return (found[1], found[2]) if found else (text, "")


def join_alias(mark: str, owner: str) -> str:
    """Return the kernel's alias of a link with this mark and owner, in the form that `split_alias` reads."""
    return f"{mark} owner={owner}" if owner else mark


class Link(Item, frozen=True, kw_only=True):
    """A network device, as planned or as read from the kernel.

    Attributes:
        name: name of at most 15 bytes (IFNAMSIZ without the NUL).
        kind: kind of the link in the kernel: `tun`, `vxlan`, `wireguard`, `veth`; "" for a physical device.
            The kind does not change in place.
        mtu: size in bytes of the largest outgoing packet.
        is_up: True if the link is administratively up (IFF_UP).
        queue_length: maximum number of packets in the send queue (txqueuelen).
        has_ipv6: False if IPv6 is disabled on the link.
        accepts_routers: True if router advertisements on the link change the host's routes (accept_ra).
        alias: alias; on a pyflannel link, the mark of its daemon.
        owner: random identity of the host, on a tunnel device of its daemon; "" if there is no identity.
        mac: MAC address in lower case with colons; "" if the link has none, for example a TUN device.
        vxlan: parameters of a vxlan device.
        veth: parameters of an end of a veth.
    """

    KIND = "link"
    PLURAL = "links"
    RANK = Rank.LINK
    IS_HOST_PART = True
    IS_BOUND_TO_LINK = True

    name: str
    kind: str
    mtu: int
    is_up: bool = True
    queue_length: int = 500
    has_ipv6: bool = False
    accepts_routers: bool = False
    alias: str = MARK
    owner: str = ""
    mac: str = ""
    vxlan: Vxlan | None = None
    veth: Veth | None = None

    def becomes(self, other: "Link") -> bool:
        """Return whether this link can be changed into `other` in place; otherwise the link must be
        created again.
        """
        if self.kind != other.kind:
            return False
        if self.veth is not None and other.veth is not None:
            return self.veth.becomes(other.veth)
        return self.vxlan is None or other.vxlan is None or self.vxlan.becomes(other.vxlan)

    def excludes(self, other: "Link") -> bool:
        """Return whether the kernel refuses this link while the other link exists."""
        return self.vxlan is not None and other.vxlan is not None and self.vxlan.excludes(other.vxlan)

    @property
    def key(self) -> Key:
        """The identity of the kernel object."""
        return "link", self.name

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"link {self.name}"

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the link has the daemon's alias."""
        return self.alias == marks.mark

    def serves(self, wanted: "Link") -> bool:
        """Return whether objects on the link can be configured before the link has been changed into
        `wanted`.
        """
        return self.is_up and self.becomes(wanted)

    def after(self, changes: LinkChanges) -> "Link | None":
        """Return the link, or None if the link is the other end of a veth that is recreated."""
        return None if self.veth is not None and self.veth.peer in changes.recreated else self


class Address(Item, frozen=True, kw_only=True):
    """An address with its prefix length on a link. For an IPv4 address, the kernel adds the connected route.

    Attributes:
        peer: the other end of a point-to-point address; it is never planned.
    """

    KIND = "address"
    PLURAL = "addresses"
    RANK = Rank.ADDRESS
    IS_HOST_PART = True
    IS_BOUND_TO_LINK = True

    link: str
    address: IPv4Interface | IPv6Interface
    peer: IPv4Address | IPv6Address | None = None

    @property
    def key(self) -> Key:
        """The identity of the kernel object."""
        return ("address", self.link), self.address

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"address {self.address} on {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the link belongs to pyflannel."""
        return self.link in marks.links

    @property
    def prefix(self) -> LinkPrefix:
        """The link and the prefix of the address.

        The second IPv4 address of a prefix on a link is secondary to the first address. The kernel removes
        the second address together with the first address, or promotes the second address
        (promote_secondaries in ip-sysctl).
        """
        return self.link, self.address.network

    def after(self, changes: LinkChanges) -> "Address | None":
        """Return the address, or None if its link is created again or if another address of its prefix is
        removed.
        """
        is_dropped = self.link in changes.recreated or self.prefix in changes.prefixes
        return None if is_dropped else self
