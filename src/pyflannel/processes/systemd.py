"""systemd: units of this host, the unit of a process, and a scope for the forwarder."""

import asyncio
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from pyflannel.errors import TargetError
from pyflannel.ports import child_environment

_CGROUP = re.compile(r"^(?:\d+:name=systemd|0:):.*/(?P<unit>[^/]+\.service)$", re.MULTILINE)
"""The hierarchy of systemd in cgroup version 1, or the only one in version 2, cgroups(7)."""


_BOOTED = "run/systemd/system"
"""Exists if systemd is the init system (sd_booted(3))."""

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

    A mere descendant of a service, such as a shell, has another process ID in its SYSTEMD_EXEC_PID.
    """
    process = Path(f"/proc/{pid}")
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
        found = _CGROUP.search((process / "cgroup").read_text())
    except OSError:
        return None
    is_main = f"SYSTEMD_EXEC_PID={pid}".encode() in variables
    return found["unit"] if found and is_main else None


async def stop_service(unit: str, deadline_s: float) -> None:
    """Stop a service. systemd would restart it after a mere signal.

    Raises:
        TargetError: systemd did not stop it; the message contains the reason.
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


_SYSTEMD_RUN = "systemd-run"


class NoUnitError(TargetError):
    """systemd refused to create a unit for the process, which did not start."""


def own_unit(name: str, description: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the prefix that starts a command in a scope of its own; empty outside of a service.

    `systemd-run --scope` moves itself to the scope and then executes the command. So the command stays a
    child of this process and keeps descriptors, exit status and sandbox. The name of the scope is unique,
    because a forwarder and its successor run at the same time during a hand-over.

    Source: SYSTEMD_EXEC_PID of systemd.exec(5), since version 248.
    """
    if environ.get("SYSTEMD_EXEC_PID") != str(os.getpid()):
        return []
    if not any(os.access(os.path.join(path, _SYSTEMD_RUN), os.X_OK) for path in os.get_exec_path()):
        return []
    return [
        _SYSTEMD_RUN,
        "--scope",
        "--quiet",
        "--collect",  # systemd forgets a failed scope without a manual reset
        f"--unit={name}-{secrets.token_hex(4)}.scope",
        f"--description={description}",
        "--property=Before=docker.service",  # at shutdown, containers end before the forwarder
        "--",
    ]


def was_refused(status: int, said: str) -> bool:
    """Return whether systemd-run itself failed with this status and output, not the started command."""
    return status == 1 and said.startswith("Failed to ")
