"""eBPF programs of the fast path, each at a hook of a link."""

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.item_map import Key


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
        """The side of its link at which the program stands."""
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
        joint: link into which TCP that arrived in segments is sent, to come out joined; "" where none is.
    """

    device: str
    underlay: str
    address: IPv4Address
    subnet: IPv4Network
    port: int
    joint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BpfProgram:
    """A program that carries the packets of a tunnel, attached to `link`.

    Attributes:
        link: the TUN device, the underlay, the far end of the joint or a bridge, as the role says.
        is_current: False when the program is of another version than ours, does not share its maps with the
            others, or stands there twice.
    """

    link: str
    role: Role
    tunnel: Tunnel
    is_current: bool = True

    @property
    def key(self) -> Key:
        """What makes two values one object: a tunnel has one program of a role on a link."""
        return ("bpf-program", self.tunnel.device), (self.link, self.role.value)
