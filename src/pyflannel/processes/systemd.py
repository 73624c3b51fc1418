"""systemd: units of this host, the unit of a process, and starting processes in their own units."""

import asyncio
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from pyflannel.errors import TargetError, in_words
from pyflannel.ports import child_environment

_CGROUP = re.compile(rb"^(?:\d+:name=systemd|0:):.*/([^/\n]+\.service)$", re.MULTILINE)
"""The hierarchy of systemd in cgroup version 1, or the only hierarchy in version 2, cgroups(7)."""

_BOOTED = "run/systemd/system"
"""This directory exists if systemd is the init system (sd_booted(3))."""

_UNIT_DIRECTORIES = (
    "etc/systemd/system",
    _BOOTED,
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
)
"""Directories of system units, systemd.unit(5)."""


def has_unit(name: str, root: Path = Path("/")) -> bool:
    """Return whether systemd runs on this host and has a unit file of this name."""
    return (root / _BOOTED).is_dir() and any((root / each / name).exists() for each in _UNIT_DIRECTORIES)


def service_of(pid: int) -> str | None:
    """Return the service whose main process is `pid`, such as `flanneld.service`, or None.

    A process that is only a descendant of a service, such as a shell, has another process ID in its
    SYSTEMD_EXEC_PID.
    """
    process = Path(f"/proc/{pid}")
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
        unit = service_in((process / "cgroup").read_bytes())
    except OSError:
        return None
    is_main = f"SYSTEMD_EXEC_PID={pid}".encode() in variables
    return unit if is_main else None


def service_in(cgroups: bytes) -> str | None:
    """Return the service in /proc/PID/cgroup, or None.

    A user may choose the name of a cgroup. The kernel refuses a newline in this name, but no other character
    that Python treats as the end of a line.
    """
    found = _CGROUP.search(cgroups)
    return os.fsdecode(found[1]) if found else None


async def stop_service(unit: str, deadline_s: float) -> None:
    """Stop a service. The function asks systemd to stop the service, because systemd would restart the
    service after a signal.

    Raises:
        TargetError: systemd did not stop the service; the message contains the reason.
        TimeoutError: systemd did not respond in time.
    """
    systemctl = await asyncio.create_subprocess_exec(
        "systemctl",
        "stop",
        unit,
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=child_environment("LC_*"),
    )
    try:
        async with asyncio.timeout(deadline_s):
            _, complaint = await systemctl.communicate()
    finally:
        if systemctl.returncode is None:
            systemctl.kill()
            await systemctl.wait()
    if systemctl.returncode:
        raise TargetError(
            f"systemd could not stop {unit}: {complaint.decode(errors='replace').strip()}",
            hint=f"Run systemctl status {unit}.",
        )


FORWARDER_TEMPLATE, WIREGUARD_TEMPLATE = "flannel-forwarder", "flannel-wireguard"
"""Templates of units. With each connection to its socket, systemd starts a process in its own unit."""

_SOCKETS = Path("/run")


class NoUnitError(TargetError):
    """systemd started no unit for a process."""


def is_service(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process is the main process of a service.

    Source: SYSTEMD_EXEC_PID of systemd.exec(5), since version 248.
    """
    return environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())


def connect_to_new(template: str, sockets: Path = _SOCKETS) -> socket.socket:
    """Return a connection to a process that systemd starts now; the connection is the standard input of the
    process.

    Raises:
        NoUnitError: systemd does not listen, or this process has no access to the socket.
    """
    path = sockets / f"{template}.sock"
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    connection.setblocking(False)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise NoUnitError(
            f"systemd starts no process at {path}: {in_words(error)}",
            hint=f"Install {template}.socket and {template}@.service, then restart flanneld.",
        ) from error
    return connection
