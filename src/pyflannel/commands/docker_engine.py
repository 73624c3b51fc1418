"""The Docker engine of this host, for the checks of doctor."""

import asyncio
import contextlib
from pathlib import Path

from pyflannel.errors import WireError
from pyflannel.http.sockets import request
from pyflannel.plan.doctor.observed import DockerEngine
from pyflannel.ports import in_thread
from pyflannel.processes.containers import ended_containers
from pyflannel.processes.found import STOPPED, find_program, name_and_state

_PROGRAM = "dockerd"

_DEADLINE_S = 1.5
"""Deadline in seconds for the answer to a ping. dockerd answers it without a lock, within milliseconds."""


async def docker_engine(run_dir: Path = Path("/run"), deadline_s: float = _DEADLINE_S) -> DockerEngine | None:
    """Return the engine whose process ID is in `docker.pid` of the directory, or otherwise the first engine
    of this network namespace; None if no engine runs.
    """
    pid = _noted(run_dir) or await in_thread(find_program, _PROGRAM)
    if pid is None:
        return None
    if name_and_state(pid)[1] in STOPPED:
        return DockerEngine(pid=pid, is_stopped=True)
    hangs_s, ended = await asyncio.gather(
        _hangs_s(run_dir / "docker.sock", deadline_s), in_thread(ended_containers)
    )
    return DockerEngine(pid=pid, hangs_s=hangs_s, ended=ended)


async def _hangs_s(socket: Path, deadline_s: float) -> float | None:
    """Return the seconds in which a running engine did not answer a ping; None if it answered.

    The socket is used only while dockerd runs, because systemd may start dockerd for a connection.
    """
    # OSError: the engine has another socket, or this user may not use it.
    with contextlib.suppress(WireError, OSError):
        try:
            await request(socket, "GET", "/_ping", deadline_s=deadline_s)
        except TimeoutError:
            return deadline_s
    return None


def _noted(run_dir: Path) -> int | None:
    """Return the process ID in the file of an engine; None if the file is missing, or remains of an engine
    that was killed.
    """
    try:
        pid = int((run_dir / "docker.pid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return pid if name_and_state(pid)[0] == _PROGRAM else None
