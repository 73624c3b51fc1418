"""Processes found in /proc: the holders of a port, a device or a directory; and how one is ended."""

import os
import re
import select
import signal
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

from pyflannel.ports import in_thread

_GONE_S = 2.0


async def end_process(pid: int) -> None:
    """Kill a process and return when it is gone, and with it what it held; so it is when there was none."""
    await in_thread(_end, pid)


def _end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        # One that sleeps in the kernel may take longer; whoever needs what it holds is then refused it.
        select.select([descriptor], [], [], _GONE_S)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)


_PROC = Path("/proc")

FORWARDER = "pyflannel.programs.forwarder"
"""The module that a forwarder's command line names."""


def find_port_holder(address: IPv4Address, port: int) -> str | None:
    """Return the program that keeps us from binding this UDP address, as `NAME, pid N`.

    Or `another program`, when it is not to be seen from here, and None when nobody keeps us any more.
    """
    targets = _sockets(address, port)
    for process in _processes():
        if any(_link(descriptor) in targets for descriptor in _entries(process / "fd")):
            return _describe(process)
    return "another program" if targets & _sockets(address, port) else None


def find_tun_holder(link: str) -> str | None:
    """Return the program that is attached to a TUN device, as `NAME, pid N`, or None.

    Only in our network namespace: devices of one name may be in many.
    """
    namespace = _link(_PROC / "thread-self/ns/net")
    attached = re.compile(rf"^iff:\t{re.escape(link)}$", re.MULTILINE)
    for process in _processes():
        if _link(process / "ns/net") != namespace:
            continue
        if any(attached.search(_read(descriptor)) for descriptor in _entries(process / "fdinfo")):
            return _describe(process)
    return None


def find_forwarders(run_dir: Path) -> list[int]:
    """Return the forwarders of a run directory, reachable or not, in our network namespace."""
    namespace = _link(_PROC / "thread-self/ns/net")
    ours = {FORWARDER, f"--run-dir={run_dir.absolute()}"}
    return [
        int(process.name)
        for process in _processes()
        if ours <= set(_read(process / "cmdline").split("\0")) and _link(process / "ns/net") == namespace
    ]


def find_original() -> int | None:
    """Return an original flanneld in our network namespace, or None.

    It is a program of its own, where ours is one of the interpreter's.
    """
    namespace = _link(_PROC / "thread-self/ns/net")
    for process in _processes():
        program = _link(process / "exe").removesuffix(" (deleted)")
        if program.endswith("/flanneld") and _link(process / "ns/net") == namespace:
            return int(process.name)
    return None


def is_forwarder(pid: int) -> bool:
    """Return whether a process is a forwarder, of whatever version and run directory."""
    return FORWARDER in _read(_PROC / str(pid) / "cmdline").split("\0")


def _sockets(address: IPv4Address, port: int) -> set[str]:
    """Return the UDP sockets bound to the port on this address or on all, as descriptors name them."""
    return {f"socket:[{inode}]" for table in ("udp", "udp6") for inode in _inodes(table, address, port)}


def _inodes(table: str, address: IPv4Address, port: int) -> Iterator[str]:
    """Yield the inodes of the sockets bound to the port on this address or on all.

    Of the columns (proc(5), /proc/net/tcp) the second is the local address in the host's byte order and the
    port, both in hexadecimal, and the tenth is the inode.
    """
    ours = address.packed[::-1].hex().upper()
    for line in _read(_PROC / "thread-self/net" / table).splitlines()[1:]:
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
        return ""  # closed meanwhile, or not ours to look into


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []  # the process ended, or is not ours to look into


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _describe(process: Path) -> str:
    return f"{_read(process / 'comm').strip()}, pid {process.name}"
