"""Two hosts on one segment, and a path between a container on each, by flanneld or by manual commands."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyflannel.lab.kernel_path import add_manually
from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology
from pyflannel.lab.traffic import Station, wait_reached

NETWORK = "10.100.0.0/16"
_TOPOLOGY = Topology(
    (LEFT,),
    (
        HostPlace("one", LEFT, IPv4Interface("10.10.10.101/24")),
        HostPlace("two", LEFT, IPv4Interface("10.10.10.102/24")),
    ),
)
_GATEWAYS = IPv4Interface("10.100.1.1/24"), IPv4Interface("10.100.2.1/24")
_REACHED_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A flanneld and its command line."""

    host: Host
    program: Program
    flags: tuple[str, ...]

    def restart(self, *further_flags: str) -> None:
        """Start it again with additional flags."""
        self.program.stop()
        self.host.start_flanneld(*self.flags, *further_flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Two stations on two hosts, and the path between them.

    Attributes:
        name: distinguishes it from the other paths of the benchmark.
        daemons: the flannelds that created it; none if it was configured manually or is the bare wire.
    """

    name: str
    hosts: tuple[Host, Host]
    left: Station
    right: Station
    daemons: tuple[Daemon, ...] = ()


def two_hosts(labs: ExitStack, name: str) -> Lab:
    """Create a lab of this name with two hosts that only a wire connects."""
    return labs.enter_context(Lab(name, _TOPOLOGY))


def join_by_flanneld(lab: Lab, name: str, backend: str, *flags: str) -> Path:
    """Connect the lab's hosts by flanneld; return when their containers reach each other."""
    one, two = lab.hosts.values()
    config = json.dumps({"Network": NETWORK, "Backend": {"Type": backend}})
    one.flannelctl("--store", lab.sqlite_url, "config", "set", config)
    flags = (f"--store={lab.sqlite_url}", *flags)
    daemons = tuple(
        Daemon(host=host, program=host.start_flanneld(*flags), flags=flags) for host in (one, two)
    )
    mtu = int(one.subnet_env()["FLANNEL_MTU"])
    left, right = (host.container("box", gateway=host.gateway(), mtu=mtu) for host in (one, two))
    wait_reached((left, right), deadline_s=_REACHED_S)
    return Path(name=name, hosts=(one, two), left=left, right=right, daemons=daemons)


def join_manually(lab: Lab, name: str, backend: str) -> Path:
    """Connect the hosts manually, like the backend; return when their containers reach each other."""
    one, two = lab.hosts.values()
    left, right = add_manually(backend, (one, two), _GATEWAYS)
    wait_reached((left, right), deadline_s=_REACHED_S)
    return Path(name=name, hosts=(one, two), left=left, right=right)
