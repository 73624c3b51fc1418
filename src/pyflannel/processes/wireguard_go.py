"""Runs wireguard-go on kernels without WireGuard: a process that is attached to a TUN device of pyflannel.

The device is persistent, so the process may exit and start again without a change of addresses and routes.
While no process runs, the kernel drops the packets.
"""

import asyncio
import fcntl
import logging
import os
import re
import socket
import struct
from collections.abc import Collection
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Self

from pyflannel.errors import TargetError, in_words, target_errors
from pyflannel.model.wireguard import DEVICE, LOG_NAME
from pyflannel.ports import child_environment
from pyflannel.processes.forwarder_client import ANSWER_S
from pyflannel.processes.forwarder_descriptors import pid_of_peer
from pyflannel.processes.forwarder_launch import Launch, Reaper, start_detached
from pyflannel.processes.found import end_process
from pyflannel.processes.systemd import WIREGUARD_TEMPLATE, NoUnitError, connect_to_new, is_service

log = logging.getLogger(__name__)

PROGRAM = "wireguard-go"

_SOCKETS = Path("/run/wireguard")
"""Directory of the control sockets, compiled into wireguard-go and `wg`."""

_LOOK_AGAIN_S = 0.01

_UNIT_HINT = f"Read journalctl -u '{WIREGUARD_TEMPLATE}@*', then restart flanneld."

_NAME = re.compile(rf"{DEVICE}\d*")
_GET_MTU, _SET_MTU = 0x8921, 0x8922  # SIOCGIFMTU, SIOCSIFMTU (linux/sockios.h)
_MTU_REQUEST = struct.Struct("=16si20x")  # struct ifreq


def _program() -> str | None:
    """Return the path of the program wireguard-go; None if it is not installed."""
    import shutil  # imported here, because it loads libraries that every daemon would keep in memory

    return shutil.which(PROGRAM)


class WireguardGo:
    """The wireguard-go processes of this network namespace. These processes continue after the daemon
    exits.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._reaper = Reaper()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reaper.close()

    def objection(self) -> str:
        """Return the reason in one line why wireguard-go cannot be used; "" if it can be used."""
        if _program() is None:
            return f"{PROGRAM}, which is not installed, because the kernel of this host has no WireGuard"
        return ""

    def links(self) -> Collection[str]:
        """Return the links named like WireGuard devices that a process serves.

        Raises:
            TargetError: the processes cannot be found.
        """
        with _finding("the processes of WireGuard devices"):
            try:
                names = [path.stem for path in _SOCKETS.iterdir() if path.suffix == ".sock"]
            except FileNotFoundError:
                return ()
            return [name for name in names if _NAME.fullmatch(name) and self._is_served(name)]

    def _is_served(self, link: str) -> bool:
        try:
            return _server_here(link) is not None
        except PermissionError:
            return False  # a process of another user serves the socket

    def pid(self, link: str) -> int | None:
        """Return the process ID of the process that serves a link; None if no process serves it in this
        network namespace.

        Raises:
            TargetError: the process cannot be found.
        """
        with _finding(f"the process of {link}"):
            return _server_here(link)

    async def start(self, link: str) -> None:
        """Start the process of a link, replacing a process that already runs, and return when it can be
        configured.

        Raises:
            TargetError: the process did not start; the message contains the cause.
        """
        await self.stop(link)
        with _finding(f"the process of {link}"):
            other = _server(link)
        if other is not None:
            raise TargetError(
                f"{_socket(link)} is served by a program of another network namespace (pid {other})",
                hint="Give each flanneld a mount namespace with its own /run/wireguard.",
            )
        program = _program()
        if program is None:
            raise TargetError(f"{PROGRAM} is not installed", hint=f"Install {PROGRAM}.", is_permanent=True)
        launch = Launch(
            name=PROGRAM,
            command=[program, "-f", link],
            environment=child_environment() | {"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "error"},
            log=self._run_dir / LOG_NAME,
            answers=partial(self._answers, link),
            explain=self._explain,
        )
        with target_errors(f"{PROGRAM} cannot be started", hint="flanneld starts the process again."):
            mtu = _mtu(link)
            if not is_service() or not await self._start_in_unit(link):
                await start_detached(launch, self._reaper)
            _set_mtu(link, mtu)  # wireguard-go has set its own MTU

    async def _start_in_unit(self, link: str) -> bool:
        """Let systemd start the process in its own unit; return whether systemd started it, and log a
        warning if systemd did not start it.
        """
        try:
            with connect_to_new(WIREGUARD_TEMPLATE) as connection:
                connection.send(f"{link}\n".encode())
                async with asyncio.timeout(ANSWER_S):
                    while self.pid(link) is None:
                        if _is_closed(connection):
                            raise NoUnitError(f"{WIREGUARD_TEMPLATE}@.service ended", hint=_UNIT_HINT)
                        await asyncio.sleep(_LOOK_AGAIN_S)
                return True
        except NoUnitError as error:
            cause = error.in_full
        except TimeoutError as error:
            raise TargetError(
                f"{WIREGUARD_TEMPLATE}@.service started no {PROGRAM} within {ANSWER_S:.0f} s", hint=_UNIT_HINT
            ) from error
        except OSError as error:
            cause = in_words(error)
        log.warning("Started %s inside this service, so both stop together: %s", PROGRAM, cause)
        return False

    async def stop(self, link: str) -> None:
        """Stop the process of a link, if a process serves the link. The device stays."""
        pid = self.pid(link)
        if pid is None:
            return
        if not await end_process(pid, partial(_serves, link)):
            raise TargetError(
                f"{link} is served by a program other than {PROGRAM} (pid {pid})",
                hint="Stop that program.",
            )
        _socket(link).unlink(missing_ok=True)

    async def _answers(self, link: str, pid: int) -> bool:
        return _server(link) == pid

    async def _explain(self, status: int, said: str) -> TargetError:
        lines = [line for line in said.splitlines() if line.strip() and not line.startswith(("│", "┌", "└"))]
        return TargetError(
            f"{PROGRAM} ended with status {status}: {lines[-1].strip() if lines else 'no output'}",
            hint=f"Read {self._run_dir / LOG_NAME}.",
        )


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the process at the other end has exited. The process at the other end writes nothing."""
    try:
        return not connection.recv(1)
    except BlockingIOError:
        return False


def _socket(link: str) -> Path:
    return _SOCKETS / f"{link}.sock"


def _finding(what: str) -> AbstractContextManager[None]:
    return target_errors(f"{what} cannot be found", hint=f"Check the owner and the mode of {_SOCKETS}.")


def _server(link: str) -> int | None:
    """Return the process that serves the socket of a link, in any network namespace; None if there is no
    such process.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(_socket(link)))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        return pid_of_peer(probe)


def _server_here(link: str) -> int | None:
    """Return the process that serves the socket of a link, if it is in this network namespace."""
    pid = _server(link)
    try:
        return pid if pid and _network(str(pid)) == _network("thread-self") else None
    except (FileNotFoundError, ProcessLookupError):
        return None  # the process exited in the meantime


def _network(process: str) -> str:
    return os.readlink(f"/proc/{process}/ns/net")


def _serves(link: str, pid: int) -> bool:
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return PROGRAM in os.fsdecode(words[0]) and link.encode() in words


def _mtu(link: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as anything:
        answer = fcntl.ioctl(anything, _GET_MTU, _MTU_REQUEST.pack(link.encode(), 0))
    mtu: int = _MTU_REQUEST.unpack(answer)[1]
    return mtu


def _set_mtu(link: str, mtu: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as anything:
        fcntl.ioctl(anything, _SET_MTU, _MTU_REQUEST.pack(link.encode(), mtu))
