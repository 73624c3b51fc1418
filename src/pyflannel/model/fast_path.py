"""The eBPF fast path: its programs, the entries of their maps, and the kernel features it uses."""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

from pyflannel.model.item import Item, Key, Marks, Rank


class Direction(Enum):
    """Which packets of a link a program sees; the value is the kernel's word."""

    INGRESS = "ingress"
    EGRESS = "egress"


class Role(Enum):
    """What a program does; the value is its name in the kernel, at most 15 octets."""

    ENCAPSULATE = "flannel_encap"
    DECAPSULATE = "flannel_decap"
    REJOIN = "flannel_join"
    LAST_HOP = "flannel_hop"

    @property
    def direction(self) -> Direction:
        """The side of its link at which the program is attached."""
        return Direction.INGRESS if self in (Role.DECAPSULATE, Role.REJOIN) else Direction.EGRESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """What a program knows of the tunnel that it serves.

    Attributes:
        device: name of the TUN device, whose owner the program belongs to.
        underlay: name of the link that carries the tunnel.
        address: ours on the underlay, source of what we send and destination of what we take.
        subnet: our own subnet; only packets to it are taken from peers.
        port: UDP port that datagrams arrive at and come from.
        mtu: octets of the largest packet that is taken from a peer, unless it is to be segmented.
        gro_link: link that coalesces TCP that arrived in segments; "" if there is none.
    """

    device: str
    underlay: str
    address: IPv4Address
    subnet: IPv4Network
    port: int
    mtu: int
    gro_link: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfProgram(Item):
    """A program that carries the packets of a tunnel, attached to `link`.

    Attributes:
        link: the TUN device, the underlay, the far end of the GRO veth or a bridge, as the role says.
        is_current: False when the program is of another version than ours, does not share its maps with the
            others, or is attached there twice.
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
        """What makes two values one object: a tunnel has one program of a role on a link."""
        return ("bpf-program", self.tunnel.device), (self.link, self.role.value)

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"program {self.role.value} at {self.link}"

    @property
    def parent_link(self) -> str | None:
        """The link that the object is on."""
        return self.link

    @property
    def requires(self) -> tuple[Key, ...]:
        """The links that the program is attached to and redirects to."""
        links = (self.link, self.tunnel.device, self.tunnel.gro_link)
        return tuple(("link", link) for link in links if link)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the program serves the daemon's tunnel."""
        return self.tunnel.device == marks.device


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfPeer(Item):
    """Packets to `subnet` go in datagrams to `address`:`port`; those from it come from `address` only.

    Attributes:
        device: name of the TUN device of the tunnel.
        is_direct: the kernel sends to it; False when its packets take the way through user space, because
            it cannot read what a sender leaves to hardware to finish.
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
        """What makes two values one entry; all else may be replaced."""
        return ("bpf-peer", self.device), self.subnet

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"fast path of {self.device} to {self.subnet}"

    @property
    def requires(self) -> tuple[Key, ...]:
        """The device of the tunnel."""
        return (("link", self.device),)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the entry is of the daemon's tunnel."""
        return self.device == marks.device


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfContainer(Item):
    """Frames for `address` that the tunnel brought, and that go to `mac`, go straight to `link`.

    Attributes:
        device: name of the TUN device of the tunnel.
        mac: six octets in lower-case hexadecimal, with colons.
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
        """What makes two values one entry: MAC address and link may be replaced."""
        return ("bpf-container", self.device), self.address

    @property
    def title(self) -> str:
        """The object in the operator's words."""
        return f"fast path of {self.device} to container {self.address}"

    @property
    def requires(self) -> tuple[Key, ...]:
        """The device of the tunnel."""
        return (("link", self.device),)

    def is_marked(self, marks: Marks) -> bool:
        """Return whether the entry is of the daemon's tunnel."""
        return self.device == marks.device


Answer = Literal["present", "absent", "unknown"]
"""Unknown: something hides it, a missing right or a seccomp filter. Only a trial tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One of these.

    Attributes:
        detail: what was seen.
        hint: what to do where it is not present.
        is_needed: without it no packet goes through the kernel; of the rest, something else takes the place.
    """

    name: str
    answer: Answer
    detail: str = ""
    hint: str = ""
    is_needed: bool = True

    @property
    def text(self) -> str:
        """The answer in a line."""
        word = "could not tell" if self.answer == "unknown" else self.answer
        return f"{self.name}: {word}" + (f", {self.detail}" if self.detail else "")
