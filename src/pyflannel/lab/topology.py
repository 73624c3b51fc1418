"""The topology of a lab: segments, the router between them, hosts, and the cables that join them."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyflannel.errors import LabError
from pyflannel.lab.sandbox import Sandbox

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


# Cables: the router's segments, and hosts plugged into them.
#
# Every device is made directly in the sandbox where it belongs; the machine's own network sees none of them.


def lay_segments(router: Sandbox, segments: Iterable[Segment]) -> None:
    """Make a switch for each segment, and plug the router into it with the gateway's address.

    The switch is a bridge beside the router's port, not the port itself: what the kernel routes out of a
    bridge device is segmented in software when it is a tunnel's, and tunnels would seem half as fast.
    """
    lines = []
    for segment in segments:
        port = f"gw-{segment.name}"
        lines += [
            f"link add {segment.name} type bridge",
            f"link add {port} type veth peer name sw-{segment.name}",
            f"link set sw-{segment.name} master {segment.name} up",
            # Else it answers for the gateway too, with an address that changes when a host is plugged in.
            f"link set {segment.name} arp off up",
            f"address add {segment.gateway} dev {port}",
            f"link set {port} up",
        ]
    _ip(router, lines)


def plug_in(router: Sandbox, host: Sandbox, place: HostPlace) -> None:
    """Lay a cable from the host's eth0 to a port of its segment, named after the host."""
    cable = f"link add eth0 netns {host.init_pid} type veth peer name {place.name} netns {router.init_pid}\n"
    done = subprocess.run(["ip", "-batch", "-"], input=cable, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"no cable for {place.name}", hint=done.stderr.strip())
    _ip(
        host,
        [
            f"address add {place.address} dev eth0",
            "link set eth0 up",
            f"route add default via {place.segment.gateway.ip}",
        ],
    )
    _ip(router, [f"link set {place.name} master {place.segment.name} up"])


def _ip(sandbox: Sandbox, lines: list[str]) -> None:
    sandbox.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")
