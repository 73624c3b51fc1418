"""systemd: the unit of a process, and a unit of its own for the forwarder."""

import asyncio
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from pyflannel.errors import TargetError
from pyflannel.ports import child_environment

_CGROUP = re.compile(r"^(?:\d+:name=systemd|0:):.*/(?P<unit>[^/]+\.service)$", re.MULTILINE)
"""systemd's own hierarchy of version 1, or the only one of version 2 (cgroups(7), /proc/PID/cgroup)."""


def service_of(pid: int) -> str | None:
    """Return the service whose main process `pid` is, such as `flanneld.service`; None when it is none's.

    What merely descends from a service, as a shell does, has the number of another process in its
    SYSTEMD_EXEC_PID.
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
    """Stop a service; by a signal it would be started again.

    Raises:
        TargetError: systemd did not stop it; the message says why.
        TimeoutError: nor say anything in time.
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
            f"systemd does not stop {unit}: {complaint.decode(errors='replace').strip()}",
            hint=f"See systemctl status {unit}.",
        )


_SYSTEMD_RUN = "systemd-run"


class NoUnitError(TargetError):
    """systemd gave the process no unit, and it did not run."""


def own_unit(name: str, description: str, environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the words before a command by which it runs in a scope of its own: none if we are no service.

    `systemd-run --scope` moves itself and then becomes the command, so it stays our child, with its
    descriptors, its exit status and our sandbox. The name is made unique: of two forwarders, one hands over
    to the other.

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
        "--collect",  # a scope that failed leaves nothing to be reset by hand
        f"--unit={name}-{secrets.token_hex(4)}.scope",
        f"--description={description}",
        "--property=Before=docker.service",  # at shutdown, containers end before their packets do
        "--",
    ]


def was_refused(status: int, said: str) -> bool:
    """Return whether it was systemd-run that ended with this status and words, not what it was to start."""
    return status == 1 and said.startswith("Failed to ")
