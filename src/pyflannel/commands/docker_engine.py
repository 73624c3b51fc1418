"""The Docker engine of this host, for the checks of doctor."""

import asyncio
import contextlib
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from msgspec import DecodeError, Struct, field
from msgspec.json import decode
from msgspec.structs import replace

from pyflannel.errors import WireError
from pyflannel.http.sockets import request
from pyflannel.plan.doctor.observed import DockerEngine, EndedContainer
from pyflannel.ports import in_thread
from pyflannel.processes.found import CONTAINER_NAME

_PROGRAM = "dockerd"

_DEADLINE_S = 1.5
"""Deadline in seconds for the answer to a ping. dockerd answers it without a lock, within milliseconds."""


async def docker_engine(run_dir: Path = Path("/run"), deadline_s: float = _DEADLINE_S) -> DockerEngine | None:
    """Return the engine whose process ID is in `docker.pid` of the directory, or otherwise the first engine
    of this network namespace; None if no engine runs.
    """
    pid, state = _noted(run_dir) or await in_thread(_running) or (0, "")
    if not pid:
        return None
    if state in ("T", "t"):
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


_CONTAINERS = Path("/var/lib/docker/containers")
"""The containers of an engine with the default directory."""

_RECENT_S = 3600.0
_MOST_READ = 512
_USUAL_CODES = frozenset({0, 130, 143})
"""The exit codes of programs that end themselves, or that SIGINT or SIGTERM ends."""


class _State(Struct, frozen=True, rename="pascal"):
    running: bool = False
    exit_code: int = 0
    finished_at: datetime | None = None
    lacked_memory: bool = field(name="OOMKilled", default=False)


class _Configuration(Struct, frozen=True, rename="pascal"):
    name: str = ""
    state: _State = _State()


def ended_containers(
    directory: Path = _CONTAINERS, now: datetime | None = None
) -> tuple[EndedContainer, ...]:
    """Return the containers that ended with an error during the last hour, the latest first.

    Docker writes the state of each container into the file config.v2.json.
    """
    found, now = list[EndedContainer](), now or datetime.now(UTC)
    for entry in islice(directory.glob("*/config.v2.json"), _MOST_READ):
        with contextlib.suppress(OSError, DecodeError):
            read = decode(entry.read_bytes(), type=_Configuration)
            name, state = CONTAINER_NAME.fullmatch(read.name), read.state
            if name is None or state.running or state.finished_at is None or state.exit_code in _USUAL_CODES:
                continue
            ago_s = (now - state.finished_at).total_seconds()
            if 0 <= ago_s <= _RECENT_S:
                one = EndedContainer(name=name[1], exit_code=state.exit_code, ago_s=ago_s)
                found.append(replace(one, lacked_memory=state.lacked_memory))
    return tuple(sorted(found, key=lambda one: one.ago_s))


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
