"""The topology of a lab: segments, the router between them, the hosts and their connections."""

import json
import subprocess
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from typing import Any

from msgspec import Struct

from pyflannel.errors import LabError
from pyflannel.lab.containers import DockerEngine, NamespaceContainer, create_bridge
from pyflannel.lab.program import Program, read_environment_file
from pyflannel.lab.sandbox import READY_DEADLINE_S, Sandbox

ROUTER = "router"
"""Name of the sandbox that connects the segments."""


class Segment(Struct, frozen=True):
    """An Ethernet segment with hosts. The router is the gateway of this network.

    Attributes:
        name: name of the segment, which is also the name of its switch, a bridge in the sandbox of the
            router; at most 12 bytes.
    """

    name: str
    gateway: IPv4Interface


class HostPlace(Struct, frozen=True):
    """A host and its connection: `eth0` with this address, and a default route to the segment's gateway.

    Attributes:
        name: name of the host, which is also the name of its port on the switch, at most 15 bytes.
    """

    name: str
    segment: Segment
    address: IPv4Interface


class Topology(Struct, frozen=True):
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
# Every device is created in its sandbox, so no device appears in the network of the machine.


def create_segments(router: Sandbox, segments: Iterable[Segment]) -> None:
    """Create a switch for each segment, and connect the router to each switch with the address of the
    gateway.

    The switch is a bridge with a separate port for the router. If the bridge were the port, the kernel would
    segment tunnel packets in software, and tunnels would have only half of their throughput.
    """
    lines = []
    for segment in segments:
        port = f"gw-{segment.name}"
        lines += [
            f"link add {segment.name} type bridge",
            f"link add {port} type veth peer name sw-{segment.name}",
            f"link set sw-{segment.name} master {segment.name} up",
            # If ARP were on, the bridge would also answer ARP for the gateway, with a MAC address that
            # changes with its ports.
            f"link set {segment.name} arp off up",
            f"address add {segment.gateway} dev {port}",
            f"link set {port} up",
        ]
    _ip(router, lines)


def plug_in(router: Sandbox, host: Sandbox, place: HostPlace) -> None:
    """Connect the host's eth0 to a port of its segment. The port has the name of the host."""
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


class Host(Sandbox):
    """A host. The default paths of flanneld are usable, because the host has its own /run, /etc and /var/lib.

    Attributes:
        place: place of the host in the topology.
        engine: Docker engine of the host, which is not started.
    """

    def __init__(self, place: HostPlace, directory: Path) -> None:
        super().__init__(place.name, directory)
        self.place = place
        self.engine = DockerEngine(self)

    def begin(self) -> None:
        """Start the first process, in the same way as for every sandbox."""
        self.engine.write_settings()
        super().begin()

    @property
    def address(self) -> IPv4Address:
        """The address of the host on the underlay."""
        return self.place.address.ip

    def start_flanneld(
        self,
        *flags: str,
        environment: Mapping[str, str] | None = None,
        deadline_s: float = READY_DEADLINE_S,
    ) -> Program:
        """Start flanneld and return when it is ready.

        Raises:
            LabError: flanneld exited, or was not ready in time; the message contains the end of its log.
        """
        return self.start_service(["flanneld", *flags], environment=environment, deadline_s=deadline_s)

    def launch_flanneld(self, *flags: str, environment: Mapping[str, str] | None = None) -> Program:
        """Start flanneld without waiting until it is ready."""
        return self.start(["flanneld", *flags], environment=environment)

    def flannelctl(self, *argv: str, check: bool = True) -> str:
        """Run flannelctl on the host and return its output."""
        return self.run(["flannelctl", *argv], check=check).stdout

    def subnet_env(self) -> dict[str, str]:
        """Return the variables of /run/flannel/subnet.env."""
        return read_environment_file((self.directory / "run/flannel/subnet.env").read_text())

    def gateway(self) -> IPv4Interface:
        """Return the address for the bridge of the containers, from subnet.env."""
        return IPv4Interface(self.subnet_env()["FLANNEL_SUBNET"])

    def lease(self) -> IPv4Network:
        """Return the subnet of the host, from subnet.env."""
        return self.gateway().network

    def links(self) -> list[dict[str, Any]]:
        """Return the devices of the host, from `ip -json -details link`."""
        shown: list[dict[str, Any]] = json.loads(self.run(["ip", "-json", "-details", "link"]).stdout)
        return shown

    def routes(self, *selector: str) -> list[dict[str, Any]]:
        """Return the routes of the host, from `ip -json route show`."""
        shown: list[dict[str, Any]] = json.loads(self.run(["ip", "-json", "route", "show", *selector]).stdout)
        return shown

    def commands(self) -> list[list[str]]:
        """Return the command line of every program on the host, including its containers."""
        script = 'for process in /proc/[0-9]*; do tr "\\0" "\\t" <$process/cmdline; echo; done'
        lines = self.run(["bash", "-c", script], check=False).stdout.splitlines()
        return [line.rstrip("\t").split("\t") for line in lines if line]

    def container(
        self, name: str, *, gateway: IPv4Interface, number: int = 2, mtu: int
    ) -> NamespaceContainer:
        """Add a container as a network namespace, with address `number` of the gateway's subnet."""
        if not any(link["ifname"] == "br0" for link in self.links()):
            create_bridge(self, gateway)
        address = IPv4Interface((gateway.network[number], gateway.network.prefixlen))
        return NamespaceContainer(self, name, address=address, gateway=gateway.ip, mtu=mtu)
