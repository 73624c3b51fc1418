"""Starts a process that continues after the end of its parent, the forwarder among them."""

import asyncio
import errno
import logging
import os
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from pyflannel.errors import TargetError
from pyflannel.model.forwarder import Forwarder
from pyflannel.ports import child_environment, in_thread
from pyflannel.processes.forwarder_client import connected
from pyflannel.processes.found import FORWARDER, find_port_holder
from pyflannel.processes.systemd import NoUnitError, own_unit, was_refused
from pyflannel.wire.forwarder_control import SOCKET_NAME

log = logging.getLogger(__name__)

LOG_NAME = "forwarder.log"
"""Name of the file in the run directory that receives its standard error."""

_START_S = 5.0
_LOOK_AGAIN_S = 0.01

_INHERITED = ("PYTHON*", "LD_LIBRARY_PATH", "LANG", "LC_*", "TZ")
"""Variables that the interpreter and its log need. They contain no setting of the daemon."""


_NO_UNIT_HINT = "Give flanneld.service access to /run/systemd/private, then restart it."


class PortInUseError(TargetError):
    """Another program uses the UDP port."""


class PortFreedError(PortInUseError):
    """Another program used the UDP port and has released it. A retry succeeds."""


class NoHandOverError(TargetError):
    """The running forwarder refuses a hand-over and continues."""


class Reaper:
    """Reads the exit status of child processes when they end, so that they do not remain zombies."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Read the status of this child when it ends.

        Raises:
            OSError: the kernel cannot announce its end.
        """
        descriptor = os.pidfd_open(process.pid)
        try:
            asyncio.get_running_loop().add_reader(descriptor, self._reap, descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._children[descriptor] = process

    def close(self) -> None:
        """Stop watching. `subprocess` reads the status of a later end when it starts the next child."""
        for descriptor in list(self._children):
            self._forget(descriptor)

    def _reap(self, descriptor: int) -> None:
        self._forget(descriptor).wait()

    def _forget(self, descriptor: int) -> "subprocess.Popen[bytes]":
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        return self._children.pop(descriptor)


async def start_forwarder(
    forwarder: Forwarder,
    run_dir: Path,
    python: str,
    version: str,
    reaper: Reaper,
    *,
    is_successor: bool = False,
) -> None:
    """Start the process, and return when it responds on its control socket. It is not attached yet.

    A successor takes over from the running forwarder, which then ends. If this fails, the running one
    continues.

    Raises:
        PortInUseError: another program uses the port; the message names it.
        PortFreedError: another program used the port and has released it.
        NoHandOverError: the running forwarder refused the hand-over.
        TargetError: it did not start; the message contains the cause.
    """
    launch = Launch(
        name="the forwarder",
        unit=("flannel-forwarder", f"Forwarder of {forwarder.link}"),
        command=_command(forwarder, run_dir, python, version) + ["--take-over"] * is_successor,
        environment=child_environment(*_INHERITED),
        log=run_dir / LOG_NAME,
        answers=lambda pid: _answers(pid, run_dir / SOCKET_NAME),
        explain=lambda status, said: _explain(forwarder, run_dir, status, said),
    )
    await start_detached(launch, reaper)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A process to start.

    Attributes:
        name: in messages, `the forwarder`.
        unit: name and description of its unit, under systemd.
        log: file that receives its standard error.
        answers: whether the process with this ID serves its socket.
        explain: the error of a process that ended, from its exit status and its output.
    """

    name: str
    unit: tuple[str, str]
    command: list[str]
    environment: dict[str, str]
    log: Path
    answers: Callable[[int], Awaitable[bool]]
    explain: Callable[[int, str], Awaitable[TargetError]]


async def start_detached(launch: Launch, reaper: Reaper) -> None:
    """Start a process, and return when it answers.

    Raises:
        TargetError: it did not start, or its error as `launch` explains it.
    """
    unit = own_unit(*launch.unit)
    try:
        await _start([*unit, *launch.command], launch, reaper)
    except NoUnitError as error:
        log.warning("Started %s inside this service, so both stop together: %s", launch.name, error.in_full)
        await _start(launch.command, launch, reaper)


async def _start(command: list[str], launch: Launch, reaper: Reaper) -> None:
    said, run_dir = launch.log, launch.log.parent
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with said.open("ab") as stderr:
            written = stderr.tell()
            process = _spawn(command, launch.environment, stderr.fileno())
    except OSError as error:
        hint = f"Check that {run_dir} is writable and that {command[0]} is executable."
        raise TargetError.of(f"{launch.name} cannot be started", error, hint=hint) from error
    try:
        reaper.watch(process)
    except OSError as error:
        process.kill()
        process.wait()
        hint = "Raise the limit of open files (LimitNOFILE=). Linux 5.3 or newer is required."
        raise TargetError.of(f"{launch.name} cannot be watched", error, hint=hint) from error
    try:
        async with asyncio.timeout(_START_S):
            while not await launch.answers(process.pid):
                if process.poll() is not None:
                    output = _read_from(said, written)
                    if was_refused(process.returncode, output):
                        raise NoUnitError(
                            f"systemd refused a unit for {launch.name}: {output.strip()}", hint=_NO_UNIT_HINT
                        )
                    raise await launch.explain(process.returncode, output)
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        process.kill()
        raise TargetError(
            f"{launch.name} did not respond within {_START_S:.0f} s of its start",
            hint=f"Read {said}. The host may be overloaded.",
        ) from None


def _command(forwarder: Forwarder, run_dir: Path, python: str, version: str) -> list[str]:
    settings = {
        "--run-dir": run_dir.absolute(),
        "--link": forwarder.link,
        "--tunnel-address": forwarder.tunnel_address,
        "--subnet": forwarder.subnet,
        "--listen-address": forwarder.listen_address,
        "--port": forwarder.port,
        "--mtu": forwarder.mtu,
        "--version": version,
    }
    # -P: the working directory is not searched for modules.
    return [python, "-P", "-m", FORWARDER, *(f"{k}={v}" for k, v in settings.items())]


def _spawn(command: list[str], environment: dict[str, str], stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        cwd="/",
        env=environment,
        start_new_session=True,  # signals to the terminal or process group of the daemon do not reach it
    )


async def _answers(pid: int, path: Path) -> bool:
    """Return whether this process listens at `path`, and not another forwarder."""
    try:
        async with connected(path) as client:
            return client.pid == pid
    except TargetError:
        return False


async def _explain(forwarder: Forwarder, run_dir: Path, status: int, said: str) -> TargetError:
    """Return the cause of the end of the process, from its exit code (an errno) and its output."""
    if status == errno.EADDRINUSE:
        holder = await in_thread(find_port_holder, forwarder.listen_address, forwarder.port)
        port = f"UDP port {forwarder.port} of {forwarder.listen_address}"
        if holder is None:
            return PortFreedError(f"{port} was in use until now", hint="flanneld retries.")
        return PortInUseError(
            f"{port} is in use by {holder}",
            hint="Stop that program, or set another Backend.Port in the network config, for all hosts.",
        )
    if status == errno.EISDIR:
        return TargetError(
            f"{run_dir / SOCKET_NAME} is a directory, but must be the socket of the forwarder",
            hint="Remove the directory.",
            is_permanent=True,
        )
    if status == errno.EADDRNOTAVAIL:
        return TargetError(
            f"the host has no address {forwarder.listen_address} to listen on",
            hint="Add the address to the interface again, or restart flanneld to choose another interface.",
        )
    if status == errno.EOPNOTSUPP:
        return NoHandOverError(said.strip(), hint="flanneld restarts the forwarder.")
    last_line = said.strip().rpartition("\n")[2]
    return TargetError(
        f"the forwarder ended with status {status}: {last_line or 'no output'}",
        hint=f"Read {run_dir / LOG_NAME}.",
    )


def _read_from(log: Path, offset: int) -> str:
    try:
        return log.read_bytes()[offset:].decode(errors="replace")
    except OSError:
        return ""
