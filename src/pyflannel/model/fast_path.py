"""The eBPF fast path: its programs, the entries of their maps, and the kernel features it uses."""

from enum import Enum
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from msgspec import Struct

from pyflannel.model.item import Item, Key, Marks, Rank


class Direction(Enum):
    """The packets of a link that a program handles; the value is the kernel's term."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Role(Enum):
    """The task of a program; the value is its name in the kernel, at most 15 bytes."""

    ENCAPSULATE = "flannel_encap"
    DECAPSULATE = "flannel_decap"
    REJOIN = "flannel_join"
    LAST_HOP = "flannel_hop"
    SHORTCUT = "flannel_short"
    NEXT_HOP = "flannel_nexthop"

    @property
    def direction(self) -> Direction:
        """The side of its link at which the program is attached."""
        leaving = (Role.ENCAPSULATE, Role.LAST_HOP, Role.NEXT_HOP)
        return Direction.EGRESS if self in leaving else Direction.INGRESS


class Tunnel(Struct, frozen=True, kw_only=True):
    """The settings of a program for its tunnel.

    Attributes:
        device: name that the daemon claims, which is also the name of the TUN device of the udp backend; the
            program belongs to the owner of this name.
        underlay: name of the link that carries the tunnel.
        address: this host's address on the underlay, the source of sent and destination of received packets.
        subnet: this host's subnet; only packets to it are accepted from peers.
        port: UDP port of received and source port of sent datagrams.
        mtu: size in bytes of the largest packet that is accepted from a peer, unless the packet will be
            segmented.
        gro_link: link that coalesces received TCP segments; "" if there is no such link.
        caches_flows: True if packets may bypass the firewall for a second after it accepted a packet of their
            flow.
        vxlan_link: vxlan device of the kernel that carries all other packets; "" for the udp backend.
        vni: VXLAN network identifier of this device.
    """

    device: str
    underlay: str
    address: IPv4Address
    subnet: IPv4Network
    port: int
    mtu: int
    gro_link: str = ""
    caches_flows: bool = False
    vxlan_link: str = ""
    vni: int = 0

    @property
    def link(self) -> str:
        """The link at which inner packets arrive: the TUN device or the vxlan device."""
        return self.vxlan_link or self.device


class BpfProgram(Item, frozen=True, kw_only=True):
    """A program that carries the packets of a tunnel, attached to `link`.

    Attributes:
        link: link of the program: the TUN device, the underlay, the far end of the GRO veth, a bridge or the
            host's end of a container's veth, depending on the role.
        is_current: False if the program is of another version, does not share its maps with the other
            programs, or is attached twice.
    """

    KIND = "bpf_program"
    PLURAL = "programs"
    RANK = Rank.PROGRAM

    link: str
    role: Role
    tunnel: Tunnel
    is_current: bool = True

    @property
    def key(self) -> Key:
        """The identity of the object. A tunnel has only one program of each role on a link."""
        return ("bpf-program", self.tunnel.device), (self.link, self.role.value)

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"program {self.role.value} at {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    @property
    def requires(self) -> tuple[Key, ...]:
        """The keys of the links that the program is attached to, and to which it redirects packets."""
        links = (self.link, self.tunnel.link, self.tunnel.gro_link)
        return tuple(("link", link) for link in links if link)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the program serves the daemon's tunnel."""
        return self.tunnel.device == marks.device


class BpfPeer(Item, frozen=True, kw_only=True):
    """A peer: packets to `subnet` are sent to `address`:`port`; packets from the peer must come from
    `address`.

    Attributes:
        device: name of the TUN device of the tunnel.
        is_direct: True if eBPF programs send to the peer. If False, user space sends to the peer, because the
            peer does not accept checksums that hardware must complete.
    """

    KIND = "bpf_peer"
    PLURAL = "peers of the fast path"
    RANK = Rank.PEER

    device: str
    subnet: IPv4Network
    address: IPv4Address
    port: int
    is_direct: bool = True

    @property
    def key(self) -> Key:
        """The identity of the entry; all other attributes can be replaced in place."""
        return ("bpf-peer", self.device), self.subnet

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"fast path of {self.device} to {self.subnet}"

    @property
    def requires(self) -> tuple[Key, ...]:
        """The key of the device of the tunnel."""
        return (("link", self.device),)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the entry belongs to the daemon's tunnel."""
        return self.device == marks.device


class BpfContainer(Item, frozen=True, kw_only=True):
    """A container: frames from the tunnel for `address` and `mac` are sent directly to `link`.

    Attributes:
        device: name of the TUN device of the tunnel.
        mac: six bytes in lower-case hexadecimal, with colons.
        link: the host's end of the container's veth.
    """

    KIND = "bpf_container"
    PLURAL = "containers of the fast path"
    RANK = Rank.PEER

    device: str
    address: IPv4Address
    mac: str
    link: str

    @property
    def key(self) -> Key:
        """The identity of the entry. MAC address and link can be replaced in place."""
        return ("bpf-container", self.device), self.address

    @property
    def title(self) -> str:
        """The name of the object in texts."""
        return f"fast path of {self.device} to container {self.address}"

    @property
    def requires(self) -> tuple[Key, ...]:
        """The key of the device of the tunnel."""
        return (("link", self.device),)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the entry belongs to the daemon's tunnel."""
        return self.device == marks.device


Answer = Literal["present", "absent", "unknown"]
"""The result of the probe of a feature. `unknown`: a missing right or a seccomp filter hides the feature, so
only an attempt shows whether the feature is present."""


class Feature(Struct, frozen=True, kw_only=True):
    """A feature of the kernel that the fast path uses.

    Attributes:
        detail: the observation.
        hint: the remedy if the feature is not present.
        is_needed: True if the kernel carries no packets without the feature; False if another feature can
            replace it.
    """

    name: str
    answer: Answer
    detail: str = ""
    hint: str = ""
    is_needed: bool = True

    @property
    def text(self) -> str:
        """The result of the probe in one line."""
        word = "could not be probed" if self.answer == "unknown" else self.answer
        return f"{self.name}: {word}" + (f", {self.detail}" if self.detail else "")
