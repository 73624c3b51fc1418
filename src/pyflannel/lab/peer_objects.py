"""What peers are to a kernel, in ip(8)'s and bridge(8)'s own words: to compare with, or to lay by hand."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface

from pyflannel.lab.sandboxes.sandbox import Sandbox
from pyflannel.model.lease import Lease

VXLAN_DEVICE = "flannel.1"
_PROTOCOL = "80"
_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerObjects:
    """The objects of any number of peers, each a line as it follows `add` and `dev NAME`.

    Attributes:
        device: that they hang on.
        routes: by destination and gateway.
        neighbours: by address and MAC address; none where the backend has no tunnel.
        fdb: by MAC address and host; likewise.
    """

    device: str
    routes: frozenset[tuple[str, str]]
    neighbours: frozenset[tuple[str, str]] = frozenset()
    fdb: frozenset[tuple[str, str]] = frozenset()

    def __len__(self) -> int:
        return len(self.routes) + len(self.neighbours) + len(self.fdb)

    def lay(self, sandbox: Sandbox, *, patience_s: float = _PATIENCE_S) -> None:
        """Add them by hand, as a person would who has many; the device is there.

        Raises:
            LabError: they were not all there after `patience_s` seconds.
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


def objects_of(leases: Iterable[Lease], backend: str, *, device: str = VXLAN_DEVICE) -> PeerObjects:
    """Return what these peers must be to the kernel of a host on their link, by vxlan or host-gw.

    `device` is the one of vxlan.
    """
    leases = list(leases)
    if backend == "host-gw":
        routes = frozenset((str(lease.subnet), str(lease.attributes.public_ip)) for lease in leases)
        return PeerObjects(device="eth0", routes=routes)
    ends = [(lease, str(lease.subnet.network_address), lease.attributes.vtep) for lease in leases]
    return PeerObjects(
        device=device,
        routes=frozenset((str(lease.subnet), base) for lease, base, _ in ends),
        neighbours=frozenset((base, vtep.mac) for _, base, vtep in ends if vtep is not None),
        fdb=frozenset(
            (vtep.mac, str(lease.attributes.public_ip)) for lease, _, vtep in ends if vtep is not None
        ),
    )


def objects_on(sandbox: Sandbox, backend: str) -> PeerObjects:
    """Return what the kernel of a host has: by vxlan all that is on the device, by host-gw what is marked."""
    if backend == "host-gw":
        return PeerObjects(device="eth0", routes=_routes(sandbox, "proto", _PROTOCOL))
    neighbours = _ask(sandbox, "ip", "neighbour", "show", "dev", VXLAN_DEVICE, "nud", "permanent")
    fdb = _ask(sandbox, "bridge", "fdb", "show", "dev", VXLAN_DEVICE)
    return PeerObjects(
        device=VXLAN_DEVICE,
        routes=_routes(sandbox, "dev", VXLAN_DEVICE),
        neighbours=frozenset((entry["dst"], entry["lladdr"]) for entry in neighbours),
        fdb=frozenset((entry["mac"], entry["dst"]) for entry in fdb),
    )


def lay_vxlan(
    sandbox: Sandbox,
    address: IPv4Interface,
    local: IPv4Address,
    *,
    device: str = VXLAN_DEVICE,
    mac: str | None = None,
) -> None:
    """Make the device that peers hang on, by hand; without `mac` the kernel gives it one."""
    own = f" address {mac}" if mac else ""
    lines = [
        f"link add {device}{own} type vxlan id 1 local {local} dev eth0 dstport 8472 nolearning",
        f"address add {address} dev {device}",
        f"link set {device} up",
    ]
    _batch(sandbox, "ip", lines)


def _routes(sandbox: Sandbox, *selector: str) -> frozenset[tuple[str, str]]:
    routes = _ask(sandbox, "ip", "route", "show", *selector)
    return frozenset((route["dst"], route.get("gateway", "")) for route in routes)


def _ask(sandbox: Sandbox, program: str, *argv: str) -> list[dict[str, str]]:
    # Of a device that is not there at the moment nothing is shown.
    said = sandbox.run([program, "-json", *argv], check=False, timeout_s=_PATIENCE_S).stdout
    found: list[dict[str, str]] = json.loads(said or "[]")
    return found


def _batch(sandbox: Sandbox, program: str, lines: Iterable[str], patience_s: float = _PATIENCE_S) -> None:
    sandbox.run([program, "-batch", "-"], text="\n".join(lines) + "\n", timeout_s=patience_s)
