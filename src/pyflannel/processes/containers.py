"""The network namespaces of containers, and Docker's containers, from /proc, control groups and files."""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from pathlib import Path

from msgspec import DecodeError, Struct, field
from msgspec.json import decode

from pyflannel.plan.doctor.observed import ContainerNamespace, ContainerRoute, EndedContainer
from pyflannel.processes.found import PROC, describe, entries_of, link_target, processes, read_proc


def find_containers() -> tuple[ContainerNamespace, ...]:
    """Return the network namespaces of the processes that are visible to this process, except its own
    namespace.
    """
    found: dict[str, Path] = {}
    for process in processes():
        found.setdefault(link_target(process / "ns/net"), process)
    for other in (link_target(PROC / "thread-self/ns/net"), ""):
        found.pop(other, None)
    return tuple(
        ContainerNamespace(
            pid=int(process.name),
            process=", ".join(
                filter(None, (container_name(cgroup := read_proc(process / "cgroup")), describe(process)))
            ),
            container_id=container_in(cgroup),
            frozen=frozen_by(cgroup),
            addresses=frozenset(
                (
                    *addresses_in(read_proc(process / "net/fib_trie")),
                    *ipv6_addresses_in(read_proc(process / "net/if_inet6")),
                )
            ),
            routes=(
                *routes_in(read_proc(process / "net/route")),
                *ipv6_routes_in(read_proc(process / "net/ipv6_route")),
            ),
        )
        for process in found.values()
    )


_CONTAINER = re.compile(r"[-/]([\da-f]{64})(?:\.scope)?(?:/|$)", re.M | re.A)
_SHORT = 12


def container_in(cgroup: str) -> str:
    """Return the first 12 characters of the ID of a container in /proc/PID/cgroup; "" if there is none."""
    found = _CONTAINER.search(cgroup)
    return "" if found is None else found[1][:_SHORT]


_DOCKER = Path("/var/lib/docker/containers")
"""The containers of Docker, if the engine has its default directory."""

_CONTAINER_NAME = re.compile(r"/([a-zA-Z0-9][a-zA-Z0-9_.-]*)", re.A)
"""The name of a container in its configuration. Source: Docker, RestrictedNamePattern."""


class _State(Struct, frozen=True, rename="pascal"):
    running: bool = False
    exit_code: int = 0
    finished_at: datetime | None = None
    lacked_memory: bool = field(name="OOMKilled", default=False)


class _Configuration(Struct, frozen=True, rename="pascal"):
    name: str = ""
    state: _State = _State()


def _configured(directory: Path) -> tuple[str, _State]:
    """Return the name and the state of a container from its configuration, the file config.v2.json; the name
    "" if they are unknown.
    """
    with contextlib.suppress(DecodeError):
        read = decode(read_proc(directory / "config.v2.json"), type=_Configuration)
        if (name := _CONTAINER_NAME.fullmatch(read.name)) is not None:
            return name[1], read.state
    return "", _State()


def container_name(cgroup: str, directory: Path = _DOCKER) -> str:
    """Return the name of a container of Docker, from /proc/PID/cgroup and the directory of the containers; ""
    if it is unknown.
    """
    found = _CONTAINER.search(cgroup)
    return "" if found is None else _configured(directory / found[1])[0]


_RECENT_S = 3600.0
_MOST_READ = 512
_USUAL_CODES = frozenset({0, 130, 143})
"""The exit codes of programs that end themselves, or that SIGINT or SIGTERM ends."""


def ended_containers(directory: Path = _DOCKER, now: datetime | None = None) -> tuple[EndedContainer, ...]:
    """Return the containers of Docker that ended with an error during the last hour, the latest first."""
    found, now = list[EndedContainer](), now or datetime.now(UTC)
    for entry in islice(entries_of(directory), _MOST_READ):
        name, state = _configured(entry)
        if not name or state.running or state.finished_at is None or state.exit_code in _USUAL_CODES:
            continue
        ago_s = (now - state.finished_at).total_seconds()
        if 0 <= ago_s <= _RECENT_S:
            one = EndedContainer(
                name=name, exit_code=state.exit_code, ago_s=ago_s, lacked_memory=state.lacked_memory
            )
            found.append(one)
    return tuple(sorted(found, key=lambda one: one.ago_s))


_GROUPS = Path("/sys/fs/cgroup")


def frozen_by(cgroup: str, groups: Path = _GROUPS) -> str:
    """Return the file that shows that a control group of /proc/PID/cgroup is frozen, for example by
    `docker pause`; "" if none is.

    Version 1 has the file freezer.state, version 2 a line in cgroup.events (cgroup-v1/freezer-subsystem.rst,
    cgroup-v2.rst). Both are also true if a parent is frozen.
    """
    for line in cgroup.split("\n"):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        place = path.lstrip("/")
        if "freezer" in controllers.split(","):
            state = groups / "freezer" / place / "freezer.state"
            if read_proc(state).strip() == "FROZEN":
                return str(state)
        elif not controllers and place:
            for events in (groups / place / "cgroup.events", groups / "unified" / place / "cgroup.events"):
                if "frozen 1" in read_proc(events).split("\n"):
                    return str(events)
    return ""


def addresses_in(fib_trie: str) -> Iterator[IPv4Address]:
    """Yield the own addresses in /proc/PID/net/fib_trie.

    The lines below `|-- ADDRESS` are the routes to the address: `/32 host LOCAL` once per link that has the
    address.
    """
    address = ""
    for line in fib_trie.split("\n"):
        first, _, rest = line.strip().partition(" ")
        if first == "|--":
            address = rest
        elif (first, rest) == ("/32", "host LOCAL"):
            yield IPv4Address(address)


_RTF_GATEWAY, _RTF_REJECT = 0x2, 0x200
_NO_LINK = "*"
_ROUTE = re.compile(
    r"^([^\t\n]+)\t([\dA-F]{8})\t([\dA-F]{8})\t([\dA-F]{4})\t\d+\t\d+\t\d+\t([\dA-F]{8})\t", re.M | re.A
)


def routes_in(table: str) -> Iterator[ContainerRoute]:
    """Yield the routes in /proc/PID/net/route.

    Columns (net/ipv4/fib_trie.c): the second contains the destination, the third the gateway and the eighth
    the mask, in the host's byte order, and the fourth has the flags (linux/route.h). The first column is the
    name of a link, or * for a route of the types blackhole, unreachable and prohibit. A container can use
    characters in this name that Python treats as white space or as the end of a line.
    """
    for link, destination, gateway, flags, mask in _ROUTE.findall(table):
        length, bits = int(mask, 16).bit_count(), int(flags, 16)
        yield ContainerRoute(
            destination=IPv4Network((bytes.fromhex(destination)[::-1], length), strict=False),
            gateway=IPv4Address(bytes.fromhex(gateway)[::-1]) if bits & _RTF_GATEWAY else None,
            is_refused=link == _NO_LINK or bool(bits & _RTF_REJECT),
        )


_IPV6_ADDRESS = re.compile(r"^([\da-f]{32}) [\da-f]+ [\da-f]+ [\da-f]+ [\da-f]+ +", re.M | re.A)


def ipv6_addresses_in(if_inet6: str) -> Iterator[IPv6Address]:
    """Yield the addresses in /proc/PID/net/if_inet6, whose first column is the address (net/ipv6/addrconf.c).

    The last column is the name of a link, which a container can choose.
    """
    for address in _IPV6_ADDRESS.findall(if_inet6):
        yield IPv6Address(bytes.fromhex(address))


_RTF_LOCAL, _IPV6_BITS = 0x80000000, 128
_IPV6_ROUTE = re.compile(
    r"^([\da-f]{32}) ([\da-f]{2}) [\da-f]{32} [\da-f]{2} ([\da-f]{32}) [\da-f]{8} [\da-f]{8} [\da-f]{8} "
    r"([\da-f]{8}) ",
    re.M | re.A,
)


def ipv6_routes_in(table: str) -> Iterator[ContainerRoute]:
    """Yield the routes in /proc/PID/net/ipv6_route, except those to own addresses, and the default route that
    refuses packets. The kernel lists this default route in every namespace.

    Columns (net/ipv6/route.c): the first two contain the destination and its length, the fifth the gateway,
    and the ninth the flags (linux/ipv6_route.h), all in hexadecimal.
    """
    for destination, length, gateway, flags in _IPV6_ROUTE.findall(table):
        prefix_length, bits = int(length, 16), int(flags, 16)
        is_refused = bool(bits & _RTF_REJECT)
        is_null = is_refused and not prefix_length
        if prefix_length <= _IPV6_BITS and not bits & _RTF_LOCAL and not is_null:
            yield ContainerRoute(
                destination=IPv6Network((bytes.fromhex(destination), prefix_length), strict=False),
                gateway=IPv6Address(bytes.fromhex(gateway)) if bits & _RTF_GATEWAY else None,
                is_refused=is_refused,
            )
