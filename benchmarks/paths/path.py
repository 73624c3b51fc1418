"""Two hosts on one segment, and a path between a container on each, by flanneld or by manual commands."""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path as FilePath
from subprocess import CompletedProcess

from pyflannel.lab.containers import BRIDGE, NamespaceContainer
from pyflannel.lab.kernel_path import add_manually, create_vxlan, objects_of
from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import RUN_TIMEOUT_S
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology
from pyflannel.lab.traffic import Station, wait_reached
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep
from pyflannel.model.network_config import Family

NETWORK = "10.100.0.0/16"
NETWORK_V6 = "fd00:5::/48"
_TOPOLOGY = Topology(
    (LEFT,),
    (
        HostPlace("one", LEFT, IPv4Interface("10.10.10.101/24")),
        HostPlace("two", LEFT, IPv4Interface("10.10.10.102/24")),
    ),
)
_GATEWAYS = IPv4Interface("10.100.1.1/24"), IPv4Interface("10.100.2.1/24")
_REACHED_S = 30.0
_VXLAN_V6 = "vxlan6"
_MTUS_V6 = {"vxlan": 1430, "host-gw": 1500}


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A flanneld and its command line."""

    host: Host
    program: Program
    flags: tuple[str, ...]

    def restart(self, *further_flags: str) -> None:
        """Start flanneld again with additional flags."""
        self.program.stop()
        self.host.start_flanneld(*self.flags, *further_flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Two stations on two hosts, and the path between them.

    Attributes:
        name: distinguishes the path from the other paths of the benchmark.
        daemons: the flannelds that created the path; none if the path was configured manually or is the bare
            wire.
    """

    name: str
    hosts: tuple[Host, Host]
    left: Station
    right: Station
    daemons: tuple[Daemon, ...] = ()


@dataclass(frozen=True, slots=True)
class Ipv6Station:
    """A container, by its IPv6 address."""

    container: NamespaceContainer
    address: IPv6Address

    @property
    def name(self) -> str:
        """The name of the container."""
        return self.container.name

    def run_in_network(
        self, argv: Sequence[str | FilePath], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run a command of the machine in the network of the container."""
        return self.container.run_in_network(argv, check=check, timeout_s=timeout_s)

    def start_in_network(self, argv: Sequence[str | FilePath], *, name: str = "") -> Program:
        """Start a program of the machine in the network of the container."""
        return self.container.start_in_network(argv, name=name)


def two_hosts(labs: ExitStack, name: str) -> Lab:
    """Create a lab of this name with two hosts that only a wire connects."""
    return labs.enter_context(Lab(name, _TOPOLOGY))


def join_by_flanneld(lab: Lab, name: str, backend: str, *flags: str, family: Family = 4) -> Path:
    """Connect the lab's hosts by flanneld; return when their containers reach each other.

    With IPv6, the network has both families, and the path carries IPv6.
    """
    one, two = lab.hosts.values()
    families = {}
    if family == 6:
        families = {"EnableIPv6": True, "IPv6Network": NETWORK_V6}
        _give_ipv6(one, two)
    config = json.dumps({"Network": NETWORK, **families, "Backend": {"Type": backend}})
    one.flannelctl("--store", lab.sqlite_url, "config", "set", config)
    flags = (f"--store={lab.sqlite_url}", *flags)
    daemons = tuple(
        Daemon(host=host, program=host.start_flanneld(*flags), flags=flags) for host in (one, two)
    )
    mtu = int(one.subnet_env()["FLANNEL_MTU"])
    left, right = (
        _station(
            host,
            host.container("box", gateway=host.gateway(), mtu=mtu),
            host.subnet_env().get("FLANNEL_IPV6_SUBNET") if family == 6 else None,
        )
        for host in (one, two)
    )
    wait_reached((left, right), deadline_s=_REACHED_S)
    return Path(name=name, hosts=(one, two), left=left, right=right, daemons=daemons)


def join_manually(lab: Lab, name: str, backend: str, *, family: Family = 4) -> Path:
    """Connect the hosts manually, like the backend; return when their containers reach each other."""
    one, two = lab.hosts.values()
    left: Station
    right: Station
    if family == 4:
        left, right = add_manually(backend, (one, two), _GATEWAYS)
    else:
        _give_ipv6(one, two)
        left, right = _add_ipv6_manually(backend, (one, two))
    wait_reached((left, right), deadline_s=_REACHED_S)
    return Path(name=name, hosts=(one, two), left=left, right=right)


def _give_ipv6(*hosts: Host) -> None:
    """Give the hosts IPv6 addresses on their link, and let them forward IPv6."""
    for host in hosts:
        host.run(["ip", "address", "add", f"{_underlay_v6(host)}/64", "dev", "eth0", "nodad"])
        host.run(["sysctl", "-q", "-w", "net.ipv6.conf.all.forwarding=1"])


def _underlay_v6(host: Host) -> IPv6Address:
    return IPv6Address(f"fd07::{int(host.address) & 0xFF:x}")


def _station(host: Host, container: NamespaceContainer, ipv6_gateway: str | None) -> Station:
    """Return the container, or the container by its IPv6 address if its bridge has one."""
    if ipv6_gateway is None:
        return container
    gateway = IPv6Interface(ipv6_gateway)
    address = gateway.network[2]
    host.run(["ip", "address", "add", str(gateway), "dev", BRIDGE, "nodad"])
    batch = f"address add {address}/64 dev eth0 nodad\nroute add default via {gateway.ip}\n"
    host.run(["ip", "-netns", container.name, "-batch", "-"], text=batch)
    return Ipv6Station(container, address)


def _add_ipv6_manually(backend: str, hosts: tuple[Host, Host]) -> tuple[Station, Station]:
    """Connect two hosts by IPv6 as vxlan or host-gw connects them; return a container on each."""
    leases = [
        Lease(
            subnet=gateway.network,
            ipv6_subnet=IPv6Network(f"fd00:5:0:{number}::/64"),
            attributes=LeaseAttributes(
                public_ip=host.address,
                public_ipv6=_underlay_v6(host),
                vtep_v6=Vtep(mac=f"02:00:00:00:00:0{number}", vni=1),
            ),
        )
        for number, (host, gateway) in enumerate(zip(hosts, _GATEWAYS, strict=True), start=1)
    ]
    stations = []
    for host, own, peer, gateway in zip(hosts, leases, leases[::-1], _GATEWAYS, strict=True):
        assert own.ipv6_subnet is not None
        assert own.attributes.vtep_v6 is not None
        if backend == "vxlan":
            base = IPv6Interface((own.ipv6_subnet.network_address, 128))
            mac = own.attributes.vtep_v6.mac
            create_vxlan(host, base, _underlay_v6(host), device=_VXLAN_V6, mac=mac)
        objects_of([peer], backend, family=6, device=_VXLAN_V6).create(host)
        container = host.container("box", gateway=gateway, mtu=_MTUS_V6[backend])
        stations.append(_station(host, container, f"{own.ipv6_subnet[1]}/64"))
    return stations[0], stations[1]
