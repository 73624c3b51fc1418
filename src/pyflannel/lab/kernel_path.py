"""Paths of the kernel between two hosts, configured manually, and the throughput between two stations
(hosts or containers).
"""

import json
from collections.abc import Iterable, Mapping
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface

from msgspec import Struct

from pyflannel.errors import LabError
from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import RUN_TIMEOUT_S, Sandbox
from pyflannel.lab.topology import LEFT, RIGHT, Host, HostPlace
from pyflannel.lab.traffic import Station
from pyflannel.lab.waiting import wait_until
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep
from pyflannel.model.network_config import Family, IpAddress

PORT = 5201
_LISTEN_DEADLINE_S = 30.0


class Throughput(Struct, frozen=True, kw_only=True):
    """Throughput of TCP.

    Attributes:
        gbit_s: rate of the received payload in 10^9 bits per second.
        received_bytes: received payload.
    """

    gbit_s: float
    received_bytes: int


class Datagrams(Struct, frozen=True, kw_only=True):
    """The result of sending datagrams at the maximum rate.

    Attributes:
        received_kpps: rate of received datagrams in thousands per second.
        lost_percent: fraction of the sent datagrams that was lost.
    """

    received_kpps: float
    lost_percent: float


def measure_throughput(
    source: Station, destination: Station, *, seconds: int = 2, streams: int = 1
) -> Throughput:
    """Send concurrent TCP streams from source to destination.

    Raises:
        LabError: iperf3 failed; the hint contains its output.
    """
    received = _run(source, destination, seconds, "--parallel", str(streams))["sum_received"]
    return Throughput(gbit_s=received["bits_per_second"] / 1e9, received_bytes=int(received["bytes"]))


def measure_datagrams(
    source: Station, destination: Station, *, size: int, seconds: int, kpps: float = 0.0
) -> Datagrams:
    """Send datagrams with a payload of `size` bytes at a rate, or at the maximum rate if the rate is 0.

    Raises:
        LabError: iperf3 failed; the hint contains its output.
    """
    flags = ["--udp", "--bandwidth", str(round(kpps * 1e3 * size * 8)), "--length", str(size)]
    total = _run(source, destination, seconds, *flags)["sum"]
    arrived = total["packets"] - total["lost_packets"]
    return Datagrams(received_kpps=arrived / total["seconds"] / 1e3, lost_percent=total["lost_percent"])


def _run(source: Station, destination: Station, seconds: int, *flags: str) -> dict[str, dict[str, float]]:
    """Run iperf3 for `seconds` and return the `end` part of its report."""
    server = destination.start_in_network(
        ["iperf3", "--server", "--one-off", "--forceflush", "--port", str(PORT)]
    )
    try:
        wait_listening(server, destination, PORT)
        client = ["iperf3", "--client", str(destination.address), "--port", str(PORT), "--json"]
        times = ["--time", str(seconds)]
        said = source.run_in_network(
            [*client, *times, *flags], check=False, timeout_s=seconds + RUN_TIMEOUT_S
        ).stdout
    finally:
        server.kill()
    report = json.loads(said)
    if "error" in report:
        raise LabError(
            f"iperf3 from {source.name} to {destination.name}: {report['error']}", hint=server.last_words()
        )
    end: dict[str, dict[str, float]] = report["end"]
    return end


def wait_listening(server: Program, station: Station, port: int) -> None:
    """Wait until a program listens on a TCP port of its station.

    Raises:
        LabError: the program exited, or did not listen in time.
    """

    def listens() -> bool:
        if server.exit_code is not None:
            raise LabError(f"{server.name} does not listen", hint=server.last_words())
        return bool(station.run_in_network(["ss", "-ltnH", f"sport = :{port}"]).stdout)

    wait_until(listens, what=f"{server.name} listens", deadline_s=_LISTEN_DEADLINE_S)


VXLAN_DEVICES: Mapping[Family, str] = {4: "flannel.1", 6: "flannel-v6.1"}
_PROTOCOL = "80"
_PATIENCE_S = 300.0


class PeerObjects(Struct, frozen=True, kw_only=True):
    """The kernel objects of several peers.

    Attributes:
        device: name of the device of these objects.
        routes: pairs of destination and gateway.
        neighbours: pairs of address and MAC address; empty if the backend has no tunnel.
        fdb: pairs of MAC address and host; empty if the backend has no tunnel.
    """

    device: str
    routes: frozenset[tuple[str, str]]
    neighbours: frozenset[tuple[str, str]] = frozenset()
    fdb: frozenset[tuple[str, str]] = frozenset()

    def __len__(self) -> int:
        return len(self.routes) + len(self.neighbours) + len(self.fdb)

    def create(self, sandbox: Sandbox, *, patience_s: float = _PATIENCE_S) -> None:
        """Add the objects with `ip` and `bridge`. The vxlan device must exist.

        Raises:
            LabError: not all objects were added within `patience_s` seconds.
        """
        neighbours = (
            f"neigh add {address} lladdr {mac} nud permanent dev {self.device}"
            for address, mac in self.neighbours
        )
        onlink = " onlink" if self.neighbours else ""
        routes = (
            f"route add {destination} via {gateway} dev {self.device}{onlink}"
            for destination, gateway in self.routes
        )
        entries = (f"fdb add {mac} dst {host} dev {self.device} self permanent" for mac, host in self.fdb)
        if self.fdb:
            _batch(sandbox, "bridge", entries, patience_s)
        _batch(sandbox, "ip", [*neighbours, *routes], patience_s)


def objects_of(
    leases: Iterable[Lease], backend: str, *, family: Family = 4, device: str | None = None
) -> PeerObjects:
    """Return the kernel objects for these peers on a host of the same link, for vxlan or host-gw.

    `device` is the name of the vxlan device, if it is not the device of flanneld.
    """
    parts = [part for lease in leases if (part := lease.part(family)) is not None]
    if backend.startswith("host-gw"):  # also `host-gw-dual`
        routes = frozenset((str(part.subnet), str(part.address)) for part in parts)
        return PeerObjects(device="eth0", routes=routes)
    ends = [(part, str(part.subnet.network_address), part.vtep) for part in parts]
    return PeerObjects(
        device=device or VXLAN_DEVICES[family],
        routes=frozenset((str(part.subnet), base) for part, base, _ in ends),
        neighbours=frozenset((base, vtep.mac) for _, base, vtep in ends if vtep is not None),
        fdb=frozenset((vtep.mac, str(part.address)) for part, _, vtep in ends if vtep is not None),
    )


def objects_on(sandbox: Sandbox, backend: str, *, family: Family = 4) -> PeerObjects:
    """Return the kernel objects of a host: for vxlan the objects on the device, for host-gw the objects
    with the mark.
    """
    if backend.startswith("host-gw"):  # also `host-gw-dual`
        return PeerObjects(device="eth0", routes=_routes(sandbox, family, "proto", _PROTOCOL))
    device = VXLAN_DEVICES[family]
    neighbours = _ask(sandbox, "ip", f"-{family}", "neighbour", "show", "dev", device, "nud", "permanent")
    fdb = _ask(sandbox, "bridge", "fdb", "show", "dev", device)
    return PeerObjects(
        device=device,
        routes=_routes(sandbox, family, "dev", device, "proto", _PROTOCOL),
        neighbours=frozenset((entry["dst"], entry["lladdr"]) for entry in neighbours),
        fdb=frozenset((entry["mac"], entry["dst"]) for entry in fdb),
    )


def create_vxlan(
    sandbox: Sandbox,
    address: IPv4Interface | IPv6Interface,
    local: IpAddress,
    *,
    device: str = VXLAN_DEVICES[4],
    mac: str | None = None,
) -> None:
    """Create the vxlan device with `ip`. Without `mac`, the kernel chooses an address."""
    own = f" address {mac}" if mac else ""
    lines = [
        f"link add {device}{own} type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning",
        f"address add {address} dev {device}",
        f"link set {device} up",
    ]
    _batch(sandbox, "ip", lines)


def _routes(sandbox: Sandbox, family: Family, *selector: str) -> frozenset[tuple[str, str]]:
    routes = _ask(sandbox, "ip", f"-{family}", "route", "show", *selector)
    return frozenset((route["dst"], route.get("gateway", "")) for route in routes)


def _ask(sandbox: Sandbox, program: str, *argv: str) -> list[dict[str, str]]:
    # The output for a missing device is empty.
    said = sandbox.run([program, "-json", *argv], check=False, timeout_s=_PATIENCE_S).stdout
    found: list[dict[str, str]] = json.loads(said or "[]")
    return found


def _batch(sandbox: Sandbox, program: str, lines: Iterable[str], patience_s: float = _PATIENCE_S) -> None:
    sandbox.run([program, "-batch", "-"], text="\n".join(lines) + "\n", timeout_s=patience_s)


# Paths of the kernel between two hosts, configured manually as an operator without flannel would do it.
#
# These paths are the reference for measurements, with the same objects as pyflannel: vxlan without learning,
# or a route through the peer.

VXLAN = "vxlan1"
WIREGUARD = "wg1"
_MTUS = {"vxlan": 1450, "host-gw": 1500, "wireguard": 1420}
_MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"
_LEFT = HostPlace("plain1", LEFT, IPv4Interface("10.10.10.201/24"))
_RIGHT = HostPlace("plain2", RIGHT, IPv4Interface("192.168.50.201/24"))
_LEFT_GATEWAY = IPv4Interface("10.200.1.1/24")
_RIGHT_GATEWAY = IPv4Interface("10.200.2.1/24")


class KernelPath(Struct, frozen=True):
    """A container on each of two hosts without flannel, connected by the kernel's vxlan."""

    left: NamespaceContainer
    right: NamespaceContainer
    left_host: Host
    right_host: Host


def add_manually(
    backend: str, hosts: tuple[Host, Host], gateways: tuple[IPv4Interface, IPv4Interface]
) -> tuple[NamespaceContainer, NamespaceContainer]:
    """Connect two hosts with the objects of vxlan, host-gw or wireguard; return a container on each.

    The gateways are the addresses of the bridges for the containers.
    """
    if backend == "wireguard":
        create_wireguard_path(hosts, gateways)
    else:
        _lay_routes(backend, hosts, gateways)
    left, right = (
        host.container("box", gateway=gateway, mtu=_MTUS[backend])
        for host, gateway in zip(hosts, gateways, strict=True)
    )
    return left, right


def _has_wireguard(host: Host) -> bool:
    return host.run(["wg", "show", WIREGUARD], check=False).returncode == 0


def create_wireguard_path(hosts: tuple[Host, Host], gateways: tuple[IPv4Interface, IPv4Interface]) -> None:
    """Connect two hosts by WireGuard. The link uses the WireGuard of the kernel, or wireguard-go if the
    kernel has no WireGuard.
    """
    keys = [host.run(["wg", "genkey"]).stdout for host in hosts]
    public = [host.run(["wg", "pubkey"], text=key).stdout for host, key in zip(hosts, keys, strict=True)]
    for number, (host, gateway) in enumerate(zip(hosts, gateways, strict=True)):
        peer = 1 - number
        if host.run(["ip", "link", "add", WIREGUARD, "type", "wireguard"], check=False).returncode:
            host.start(["env", "WG_PROCESS_FOREGROUND=1", "wireguard-go", "-f", WIREGUARD], name=WIREGUARD)
            wait_until(
                partial(_has_wireguard, host),
                what=f"wireguard-go on {host.name}",
                deadline_s=_LISTEN_DEADLINE_S,
            )
        config = (
            f"[Interface]\nPrivateKey = {keys[number]}ListenPort = 51820\n[Peer]\nPublicKey = {public[peer]}"
            f"AllowedIPs = {gateways[peer].network}\nEndpoint = {hosts[peer].address}:51820\n"
        )
        host.run(["wg", "setconf", WIREGUARD, "/dev/stdin"], text=config)
        lines = [
            f"address add {gateway.network.network_address}/32 dev {WIREGUARD}",
            f"link set {WIREGUARD} mtu {_MTUS['wireguard']} up",
            f"route add {gateways[peer].network} dev {WIREGUARD}",
        ]
        _batch(host, "ip", lines)


def _lay_routes(
    backend: str, hosts: tuple[Host, Host], gateways: tuple[IPv4Interface, IPv4Interface]
) -> None:
    leases = [_lease(*end) for end in zip(hosts, gateways, _MACS, strict=True)]
    for host, own, peer, mac in zip(hosts, leases, reversed(leases), _MACS, strict=True):
        if backend == "vxlan":
            base = IPv4Interface((own.subnet.network_address, 32))
            create_vxlan(host, base, host.address, device=VXLAN, mac=mac)
        objects_of([peer], backend, device=VXLAN).create(host)


def create_kernel_path(lab: Lab) -> KernelPath:
    """Add two new hosts, one on each segment, and connect their containers with vxlan and routes."""
    one, two = lab.add_hosts(_LEFT, _RIGHT)
    left, right = add_manually("vxlan", (one, two), (_LEFT_GATEWAY, _RIGHT_GATEWAY))
    return KernelPath(left, right, one, two)


def measure_kernel_path(path: KernelPath, *, seconds: int) -> Throughput:
    """Measure one TCP stream. Check that vxlan carried the stream, and that the hosts have no objects of
    pyflannel.

    Raises:
        LabError: a check failed, so the figure may not be the throughput of the kernel's vxlan.
    """
    for host in (path.left_host, path.right_host):
        _prove_plain(host)
    before = _bytes_sent(path.left_host)
    result = measure_throughput(path.left, path.right, seconds=seconds)
    carried = _bytes_sent(path.left_host) - before
    if carried < result.received_bytes:
        raise LabError(
            f"vxlan carried {carried} bytes of {result.received_bytes}",
            hint="Check the routes of the hosts without flannel.",
        )
    return result


def _lease(host: Host, gateway: IPv4Interface, mac: str) -> Lease:
    """Return the lease of a host for the peer at the other end."""
    attributes = LeaseAttributes(public_ip=host.address, vtep=Vtep(mac=mac, vni=1))
    return Lease(subnet=gateway.network, attributes=attributes)


def _prove_plain(host: Host) -> None:
    """Check that the host has no device and no program of pyflannel."""
    names = {link["ifname"] for link in host.links()}
    kinds = {link.get("linkinfo", {}).get("info_kind") for link in host.links()}
    programs = [" ".join(command) for command in host.commands()]
    if "tun" in kinds or any(name.startswith("flannel") for name in names):
        raise LabError(
            f"{host.name} has a device of pyflannel: {sorted(names)}",
            hint="Repeat the measurement on a new host.",
        )
    if ours := [program for program in programs if "flanneld" in program or "forwarder" in program]:
        raise LabError(
            f"{host.name} runs a program of pyflannel: {ours}", hint="Repeat the measurement on a new host."
        )


def _bytes_sent(host: Host) -> int:
    return int(host.run(["cat", f"/sys/class/net/{VXLAN}/statistics/tx_bytes"]).stdout)
