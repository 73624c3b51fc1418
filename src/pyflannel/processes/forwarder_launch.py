"""Starts the forwarder as a process that outlives its parent."""

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
"""Its standard error, in the run directory."""

_START_S = 5.0
_LOOK_AGAIN_S = 0.01

_INHERITED = ("PYTHON*", "LD_LIBRARY_PATH", "LANG", "LC_*", "TZ")
"""Variables that the interpreter and its log need. No setting of the daemon is among them."""


_NO_UNIT_HINT = "Let flanneld.service reach /run/systemd/private, then restart it."


class PortInUseError(TargetError):
    """Another program has the UDP port."""


class PortFreedError(PortInUseError):
    """Another program had the UDP port, and has it no more: another try succeeds."""


class NoHandOverError(TargetError):
    """The running forwarder does not let another one take over; it goes on."""


class Reaper:
    """Takes the exit status of our children as soon as there is one, for they would stay zombies."""

    def __init__(self) -> None:
        self._children: dict[int, subprocess.Popen[bytes]] = {}

    def watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Take the status of this child when it ends.

        Raises:
            OSError: the kernel does not tell of its end.
        """
        descriptor = os.pidfd_open(process.pid)
        try:
            asyncio.get_running_loop().add_reader(descriptor, self._reap, descriptor)
        except OSError:
            os.close(descriptor)
            raise
        self._children[descriptor] = process

    def close(self) -> None:
        """Watch no more; a child that ends later is taken when the next one is started."""
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
    """Start the process, and return when it answers on its control socket. It is not attached yet.

    A successor takes over from the one that runs, which ends; when that fails the other goes on.

    Raises:
        PortInUseError: the message names who has the port.
        PortFreedError: who had the port ended meanwhile.
        NoHandOverError: a successor was not given what it asked for.
        TargetError: it did not start; the message says why.
    """
    command = _command(forwarder, run_dir, python, version) + ["--take-over"] * is_successor
    unit = own_unit("flannel-forwarder", f"Forwarder of {forwarder.link}")
    try:
        await _start(unit + command, forwarder, run_dir, reaper)
    except NoUnitError as error:
        log.warning("The forwarder will end whenever this service does: %s", error.in_full)
        await _start(command, forwarder, run_dir, reaper)


async def _start(command: list[str], forwarder: Forwarder, run_dir: Path, reaper: Reaper) -> None:
    said = run_dir / LOG_NAME
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with said.open("ab") as stderr:
            written = stderr.tell()
            process = _spawn(command, stderr.fileno())
    except OSError as error:
        hint = f"Check that {run_dir} can be written to and that {command[0]} can be run."
        raise TargetError.of("the forwarder cannot be started", error, hint=hint) from error
    try:
        reaper.watch(process)
    except OSError as error:
        process.kill()
        process.wait()
        hint = "Raise the limit of open files (LimitNOFILE=); Linux before 5.3 cannot do it."
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
            f"the forwarder did not answer within {_START_S:.0f} s of its start",
            hint=f"See {said}; the host may be overloaded.",
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
    # -P: a file named like a module of ours in the working directory is none.
    return [python, "-P", "-m", FORWARDER, *(f"{k}={v}" for k, v in settings.items())]


def _spawn(command: list[str], stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        cwd="/",
        env=child_environment(*_INHERITED),
        start_new_session=True,  # no signal of the daemon's terminal or group reaches it
    )


async def _answers(pid: int, path: Path) -> bool:
    """Return whether this very process listens at `path`: another forwarder may be there."""
    try:
        async with connected(path) as client:
            return client.pid == pid
    except TargetError:
        return False


async def _explain(forwarder: Forwarder, run_dir: Path, status: int, said: str) -> TargetError:
    """Return why the process ended, from its exit code, which is an errno, and its last words."""
    if was_refused(status, said):
        return NoUnitError(f"systemd gave it no unit of its own: {said.strip()}", hint=_NO_UNIT_HINT)
    if status == errno.EADDRINUSE:
        holder = await in_thread(find_port_holder, forwarder.listen_address, forwarder.port)
        port = f"UDP port {forwarder.port} of {forwarder.listen_address}"
        if holder is None:
            return PortFreedError(f"{port} was in use a moment ago", hint="It is tried again.")
        return PortInUseError(
            f"{port} is in use by {holder}",
            hint="Stop that program, or set another Backend.Port in the network config, for all hosts.",
        )
    if status == errno.EISDIR:
        return TargetError(
            f"a directory stands at {run_dir / SOCKET_NAME}, where the forwarder's socket should be",
            hint="Move it away.",
            is_permanent=True,
        )
    if status == errno.EADDRNOTAVAIL:
        return TargetError(
            f"the host has no address {forwarder.listen_address} to listen on",
            hint="Give the interface its address back, or restart the daemon to choose the interface anew.",
        )
    if status == errno.EOPNOTSUPP:
        return NoHandOverError(said.strip(), hint="It is stopped and started anew.")
    last_line = said.strip().rpartition("\n")[2]
    return TargetError(
        f"the forwarder ended with status {status}: {last_line or 'it said nothing'}",
        hint="Its log in the run directory has the rest.",
    )


def _read_from(log: Path, offset: int) -> str:
    try:
        return log.read_bytes()[offset:].decode(errors="replace")
    except OSError:
        return ""
