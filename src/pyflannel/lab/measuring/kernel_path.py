"""The kernel's own paths between two hosts, laid by hand as an operator would who has no flannel.

They are what ours is measured against, and the same objects: vxlan without learning, or a route by the peer.
"""

from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyflannel.errors import LabError
from pyflannel.lab.containers.namespace_container import NamespaceContainer
from pyflannel.lab.host import Host
from pyflannel.lab.lab import Lab
from pyflannel.lab.measuring.iperf import Throughput, measure_throughput
from pyflannel.lab.peer_objects import lay_vxlan, objects_of
from pyflannel.lab.topology import LEFT, RIGHT, HostPlace
from pyflannel.model.backend_data import Vtep
from pyflannel.model.lease import Lease, LeaseAttributes

VXLAN = "vxlan1"
_MTUS = {"vxlan": 1450, "host-gw": 1500}
_MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"
_LEFT = HostPlace("plain1", LEFT, IPv4Interface("10.10.10.201/24"))
_RIGHT = HostPlace("plain2", RIGHT, IPv4Interface("192.168.50.201/24"))
_LEFT_GATEWAY = IPv4Interface("10.200.1.1/24")
_RIGHT_GATEWAY = IPv4Interface("10.200.2.1/24")


@dataclass(frozen=True, slots=True)
class KernelPath:
    """A container on each of two hosts that know nothing of flannel, joined by the kernel's vxlan."""

    left: NamespaceContainer
    right: NamespaceContainer
    left_host: Host
    right_host: Host


def lay_by_hand(
    backend: str, hosts: tuple[Host, Host], gateways: tuple[IPv4Interface, IPv4Interface]
) -> tuple[NamespaceContainer, NamespaceContainer]:
    """Join two hosts as the backend, vxlan or host-gw, joins them; return a container on each.

    The gateways are the addresses of the containers' bridges.
    """
    leases = [_lease(*end) for end in zip(hosts, gateways, _MACS, strict=True)]
    for host, own, peer, mac in zip(hosts, leases, reversed(leases), _MACS, strict=True):
        if backend == "vxlan":
            base = IPv4Interface((own.subnet.network_address, 32))
            lay_vxlan(host, base, host.address, device=VXLAN, mac=mac)
        objects_of([peer], backend, device=VXLAN).lay(host)
    left, right = (
        host.container("box", gateway=gateway, mtu=_MTUS[backend])
        for host, gateway in zip(hosts, gateways, strict=True)
    )
    return left, right


def lay_kernel_path(lab: Lab) -> KernelPath:
    """Plug two fresh hosts in, one on each segment, and join their containers by vxlan and routes."""
    one, two = lab.add_hosts(_LEFT, _RIGHT)
    left, right = lay_by_hand("vxlan", (one, two), (_LEFT_GATEWAY, _RIGHT_GATEWAY))
    return KernelPath(left, right, one, two)


def measure_kernel_path(path: KernelPath, *, seconds: int) -> Throughput:
    """Measure one TCP stream, and prove that vxlan carried it and that nothing of ours was there.

    Raises:
        LabError: the proof fails: the figure would not be the kernel's.
    """
    for host in (path.left_host, path.right_host):
        _prove_plain(host)
    before = _octets_sent(path.left_host)
    result = measure_throughput(path.left, path.right, seconds=seconds)
    carried = _octets_sent(path.left_host) - before
    if carried < result.octets:
        raise LabError(
            f"vxlan carried {carried} octets of {result.octets}",
            hint="Look at the routes of the plain hosts.",
        )
    return result


def _lease(host: Host, gateway: IPv4Interface, mac: str) -> Lease:
    """Return what the other end must know of a host."""
    attributes = LeaseAttributes(public_ip=host.address, vtep=Vtep(mac=mac, vni=1))
    return Lease(subnet=gateway.network, attributes=attributes)


def _prove_plain(host: Host) -> None:
    """Check that no device and no program of an overlay of ours is on the host."""
    names = {link["ifname"] for link in host.links()}
    kinds = {link.get("linkinfo", {}).get("info_kind") for link in host.links()}
    programs = [" ".join(command) for command in host.commands()]
    if "tun" in kinds or any(name.startswith("flannel") for name in names):
        raise LabError(f"{host.name} has a device of ours: {sorted(names)}", hint="Measure on a fresh host.")
    if ours := [program for program in programs if "flanneld" in program or "forwarder" in program]:
        raise LabError(f"{host.name} runs a program of ours: {ours}", hint="Measure on a fresh host.")


def _octets_sent(host: Host) -> int:
    return int(host.run(["cat", f"/sys/class/net/{VXLAN}/statistics/tx_bytes"]).stdout)
