"""The process of the daemon: finding it by its lock, and stopping it."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from pyflannel.assembly.directories import Places
from pyflannel.errors import BusyError, TargetError, UsageError
from pyflannel.http.sockets import server_pid
from pyflannel.processes.systemd import service_of, stop_service

STOP_S = 20.0
"""Deadline for the end of a daemon; longer than its own deadlines."""


def running_daemon(lock: Path) -> int | None:
    """Return the process ID of the daemon that holds `lock`; None without a daemon.

    The file contains `1234 flanneld`, possibly from a killed daemon. The process with that ID is the daemon
    only if it has the file open.
    """
    try:
        number, program = lock.read_text().split(maxsplit=1)
        if program.strip() != "flanneld":
            return None  # another cleanup
        pid = int(number)
        descriptors = list(Path(f"/proc/{pid}/fd").iterdir())
    except (OSError, ValueError):
        return None
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if descriptor.samefile(lock):
                return pid
    return None


async def stop_daemon(lock: Path) -> int | None:
    """Stop the daemon that holds `lock` and return its process ID, or None without a daemon.

    A service is stopped by systemd, which would otherwise restart it.

    Raises:
        BusyError: it did not end in time, or its lock was deleted and only its socket shows that it runs, or
            these are the places of one of its several networks. TargetError: the user has no right to stop
            it. UsageError: it runs in another network namespace, so its objects cannot be removed from here.
    """
    pid = running_daemon(lock)
    if pid is None:
        _check_unserved(Places(run_dir=lock.parent))
        return None
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    try:
        if running_daemon(lock) != pid:
            return None  # it ended before the pidfd was open
        _check_namespace(pid)
        unit = service_of(pid)
        signal.pidfd_send_signal(process, 0)  # it has not ended, so that all this is true of it
        if unit is not None:
            await stop_service(unit, STOP_S)
        else:
            signal.pidfd_send_signal(process, signal.SIGTERM)
        await _end_of(process)
    except ProcessLookupError:
        return pid
    except PermissionError as error:
        raise TargetError(
            f"no permission to stop flanneld (pid {pid})", hint="Run flannelctl as root."
        ) from error
    except TimeoutError as error:
        raise BusyError(
            f"flanneld (pid {pid}) did not end within {STOP_S:g} s",
            hint=f"Read its log, end it with 'kill -9 {pid}', then clean up again.",
        ) from error
    finally:
        os.close(process)
    return pid


def check_own_files(places: Places, usual: Places) -> None:
    """Prevent that a cleanup with only another run directory removes the files of the `usual` daemon.

    Raises:
        UsageError: a path is that of the usual daemon, which is in use.
    """
    if places.run_dir == usual.run_dir:
        return
    theirs = [
        f"{option}={path}"
        for option, path, other in (
            ("--state-dir", places.state_dir, usual.state_dir),
            ("--subnet-file", places.subnet_file, usual.subnet_file),
        )
        if path == other
    ]
    if theirs and (usual.device_file.exists() or running_daemon(usual.lock) is not None):
        raise UsageError(
            f"{' and '.join(theirs)}: these belong to the flanneld of {usual.run_dir}",
            hint=f"Give the paths of {places.run_dir} too. One of several networks of a daemon has"
            f" {usual.state_dir}/NAME and {usual.run_dir}/networks/NAME.env.",
        )


async def _end_of(process: int) -> None:
    """Return after the end of the process, when its pidfd becomes readable."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(process, ended.set)
    try:
        async with asyncio.timeout(STOP_S):
            await ended.wait()
    finally:
        loop.remove_reader(process)


def _check_unserved(places: Places) -> None:
    control_socket = places.control_socket
    pid = server_pid(control_socket)
    if pid is not None and pid == running_daemon(Places(run_dir=places.run_dir.parent).lock):
        raise BusyError(
            f"flanneld (pid {pid}) runs the network {places.run_dir.name}, and perhaps others",
            hint="Remove it from --networks and restart flanneld, or, with --watch-networks, delete its"
            " config from the store; then clean up again.",
        )
    if pid is not None:
        unit = service_of(pid)
        raise BusyError(
            f"flanneld (pid {pid}) runs: it serves {control_socket}, but its lock file is missing",
            hint=f"End it with '{f'systemctl stop {unit}' if unit else f'kill {pid}'}', then clean up again.",
        )


def _check_namespace(pid: int) -> None:
    if not os.path.samefile(f"/proc/{pid}/ns/net", "/proc/self/ns/net"):
        raise UsageError(
            f"flanneld (pid {pid}) runs in another network namespace",
            hint=f"Run flannelctl there: nsenter --net=/proc/{pid}/ns/net flannelctl …",
        )
