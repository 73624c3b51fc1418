"""Starts the forwarder as a process that continues after the end of its parent."""

import asyncio
import errno
import logging
import os
import subprocess
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
    command = _command(forwarder, run_dir, python, version) + ["--take-over"] * is_successor
    unit = own_unit("flannel-forwarder", f"Forwarder of {forwarder.link}")
    try:
        await _start(unit + command, forwarder, run_dir, reaper)
    except NoUnitError as error:
        log.warning("Started the forwarder inside this service, so both stop together: %s", error.in_full)
        await _start(command, forwarder, run_dir, reaper)


async def _start(command: list[str], forwarder: Forwarder, run_dir: Path, reaper: Reaper) -> None:
    said = run_dir / LOG_NAME
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with said.open("ab") as stderr:
            written = stderr.tell()
            process = _spawn(command, stderr.fileno())
    except OSError as error:
        hint = f"Check that {run_dir} is writable and that {command[0]} is executable."
        raise TargetError.of("the forwarder cannot be started", error, hint=hint) from error
    try:
        reaper.watch(process)
    except OSError as error:
        process.kill()
        process.wait()
        hint = "Raise the limit of open files (LimitNOFILE=). Linux 5.3 or newer is required."
        raise TargetError.of("the forwarder cannot be watched", error, hint=hint) from error
    try:
        async with asyncio.timeout(_START_S):
            while not await _answers(process.pid, run_dir / SOCKET_NAME):
                if process.poll() is not None:
                    raise await _explain(forwarder, run_dir, process.returncode, _read_from(said, written))
                await asyncio.sleep(_LOOK_AGAIN_S)
    except TimeoutError:
        process.kill()
        raise TargetError(
            f"the forwarder did not respond within {_START_S:.0f} s of its start",
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


def _spawn(command: list[str], stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        cwd="/",
        env=child_environment(*_INHERITED),
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
    if was_refused(status, said):
        return NoUnitError(f"systemd refused a unit for the forwarder: {said.strip()}", hint=_NO_UNIT_HINT)
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
