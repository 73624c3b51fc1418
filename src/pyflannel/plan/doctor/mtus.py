"""Faults of the MTUs on the way to the containers of this host: of links, of ports of bridges, of bridges."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from shlex import quote
from typing import NamedTuple

from pyflannel.model.host import Interface
from pyflannel.model.status import Finding, UnderlayStatus
from pyflannel.plan.doctor.observed import (
    DOCKER_FIX,
    NAMED,
    ContainerLink,
    ContainerNamespace,
    Observed,
    some,
)

_VLAN_TAG = 4
"""Bytes by which a frame may exceed the MTU of the receiving end of a veth, or of a port of a bridge.

The kernel drops larger frames without an ICMP error (__is_skb_forwardable in linux/netdevice.h).
"""

_LEAST_IPV6 = 1280
"""On a link with a smaller MTU, the kernel removes all IPv6 addresses (RFC 8200 section 5)."""


class _Way(NamedTuple):
    """The link of a container, its port, and the bridge of the port."""

    container: ContainerNamespace
    link: ContainerLink
    port: Interface
    bridge: Interface

    @property
    def is_unequal(self) -> bool:
        """True if one end of the link sends frames that the other end drops."""
        return abs(self.link.mtu - self.port.mtu) > _VLAN_TAG

    def is_flooded(self) -> bool:
        """Return whether the bridge sends packets that the port drops."""
        return not self.is_unequal and self.bridge.mtu > self.port.mtu + _VLAN_TAG

    def shown(self) -> str:
        """Return the MTUs of both ends."""
        inside = f"{self.link.name} of {self.container.process} has MTU {self.link.mtu}"
        return f"{inside}, its port {self.port.name} has MTU {self.port.mtu}"

    def commands(self, mtu: int) -> Iterator[str]:
        """Yield the commands that give this MTU to both ends."""
        if self.port.mtu != mtu:
            yield f"ip link set {quote(self.port.name)} mtu {mtu}"
        if self.link.mtu != mtu:
            yield (
                f"nsenter --net --target {self.container.pid} ip link set {quote(self.link.name)} mtu {mtu}"
            )


def _ways(seen: Observed) -> list[_Way]:
    by_index = {one.index: one for one in seen.interfaces.interfaces}
    bridges = {port: seen.interfaces.named(name) for name, ports in seen.ports.items() for port in ports}
    return [
        _Way(one, link, port, bridge)
        for one in seen.containers
        for link in one.links
        if (port := by_index.get(link.peer)) is not None
        if (bridge := bridges.get(port.name)) is not None
    ]


def _network_mtu(seen: Observed) -> int | None:
    """Return the MTU that containers must have (FLANNEL_MTU); None if it is unknown."""
    return seen.status.backend.mtu if seen.status.backend is not None else None


def _repair(seen: Observed, ways: Iterable[_Way], mtu: int) -> str:
    """Return the commands that give this MTU to both ends of the links, and to bridges whose MTU was set.

    Other bridges adopt the MTU of their ports.
    """
    ways = list(ways)
    commands = [command for way in ways for command in way.commands(mtu)][: 2 * NAMED]
    for bridge in {way.bridge.name: way.bridge for way in ways}.values():
        if bridge.mtu < min(*seen.ports[bridge.name].values(), mtu):
            commands.append(f"ip link set {quote(bridge.name)} mtu {mtu}")
        own = None if seen.status.lease is None else seen.status.lease.ipv6_subnet
        has_lost = own is not None and not any(held.address.ip in own for held in bridge.addresses)
        if own is not None and has_lost and bridge.mtu < _LEAST_IPV6:
            commands.append(f"ip address add {own[1]}/{own.prefixlen} dev {quote(bridge.name)}")
    return "; ".join(commands)


def _unequal_ends(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the two ends of links have different MTUs. The end with the smaller MTU receives
    no larger frames.
    """
    unequal = [way for way in _ways(seen) if way.is_unequal]
    if unequal:
        most = max(max(way.link.mtu, way.port.mtu) for way in unequal)
        yield Finding(
            code="port-mtu",
            severity="error",
            cause="the kernel drops large packets between containers and their bridge, because the two ends"
            " of their link have different MTUs",
            evidence=some([way.shown() for way in unequal]),
            fix=_repair(seen, unequal, _network_mtu(seen) or most),
        )


def _larger_bridges(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that bridges have a larger MTU than ports of containers.

    A bridge adopts the smallest MTU of its ports, unless a person or a program has set its MTU. If the ports
    have the MTU of the network, only packets of this host itself are too large.
    """
    mtu = _network_mtu(seen)
    flooded = [way for way in _ways(seen) if way.is_flooded()]
    for is_lost in (True, False):
        ways = [way for way in flooded if (mtu is None or way.port.mtu < mtu) is is_lost]
        bridges = {way.bridge.name: way.bridge for way in ways}
        smallest = {name: min(way.port.mtu for way in ways if way.bridge.name == name) for name in bridges}
        lowered = (f"ip link set {quote(name)} mtu {size}" for name, size in smallest.items())
        if ways:
            yield Finding(
                code="port-mtu",
                severity="error" if is_lost else "warning",
                cause="the kernel drops large packets to containers, because their ports have a smaller MTU"
                " than the bridge"
                if is_lost
                else "the kernel drops large packets of this host itself to containers, because the bridge"
                " has a larger MTU than its ports",
                evidence=some([f"{way.bridge.name} has MTU {way.bridge.mtu}; {way.shown()}" for way in ways]),
                fix="; ".join(lowered) if mtu is None or not is_lost else _repair(seen, ways, mtu),
            )


def _smaller(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers have a smaller MTU than the network."""
    mtu = _network_mtu(seen)
    small = [
        way
        for way in _ways(seen)
        if mtu is not None and way.link.mtu < mtu and not way.is_unequal and not way.is_flooded()
    ]
    if small and mtu is not None:
        yield Finding(
            code="mtu-small",
            severity="warning",
            cause=f"containers have a smaller MTU than the network, {mtu} bytes: they are slower, and larger"
            " packets of other containers of this host may be lost",
            evidence=some([way.shown() for way in small]),
            fix=f"{_repair(seen, small, mtu)}  # for new containers: mk-docker-opts -c -d"
            f" /etc/default/docker, which writes --mtu={mtu}; then restart Docker",
        )


def _smaller_bridges(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that a bridge has a smaller MTU than its containers and the network, so this host
    refuses or fragments larger packets of other hosts.

    A bridge that has adopted the MTU of a port is a consequence of this port, if its container is visible.
    """
    mtu, ways = _network_mtu(seen), _ways(seen)
    if mtu is None:
        return
    for name, ports in seen.ports.items():
        here = [way for way in ways if way.bridge.name == name]
        larger = [way for way in here if min(way.link.mtu, way.port.mtu, mtu) > way.bridge.mtu]
        if not larger:
            continue
        size = larger[0].bridge.mtu
        least = [port for port, held in ports.items() if held <= size]
        if any(way.port.name in least for way in here):
            continue
        yield Finding(
            code="mtu-small",
            severity="warning",
            cause=f"the bridge {name} has a smaller MTU than its containers, so this host refuses or"
            " fragments larger packets of other hosts",
            evidence=some(
                [f"{name} has MTU {size}{f', as its port {least[0]}' if least else ''}"]
                + [way.shown() for way in larger]
            ),
            fix="; ".join(f"ip link set {quote(one)} mtu {mtu}" for one in (*least[:NAMED], name)),
        )


def _larger(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that containers send too large packets: by the ports of a bridge or, if the ports are
    right, by the ends of the links in the containers.
    """
    mtu = _network_mtu(seen)
    known = [way for way in _ways(seen) if way.is_unequal]
    named = {(way.container.pid, way.link.name) for way in known}
    named_ports = {way.port.name for way in known}
    inside = {
        f"{name} of {one.process} has MTU {size}": (one.pid, name)
        for one in seen.containers
        for name, size in one.mtus.items()
        if mtu is not None and size > mtu and (one.pid, name) not in named
    }
    if inside and not any(size > (mtu or 0) for ports in seen.ports.values() for size in ports.values()):
        pid, name = next(iter(inside.values()))
        yield Finding(
            code="container-mtu",
            severity="warning",
            cause=f"containers send packets larger than the MTU of the network, {mtu} bytes",
            evidence=some([*inside]),
            fix=f"nsenter --net --target {pid} ip link set {quote(name)} mtu {mtu}",
        )
    for bridge, ports in seen.ports.items():
        large = {
            port: size
            for port, size in ports.items()
            if mtu is not None and size > mtu and port not in named_ports
        }
        if large and mtu is not None:
            yield _too_large(bridge, large, mtu, seen.status.underlay)


def _too_large(bridge: str, ports: Mapping[str, int], mtu: int, underlay: UnderlayStatus | None) -> Finding:
    """Return the finding that the ports of a bridge have a larger MTU than the network."""
    cause = f"containers on {bridge} send packets larger than the MTU of the network, {mtu} bytes"
    evidence, fix = [f"{port} has MTU {size}" for port, size in ports.items()], DOCKER_FIX
    if underlay is not None and (before := _former_mtu(underlay, mtu, ports.values())) is not None:
        cause += f", which follows from the MTU of {underlay.link}"
        evidence = [f"{underlay.link} has MTU {underlay.mtu}", *evidence]
        lowered = f"ip link set {quote(underlay.link)} mtu {before}"
        fix = f"{lowered}  # or, if {underlay.mtu} is intended: {fix}"
    return Finding(code="container-mtu", severity="warning", cause=cause, evidence=some(evidence), fix=fix)


def _former_mtu(underlay: UnderlayStatus, mtu: int, sizes: Iterable[int]) -> int | None:
    """Return the MTU of the underlay at which these sizes of containers were the MTU of the network; None if
    that is no usual MTU, so that the containers never had the MTU of the network.
    """
    former = {size - mtu + underlay.mtu for size in sizes}
    return next((one for one in _USUAL_MTUS if former == {one}), None)


_USUAL_MTUS = (1500, 9000)
"""MTUs of Ethernet: the default, and with jumbo frames."""


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    _unequal_ends,
    _larger_bridges,
    _smaller,
    _smaller_bridges,
    _larger,
)
