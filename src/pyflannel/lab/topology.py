"""What a lab looks like: segments, the router between them, hosts."""

from dataclasses import dataclass
from ipaddress import IPv4Interface

ROUTER = "router"
"""Name of the sandbox that joins the segments."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One Ethernet that hosts are plugged into; the router is its gateway.

    Attributes:
        name: also the name of its switch, a bridge beside the router; at most 12 octets.
    """

    name: str
    gateway: IPv4Interface


@dataclass(frozen=True, slots=True)
class HostPlace:
    """A host and where it is plugged in: `eth0` with this address, default route to the segment's gateway.

    Attributes:
        name: also the name of its port on the switch, at most 15 octets.
    """

    name: str
    segment: Segment
    address: IPv4Interface


@dataclass(frozen=True, slots=True)
class Topology:
    """Segments joined by one router, and hosts on them."""

    segments: tuple[Segment, ...]
    hosts: tuple[HostPlace, ...]


LEFT = Segment("left", IPv4Interface("10.10.10.1/24"))
RIGHT = Segment("right", IPv4Interface("192.168.50.1/24"))

COOKBOOK = Topology(
    (LEFT, RIGHT),
    (
        HostPlace("docker1", LEFT, IPv4Interface("10.10.10.101/24")),
        HostPlace("docker2", LEFT, IPv4Interface("10.10.10.102/24")),
        HostPlace("docker3", RIGHT, IPv4Interface("192.168.50.101/24")),
        HostPlace("docker4", RIGHT, IPv4Interface("192.168.50.102/24")),
    ),
)
"""Docker Networking Cookbook, chapter 8: two hosts on each of two segments."""
