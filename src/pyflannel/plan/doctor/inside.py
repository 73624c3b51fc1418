"""Sysctls and programs inside containers that stop the packets of these containers."""

from collections.abc import Callable, Iterable, Iterator
from shlex import quote
from typing import NamedTuple

from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import NAMED, ContainerNamespace, Observed, some


class _Stop(NamedTuple):
    """The evidence that a container cannot send or receive, and the command that ends this."""

    container: ContainerNamespace
    text: str
    command: str


def _line(stop: _Stop) -> str:
    return f"{stop.container.process}: {stop.text}"


def _commands(stops: Iterable[_Stop]) -> str:
    found = dict.fromkeys(f"nsenter --net --target {one.container.pid} {one.command}" for one in stops)
    return "; ".join([*found][:NAMED])


def _setting(one: ContainerNamespace, name: str, value: int | str, right: int | str) -> _Stop:
    return _Stop(one, f"{name} = {value}", f"sysctl -w {quote(f'{name}={right}')}")


def _paused(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the processes of containers are paused. The kernel still answers ICMP echo
    requests for them.
    """
    own = seen.membership.subnet
    paused = {
        f"{one.process}: {one.frozen}": _unpaused(one)
        for one in seen.containers
        if one.frozen and own is not None and any(held in own for held in one.addresses)
    }
    if paused:
        yield Finding(
            code="container-paused",
            severity="warning",
            cause="containers are paused, so their programs answer nothing",
            evidence=some([f"{line} says that the control group is frozen" for line in paused]),
            fix="; ".join([*dict.fromkeys(paused.values())][:NAMED]),
        )


def _unpaused(one: ContainerNamespace) -> str:
    """Return the command that lets the processes of a container run again."""
    if one.container_id:
        return f"{'podman' if '/libpod' in one.frozen else 'docker'} unpause {one.container_id}"
    place, _, name = one.frozen.rpartition("/")
    if name == "freezer.state":
        return f"echo THAWED > {quote(one.frozen)}"
    return f"echo 0 > {quote(f'{place}/cgroup.freeze')}"


def _ports(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the kernel finds no local port for connections of containers."""
    stops = []
    for one in seen.containers if seen.is_first else ():
        settings = one.settings
        if settings is None or not _is_covered(settings.ports, settings.reserved):
            continue
        ports, usual = (f"{each.start} {each.stop - 1}" for each in (settings.ports, _USUAL))
        reserved = _shown(settings.reserved)
        stop = (
            _setting(one, _RESERVED, reserved, "")
            if _is_covered(_USUAL, settings.reserved)
            else _setting(one, _RANGE, ports, usual)
        )
        stops.append(stop._replace(text=f"{_RANGE} = {ports}, {_RESERVED} = {reserved}"))
    if stops:
        yield Finding(
            code="container-setting",
            severity="error",
            cause="containers open no connections, because all of their local ports are reserved",
            evidence=some([*map(_line, stops)]),
            fix=_commands(stops),
        )


_RANGE, _RESERVED = "net.ipv4.ip_local_port_range", "net.ipv4.ip_local_reserved_ports"

_USUAL = range(32768, 61000)
"""The default of ip_local_port_range."""


def _shown(ports: Iterable[range]) -> str:
    return ",".join(f"{part.start}-{part.stop - 1}" if len(part) > 1 else str(part.start) for part in ports)


def _is_covered(ports: range, parts: Iterable[range]) -> bool:
    """Return whether the parts contain all ports."""
    first = ports.start
    for part in sorted(parts, key=lambda one: one.start):
        if part.start <= first:
            first = max(first, part.stop)
    return first >= ports.stop


_LEAST_TTL, _SMALL_TTL = 3, 8
"""The least TTL with which a packet reaches a container of another host: this host and the other host forward
it. With a TTL below the second number, packets do not reach many other destinations."""


def _ttls(seen: Observed) -> Iterator[Finding]:
    """Yield the findings that packets of containers expire on their way."""
    small: list[tuple[int, _Stop]] = []
    for one in seen.containers:
        if seen.family == 4 and one.settings is not None and one.settings.ttl < _SMALL_TTL:
            ttl = one.settings.ttl
            small.append((ttl, _setting(one, "net.ipv4.ip_default_ttl", ttl, 64)))
        for link in one.links if seen.family == 6 else ():
            if link.hop_limit is not None and link.hop_limit < _SMALL_TTL:
                name = f"net/ipv6/conf/{link.name}/hop_limit"
                small.append((link.hop_limit, _setting(one, name, link.hop_limit, 64)))
    for is_lost in (True, False):
        stops = [stop for ttl, stop in small if (ttl < _LEAST_TTL) is is_lost]
        if stops:
            yield Finding(
                code="container-setting",
                severity="error" if is_lost else "warning",
                cause="packets of containers expire before they reach a container of another host"
                if is_lost
                else "packets of containers expire after a few routers, because their TTL is small",
                evidence=some([*map(_line, stops)]),
                fix=_commands(stops),
            )


_LEAST_IPV6 = 1280
"""On a link with a smaller MTU, the kernel turns IPv6 off; the MTU is then another finding."""


def _without_ipv6(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that IPv6 is off on links of containers at a bridge with IPv6 of the network."""
    names = {port for ports in seen.ports.values() for port in ports}
    ports = {one.index for one in seen.interfaces.interfaces if one.name in names}
    stops = [
        _setting(one, f"net/ipv6/conf/{link.name}/disable_ipv6", 1, 0)
        for one in seen.containers
        for link in one.links
        if seen.family == 6 and link.peer in ports and not link.has_ipv6 and link.mtu >= _LEAST_IPV6
    ]
    if stops:
        yield Finding(
            code="container-setting",
            severity="warning",
            cause="containers have no IPv6, although their bridge has IPv6",
            evidence=some([*map(_line, stops)]),
            fix=f"{_commands(stops)}  # then restart these containers, which have lost their addresses",
        )


def _filters_of(one: ContainerNamespace) -> Iterator[_Stop]:
    """Yield the filters of traffic control in a container that took packets."""
    for taken in one.taking_filters:
        place = f"dev {quote(taken.link)} {taken.direction}"
        yield _Stop(
            one,
            f"tc filter show {place}: pref {taken.priority} {taken.text}, {taken.packets} packets",
            f"tc filter delete {place} pref {taken.priority}",
        )


def _programs_of(one: ContainerNamespace) -> Iterator[_Stop]:
    """Yield the eBPF programs that see the packets of a container. The kernel does not show their actions."""
    for link in one.links:
        name = quote(link.name)
        if link.xdp:
            text = f"ip link show dev {name}: an XDP program is attached"
            yield _Stop(one, text, f"ip link set dev {name} {link.xdp} off")
        for direction in link.programs:
            text = f"tc filter show dev {name} {direction}: an eBPF program is attached"
            yield _Stop(one, text, f"tc filter delete dev {name} {direction}")


def may_stop(one: ContainerNamespace) -> bool:
    """Return whether filters of traffic control or eBPF programs in a container may drop its packets."""
    return any(True for _ in (*_filters_of(one), *_programs_of(one)))


def _filters(seen: Observed) -> Iterator[Finding]:
    stops = [stop for one in seen.containers for stop in _filters_of(one)]
    if stops:
        yield Finding(
            code="container-filter",
            severity="warning",
            cause="filters of traffic control inside containers drop or redirect packets",
            evidence=some([*map(_line, stops)]),
            fix=_commands(stops),
        )


def _programs(seen: Observed) -> Iterator[Finding]:
    """Yield the eBPF programs at links of containers, as a warning if the container does not answer."""
    for is_silent in (True, False):
        stops = [
            stop
            for one in seen.containers
            if any(held.version == seen.family for held in one.silent) is is_silent
            for stop in _programs_of(one)
        ]
        if stops:
            yield Finding(
                code="container-program",
                severity="warning" if is_silent else "info",
                cause="containers do not answer, and eBPF programs at their links may drop the packets"
                if is_silent
                else "eBPF programs at links of containers may drop packets",
                evidence=some([*map(_line, stops)]),
                fix=f"{_commands(stops)}  # if no program needs it",
            )


CHECKS: tuple[Callable[[Observed], Iterable[Finding]], ...] = (
    _paused,
    _ports,
    _ttls,
    _without_ipv6,
    _filters,
    _programs,
)
