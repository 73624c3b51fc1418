"""The Docker engine of this host, for the checks of doctor."""

import contextlib
from pathlib import Path

from pyflannel.errors import WireError
from pyflannel.http.sockets import request
from pyflannel.plan.doctor.observed import DockerEngine

_PROGRAM = "dockerd"

_DEADLINE_S = 1.5
"""Deadline in seconds for the answer to a ping. dockerd answers it without a lock, within milliseconds."""


async def docker_engine(run_dir: Path = Path("/run"), deadline_s: float = _DEADLINE_S) -> DockerEngine | None:
    """Return the engine whose process ID is in `docker.pid` of the directory; None if no engine runs.

    The socket is used only while dockerd runs, because systemd may start dockerd for a connection.
    """
    try:
        pid = int((run_dir / "docker.pid").read_text(encoding="ascii"))
        # proc_pid_stat(5): the name is in parentheses and may contain parentheses, then follows the state.
        name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")
    except (OSError, ValueError):
        return None
    if name.partition("(")[2] != _PROGRAM:
        return None  # a remaining file of an engine that was killed
    if rest[:1] in ("T", "t"):
        return DockerEngine(pid=pid, is_stopped=True)
    try:
        with contextlib.suppress(WireError):
            await request(run_dir / "docker.sock", "GET", "/_ping", deadline_s=deadline_s)
    except TimeoutError:
        return DockerEngine(pid=pid, hangs_s=deadline_s)
    except OSError:
        return DockerEngine(pid=pid)  # the engine has another socket, or this user may not use it
    return DockerEngine(pid=pid)
