"""Faults between the containers of this host: their neighbour entries, and the ports of their bridges."""

from collections.abc import Callable, Iterable, Iterator
from shlex import quote

from pyflannel.model.network_config import IpAddress
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import NAMED, Observed, some


def _neighbours(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers have permanent neighbour entries with wrong MAC addresses for their
    gateway, or for other containers of this host.
    """
    right = _macs(seen)
    wrong = {
        f"{one.process}: ip neighbour show {entry.address} dev {entry.link}: lladdr {entry.mac} PERMANENT,"
        f" but {entry.address} has {' or '.join(sorted(right[entry.address]))}": (one.pid, entry)
        for one in seen.containers
        for entry in one.set_neighbours
        if entry.address.version == seen.family and entry.mac not in right.get(entry.address, {entry.mac})
    }
    if wrong:
        yield Finding(
            code="container-neighbour",
            severity="error",
            cause="containers send packets to wrong MAC addresses, which were set manually",
            evidence=some([*wrong]),
            fix="; ".join(
                f"nsenter --net --target {pid} ip neighbour delete {entry.address} dev {quote(entry.link)}"
                for pid, entry in [*wrong.values()][:NAMED]
            ),
        )


def _macs(seen: Observed) -> dict[IpAddress, set[str]]:
    """Return the MAC addresses of the bridges and of the containers of this host, by their addresses."""
    found: dict[IpAddress, set[str]] = {}
    for bridge in filter(None, map(seen.interfaces.named, seen.ports)):
        for held in bridge.addresses if bridge.mac else ():
            found.setdefault(held.address.ip, set()).add(bridge.mac)
    for link in (link for one in seen.containers for link in one.links if link.mac):
        for address in link.addresses:
            found.setdefault(address, set()).add(link.mac)
    return found


def _ports(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that ports of a bridge learn no MAC addresses, and the FDB has no entries for their
    containers.

    If such a port also does not flood, its container receives no packets.
    """
    for floods in (False, True):
        silent = {one.index: one for one in seen.silent_ports if one.floods is floods}
        ports = {
            silent[link.peer]: (one.process, link.mac)
            for one in seen.containers
            for link in one.links
            if link.peer in silent and link.mac and link.mac not in silent[link.peer].macs
        }
        if ports:
            yield Finding(
                code="port-not-learning",
                severity="warning" if floods else "error",
                cause="ports learn no MAC addresses, so bridges flood the packets for their containers"
                if floods
                else "ports neither learn MAC addresses nor flood, so their containers receive no packets",
                evidence=some(
                    [
                        f"bridge -details link show dev {port.name}: learning off"
                        f"{'' if floods else ' flood off'}; bridge fdb show br {port.bridge}: no entry for"
                        f" {mac} of {process}"
                        for port, (process, mac) in ports.items()
                    ]
                ),
                fix="; ".join(
                    f"bridge link set dev {quote(port.name)} learning on" for port in [*ports][:NAMED]
                ),
            )


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (_neighbours, _ports)
