"""Finds the processes in /proc that use a port, a device or a directory, and stops a process."""

import contextlib
import os
import re
import select
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import islice
from pathlib import Path

from msgspec import DecodeError, Struct, field
from msgspec.json import decode

from pyflannel.errors import WireError
from pyflannel.plan.doctor.observed import ContainerNamespace, ContainerRoute, EndedContainer, LinkSetter
from pyflannel.ports import in_thread
from pyflannel.wire.forwarder_control import SOCKET_NAME
from pyflannel.wire.netlink.message import ERROR, pack, split
from pyflannel.wire.netlink.unix_sockets import PROTOCOL, get_unix_socket, parse_path

_GONE_S = 2.0


async def end_process(pid: int, is_meant: Callable[[int], bool]) -> bool:
    """Kill a process if `is_meant` accepts it, and wait until the process has exited. Return whether this
    function killed it.

    The pidfd is opened before `is_meant` examines the process. Therefore another process that gets the same
    process ID later is not killed.
    """
    return await in_thread(_end, pid, is_meant)


def _end(pid: int, is_meant: Callable[[int], bool]) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if not is_meant(pid):
            return False
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        # A process that sleeps in the kernel may take longer. Until the process exits, its resources remain
        # in use.
        select.select([descriptor], [], [], _GONE_S)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


_PROC = Path("/proc")

FORWARDER = "pyflannel.programs.forwarder"
"""The module in the command line of a forwarder that the daemon started."""

_PROGRAM = "flannel-forwarder"
"""The name of the program in the unit."""


def find_port_holder(address: IPv4Address, port: int) -> str | None:
    """Return the program that uses this UDP address, as `NAME, pid N`, or None.

    The result is `another program` if the program is not visible from this PID namespace.
    """
    targets = _sockets(address, port)
    for process in _processes():
        if any(_link(descriptor) in targets for descriptor in _entries(process / "fd")):
            return _describe(process)
    return "another program" if targets & _sockets(address, port) else None


def find_tun_holder(link: str) -> str | None:
    """Return the program that is attached to a TUN device, as `NAME, pid N`, or None.

    Only this network namespace is searched, because other namespaces may have devices of the same name.
    """
    namespace = _link(_PROC / "thread-self/ns/net")
    attached = re.compile(rf"^iff:\t{re.escape(link)}$", re.MULTILINE)
    for process in _processes():
        if _link(process / "ns/net") != namespace:
            continue
        if any(attached.search(_read(descriptor)) for descriptor in _entries(process / "fdinfo")):
            return _describe(process)
    return None


def find_containers() -> tuple[ContainerNamespace, ...]:
    """Return the network namespaces of the processes that are visible to this process, except its own
    namespace.
    """
    found: dict[str, Path] = {}
    for process in _processes():
        found.setdefault(_link(process / "ns/net"), process)
    for other in (_link(_PROC / "thread-self/ns/net"), ""):
        found.pop(other, None)
    return tuple(
        ContainerNamespace(
            pid=int(process.name),
            process=", ".join(
                filter(None, (container_name(cgroup := _read(process / "cgroup")), _describe(process)))
            ),
            container_id=container_in(cgroup),
            frozen=frozen_by(cgroup),
            addresses=frozenset(
                (
                    *addresses_in(_read(process / "net/fib_trie")),
                    *ipv6_addresses_in(_read(process / "net/if_inet6")),
                )
            ),
            routes=(
                *routes_in(_read(process / "net/route")),
                *ipv6_routes_in(_read(process / "net/ipv6_route")),
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
        read = decode(_read(directory / "config.v2.json"), type=_Configuration)
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
    for entry in islice(_entries(directory), _MOST_READ):
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
            if _read(state).strip() == "FROZEN":
                return str(state)
        elif not controllers and place:
            for events in (groups / place / "cgroup.events", groups / "unified" / place / "cgroup.events"):
                if "frozen 1" in _read(events).split("\n"):
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


def find_forwarders(run_dir: Path) -> list[int]:
    """Return the forwarders of a run directory, even unreachable ones, in this network namespace."""
    return [int(process.name) for process in _processes() if is_forwarder_of(run_dir, int(process.name))]


def find_original() -> int | None:
    """Return the process ID of an original flanneld in this network namespace, or None.

    The executable of the original is named flanneld, while pyflannel's executable is the Python interpreter.
    A user without rights can start a program of this name, but this program cannot change the network.
    """
    namespace = _link(_PROC / "thread-self/ns/net")
    for process in _processes():
        program = _link(process / "exe").removesuffix(" (deleted)")
        if not program.endswith("/flanneld") or _link(process / "ns/net") != namespace:
            continue
        if _may_change_network(process):
            return int(process.name)
    return None


def find_program(name: str) -> int | None:
    """Return the ID of the first process of this network namespace whose program has this name, or None."""
    namespace = _link(_PROC / "thread-self/ns/net")
    for process in _processes():
        if _read(process / "comm").rstrip("\n") == name and _link(process / "ns/net") == namespace:
            return int(process.name)
    return None


def name_and_state(pid: int) -> tuple[str, str]:
    """Return the name of the program of a process, and the letter of its state; "" if it does not exist.

    Source: proc_pid_stat(5). The name is in parentheses and may contain parentheses; then follows the state.
    """
    name, _, rest = _read(_PROC / str(pid) / "stat").rpartition(") ")
    return name.partition("(")[2], rest[:1]


STOPPED = frozenset({"T", "t"})
"""The states of a process that a signal or a debugger stopped."""


def find_link_setters(link: str, pids: Collection[int] = ()) -> tuple[LinkSetter, ...]:
    """Return the programs of this network namespace that set a link down: those in `pids` that still run, and
    those whose command line contains the name of the link and the word `down`.
    """
    namespace, found = _link(_PROC / "thread-self/ns/net"), list[LinkSetter]()
    for process in _processes():
        command = _read(process / "cmdline").replace("\0", " ").strip()
        pid, words = int(process.name), frozenset(_WORD.findall(command))
        is_meant = pid in pids or {link, "down"} <= words
        if is_meant and pid != os.getpid() and _link(process / "ns/net") == namespace:
            found.append(LinkSetter(pid=pid, process=_describe(process), command=command[:_SHOWN]))
    return tuple(found)


_WORD = re.compile(r"[^\s;&|()'\"]+")
"""A word of a command, also of a command in a script after the option -c."""

_SHOWN = 80
"""Maximum number of characters of a command line that are shown."""

_CAPABILITIES = re.compile(r"^CapEff:\t([\da-f]+)$", re.M | re.A)
_CAP_NET_ADMIN = 1 << 12


def _may_change_network(process: Path) -> bool:
    """Return whether a process of this network namespace has CAP_NET_ADMIN in this user namespace.

    The kernel escapes a newline in the name of the program, which precedes the capabilities in the file.
    """
    found = _CAPABILITIES.search(_read(process / "status"))
    is_able = found is not None and bool(int(found[1], 16) & _CAP_NET_ADMIN)
    return is_able and _link(process / "ns/user") == _link(_PROC / "thread-self/ns/user")


def is_forwarder(pid: int) -> bool:
    """Return whether a process is a forwarder, of any version and run directory."""
    words = _read(_PROC / str(pid) / "cmdline").split("\0")
    return FORWARDER in words or any(word.endswith(f"/{_PROGRAM}") for word in words)


def is_forwarder_of(run_dir: Path, pid: int) -> bool:
    """Return whether a process is a forwarder of a run directory, in this network namespace.

    A forwarder of the directory has the socket that was bound there, even after the file of the socket was
    deleted.
    """
    if not is_forwarder(pid):
        return False
    path = os.fsencode(run_dir.absolute() / SOCKET_NAME)
    links = map(_link, _entries(_PROC / str(pid) / "fd"))
    inodes = [int(link[len(_SOCKET) : -1]) for link in links if link.startswith(_SOCKET)]
    return any(_path_of_socket(inode) == path for inode in inodes)


_SOCKET = "socket:["
"""Start of the name that /proc/PID/fd shows for a socket, before its inode."""

_DATAGRAM = 1 << 16


def _path_of_socket(inode: int) -> bytes | None:
    """Return the path to which a Unix socket of this network namespace is bound; None if the socket has no
    path, or if the kernel does not answer.
    """
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    try:
        with socket.socket(socket.AF_NETLINK, kind, PROTOCOL) as kernel:
            kernel.send(pack(get_unix_socket(inode), 1))
            (answer,) = split(kernel.recv(_DATAGRAM))  # the kernel answers before `send` returns
        return None if answer.kind == ERROR else parse_path(answer.body)
    except (OSError, ValueError, WireError):
        return None


def _sockets(address: IPv4Address, port: int) -> set[str]:
    """Return the UDP sockets bound to the port on this address or on all addresses, with the names that
    /proc/PID/fd uses.
    """
    tables = [_read(_PROC / "thread-self/net" / name) for name in ("udp", "udp6")]
    return {f"{_SOCKET}{inode}]" for table in tables for inode in inodes_at(table, address, port)}


def inodes_at(table: str, address: IPv4Address, port: int) -> Iterator[str]:
    """Yield the inodes of the sockets in /proc/PID/net/udp that are bound to the port on this address or on
    all addresses.

    The second column (proc(5), /proc/net/tcp) is the local address in the host's byte order and the port,
    both in hexadecimal. The tenth column is the inode.
    """
    ours = address.packed[::-1].hex().upper()
    for line in filter(None, table.split("\n")[1:]):
        columns = line.split()
        host, _, number = columns[1].partition(":")
        if int(number, 16) == port and (host == ours or set(host) == {"0"}):
            yield columns[9]


def _processes() -> Iterator[Path]:
    return (entry for entry in _entries(_PROC) if entry.name.isdecimal())


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""  # the descriptor was closed, or access was denied


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []  # the process exited, or access was denied


def _read(path: Path) -> str:
    """Return a file of the kernel, in which only a newline ends a line; "" if the file is unreadable."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def _describe(process: Path) -> str:
    return f"{_read(process / 'comm').strip()}, pid {process.name}"
