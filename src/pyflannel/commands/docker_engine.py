"""The Docker engine of this host, for the checks of doctor."""

import contextlib
from pathlib import Path

from pyflannel.errors import WireError
from pyflannel.http.sockets import request
from pyflannel.plan.doctor.observed import DockerEngine
from pyflannel.ports import in_thread

_PROGRAM = "dockerd"

_DEADLINE_S = 1.5
"""Deadline in seconds for the answer to a ping. dockerd answers it without a lock, within milliseconds."""


async def docker_engine(run_dir: Path = Path("/run"), deadline_s: float = _DEADLINE_S) -> DockerEngine | None:
    """Return the engine whose process ID is in `docker.pid` of the directory, or otherwise the first engine
    of this network namespace; None if no engine runs.

    The socket is used only while dockerd runs, because systemd may start dockerd for a connection.
    """
    pid, state = _noted(run_dir) or await in_thread(_running) or (0, "")
    if not pid:
        return None
    if state in ("T", "t"):
        return DockerEngine(pid=pid, is_stopped=True)
    try:
        with contextlib.suppress(WireError):
            await request(run_dir / "docker.sock", "GET", "/_ping", deadline_s=deadline_s)
    except TimeoutError:
        return DockerEngine(pid=pid, hangs_s=deadline_s)
    except OSError:
        return DockerEngine(pid=pid)  # the engine has another socket, or this user may not use it
    return DockerEngine(pid=pid)


def _noted(run_dir: Path) -> tuple[int, str] | None:
    """Return the process ID in the file of an engine and the state of this process; None if the file is
    missing, or remains of an engine that was killed.
    """
    try:
        pid = int((run_dir / "docker.pid").read_text(encoding="ascii"))
        name, state = _name_and_state(pid)
    except (OSError, ValueError):
        return None
    return (pid, state) if name == _PROGRAM else None


def _running() -> tuple[int, str] | None:
    """Return the process ID and the state of the first engine in this network namespace, or None."""
    own = Path("/proc/thread-self/ns/net").readlink()
    for process in sorted(Path("/proc").glob("[0-9]*"), key=lambda one: int(one.name)):
        with contextlib.suppress(OSError):  # the process ended, or belongs to another user
            name, state = _name_and_state(int(process.name))
            if name == _PROGRAM and (process / "ns/net").readlink() == own:
                return int(process.name), state
    return None


def _name_and_state(pid: int) -> tuple[str, str]:
    """Return the name of a process and the letter of its state.

    Source: proc_pid_stat(5). The name is in parentheses and may contain parentheses; then follows the state.
    """
    name, _, rest = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")
    return name.partition("(")[2], rest[:1]
