"""Finds the processes in /proc that use a port, a device or a directory, and stops a process."""

import os
import re
import select
import signal
import socket
from collections.abc import Callable, Collection, Iterator
from ipaddress import IPv4Address
from pathlib import Path

from pyflannel.errors import WireError
from pyflannel.plan.doctor.observed import LinkSetter
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


PROC = Path("/proc")

FORWARDER = "pyflannel.programs.forwarder"
"""The module in the command line of a forwarder that the daemon started."""

_PROGRAM = "flannel-forwarder"
"""The name of the program in the unit."""


def find_port_holder(address: IPv4Address, port: int) -> str | None:
    """Return the program that uses this UDP address, as `NAME, pid N`, or None.

    The result is `another program` if the program is not visible from this PID namespace.
    """
    targets = _sockets(address, port)
    for process in processes():
        if any(link_target(descriptor) in targets for descriptor in entries_of(process / "fd")):
            return describe(process)
    return "another program" if targets & _sockets(address, port) else None


def find_tun_holder(link: str) -> str | None:
    """Return the program that is attached to a TUN device, as `NAME, pid N`, or None.

    Only this network namespace is searched, because other namespaces may have devices of the same name.
    """
    namespace = link_target(PROC / "thread-self/ns/net")
    attached = re.compile(rf"^iff:\t{re.escape(link)}$", re.MULTILINE)
    for process in processes():
        if link_target(process / "ns/net") != namespace:
            continue
        if any(attached.search(read_proc(descriptor)) for descriptor in entries_of(process / "fdinfo")):
            return describe(process)
    return None


def find_forwarders(run_dir: Path) -> list[int]:
    """Return the forwarders of a run directory, even unreachable ones, in this network namespace."""
    return [int(process.name) for process in processes() if is_forwarder_of(run_dir, int(process.name))]


def find_original() -> int | None:
    """Return the process ID of an original flanneld in this network namespace, or None.

    The executable of the original is named flanneld, while pyflannel's executable is the Python interpreter.
    A user without rights can start a program of this name, but this program cannot change the network.
    """
    namespace = link_target(PROC / "thread-self/ns/net")
    for process in processes():
        program = link_target(process / "exe").removesuffix(" (deleted)")
        if not program.endswith("/flanneld") or link_target(process / "ns/net") != namespace:
            continue
        if _may_change_network(process):
            return int(process.name)
    return None


def find_program(name: str) -> int | None:
    """Return the ID of the first process of this network namespace whose program has this name, or None."""
    namespace = link_target(PROC / "thread-self/ns/net")
    for process in processes():
        if read_proc(process / "comm").rstrip("\n") == name and link_target(process / "ns/net") == namespace:
            return int(process.name)
    return None


def name_and_state(pid: int) -> tuple[str, str]:
    """Return the name of the program of a process, and the letter of its state; "" if it does not exist.

    Source: proc_pid_stat(5). The name is in parentheses and may contain parentheses; then follows the state.
    """
    name, _, rest = read_proc(PROC / str(pid) / "stat").rpartition(") ")
    return name.partition("(")[2], rest[:1]


STOPPED = frozenset({"T", "t"})
"""The states of a process that a signal or a debugger stopped."""


def find_link_setters(link: str, pids: Collection[int] = ()) -> tuple[LinkSetter, ...]:
    """Return the programs of this network namespace that set a link down: those in `pids` that still run, and
    those whose command line contains the name of the link and the word `down`.
    """
    namespace, found = link_target(PROC / "thread-self/ns/net"), list[LinkSetter]()
    for process in processes():
        command = read_proc(process / "cmdline").replace("\0", " ").strip()
        pid, words = int(process.name), frozenset(_WORD.findall(command))
        is_meant = pid in pids or {link, "down"} <= words
        if is_meant and pid != os.getpid() and link_target(process / "ns/net") == namespace:
            found.append(LinkSetter(pid=pid, process=describe(process), command=command[:_SHOWN]))
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
    found = _CAPABILITIES.search(read_proc(process / "status"))
    is_able = found is not None and bool(int(found[1], 16) & _CAP_NET_ADMIN)
    return is_able and link_target(process / "ns/user") == link_target(PROC / "thread-self/ns/user")


def is_forwarder(pid: int) -> bool:
    """Return whether a process is a forwarder, of any version and run directory."""
    words = read_proc(PROC / str(pid) / "cmdline").split("\0")
    return FORWARDER in words or any(word.endswith(f"/{_PROGRAM}") for word in words)


def is_forwarder_of(run_dir: Path, pid: int) -> bool:
    """Return whether a process is a forwarder of a run directory, in this network namespace.

    A forwarder of the directory has the socket that was bound there, even after the file of the socket was
    deleted.
    """
    if not is_forwarder(pid):
        return False
    path = os.fsencode(run_dir.absolute() / SOCKET_NAME)
    links = map(link_target, entries_of(PROC / str(pid) / "fd"))
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
    tables = [read_proc(PROC / "thread-self/net" / name) for name in ("udp", "udp6")]
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


def processes() -> Iterator[Path]:
    """Return the directories of the visible processes in /proc."""
    return (entry for entry in entries_of(PROC) if entry.name.isdecimal())


def link_target(path: Path) -> str:
    """Return the target of a symbolic link; "" if the link is unreadable."""
    try:
        return str(path.readlink())
    except OSError:
        return ""  # the descriptor was closed, or access was denied


def entries_of(directory: Path) -> list[Path]:
    """Return the entries of a directory; empty if the directory is unreadable."""
    try:
        return list(directory.iterdir())
    except OSError:
        return []  # the process exited, or access was denied


def read_proc(path: Path) -> str:
    """Return a file of the kernel, in which only a newline ends a line; "" if the file is unreadable."""
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""


def describe(process: Path) -> str:
    """Return a process for people, from its directory in /proc: `NAME, pid N`."""
    return f"{read_proc(process / 'comm').strip()}, pid {process.name}"
