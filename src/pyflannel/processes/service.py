"""Which unit of systemd a process is the main process of, and the end of it."""

import asyncio
import re
from pathlib import Path

from pyflannel.errors import TargetError

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
        "systemctl", "stop", unit, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
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
