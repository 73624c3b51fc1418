"""The kernel's own overlay, laid by hand: what ours is measured against."""

from dataclasses import dataclass
from ipaddress import IPv4Interface

from pyflannel.errors import LabError
from pyflannel.lab.host import Host
from pyflannel.lab.iperf import Throughput, measure_throughput
from pyflannel.lab.lab import Lab
from pyflannel.lab.namespace_container import NamespaceContainer
from pyflannel.lab.topology import LEFT, RIGHT, HostPlace

VXLAN = "vxlan1"
VXLAN_MTU = 1450
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


def lay_kernel_path(lab: Lab) -> KernelPath:
    """Plug two fresh hosts in, one on each segment, and join their containers by vxlan and routes."""
    left, right = lab.add_hosts(_LEFT, _RIGHT)
    _lay_vxlan(left, right, _LEFT_GATEWAY, _RIGHT_GATEWAY)
    _lay_vxlan(right, left, _RIGHT_GATEWAY, _LEFT_GATEWAY)
    return KernelPath(
        left.container("plain", gateway=_LEFT_GATEWAY, mtu=VXLAN_MTU),
        right.container("plain", gateway=_RIGHT_GATEWAY, mtu=VXLAN_MTU),
        left,
        right,
    )


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


def _lay_vxlan(host: Host, peer: Host, gateway: IPv4Interface, peer_gateway: IPv4Interface) -> None:
    end = f"id 1 local {host.address} remote {peer.address} dstport 4789 dev eth0"
    lines = [
        f"link add {VXLAN} mtu {VXLAN_MTU} type vxlan {end}",
        f"address add {gateway.network.network_address}/32 dev {VXLAN}",
        f"link set {VXLAN} up",
        f"route add {peer_gateway.network} via {peer_gateway.network.network_address} dev {VXLAN} onlink",
    ]
    host.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")


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
