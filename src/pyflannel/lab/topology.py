"""The topology of a lab: segments, the router between them, hosts, and their connections."""

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyflannel.errors import LabError
from pyflannel.lab.sandbox import Sandbox

ROUTER = "router"
"""Name of the sandbox that connects the segments."""


@dataclass(frozen=True, slots=True)
class Segment:
    """An Ethernet with hosts. The router is its gateway.

    Attributes:
        name: also the name of its switch, a bridge in the sandbox of the router; at most 12 bytes.
    """

    name: str
    gateway: IPv4Interface


@dataclass(frozen=True, slots=True)
class HostPlace:
    """A host and its connection: `eth0` with this address, and a default route to the segment's gateway.

    Attributes:
        name: also the name of its port on the switch, at most 15 bytes.
    """

    name: str
    segment: Segment
    address: IPv4Interface


@dataclass(frozen=True, slots=True)
class Topology:
    """Segments connected by one router, and hosts on them."""

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


# The segments of the router, and the connections of hosts.
#
# Every device is created in its sandbox, so none appears in the network of the machine.


def lay_segments(router: Sandbox, segments: Iterable[Segment]) -> None:
    """Create a switch for each segment, and connect the router to it with the address of the gateway.

    The switch is a bridge with a separate port for the router. If the bridge were the port, the kernel would
    segment tunnel packets in software, and tunnels would seem half as fast.
    """
    lines = []
    for segment in segments:
        port = f"gw-{segment.name}"
        lines += [
            f"link add {segment.name} type bridge",
            f"link add {port} type veth peer name sw-{segment.name}",
            f"link set sw-{segment.name} master {segment.name} up",
            # Otherwise the bridge also answers ARP for the gateway, with a MAC address that changes with its
            # ports.
            f"link set {segment.name} arp off up",
            f"address add {segment.gateway} dev {port}",
            f"link set {port} up",
        ]
    _ip(router, lines)


def plug_in(router: Sandbox, host: Sandbox, place: HostPlace) -> None:
    """Connect the host's eth0 to a port of its segment, named after the host."""
    cable = f"link add eth0 netns {host.init_pid} type veth peer name {place.name} netns {router.init_pid}\n"
    done = subprocess.run(["ip", "-batch", "-"], input=cable, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"{place.name} could not be connected to its segment", hint=done.stderr.strip())
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
