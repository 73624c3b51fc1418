"""Locks: one program of its kind in a run directory, one daemon with a device name."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from pyflannel.errors import BusyError, target_errors


class RunLock:
    """A lock file, held from entering to leaving, or to the end of the process however it ends.

    The file holds the holder's process id and program, for whoever comes second: `1234 flanneld`.

    Raises:
        BusyError: on entering, when another process holds it; the message names that one.
        TargetError: on entering, when the file cannot be made.
    """

    def __init__(self, path: str, program: str = "flanneld") -> None:
        self._path = path
        self._program = program
        self._descriptor = -1

    def __enter__(self) -> Self:
        hint = "Run as root, or name a directory that this user may write to."
        with target_errors(f"the lock file {self._path} cannot be made", hint=hint):
            os.makedirs(os.path.dirname(os.path.abspath(self._path)), mode=0o755, exist_ok=True)
            self._descriptor = self._acquire()
        with contextlib.suppress(OSError):  # a full disk keeps us from signing, not from holding
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()} {self._program}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            os.unlink(self._path)  # while it is held, so that it is ours that goes
        os.close(self._descriptor)

    def _acquire(self) -> int:
        while True:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            with contextlib.ExitStack() as unless_held:
                unless_held.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.pread(descriptor, 256, 0).decode(errors="replace").strip()
                    raise self._busy(holder) from None
                if self._is_at_path(descriptor):  # else the holder left, and took the file away, meanwhile
                    unless_held.pop_all()
                    return descriptor

    def _is_at_path(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self._path))
        except FileNotFoundError:
            return False

    def _busy(self, holder: str) -> BusyError:
        pid, _, program = holder.partition(" ")
        who = f"{program} (pid {pid})" if program else "another program"
        return BusyError(
            f"{who} is running already: it holds {self._path}",
            hint="Stop it first, or give this one a run directory of its own (--run-dir).",
        )


_TRIES = 256


class DeviceClaim:
    """A name of a device, held for as long as this process lives, in its network namespace.

    The claim is a bound name in the abstract namespace of Unix sockets, which each network namespace has of
    its own, as it has its devices; the kernel lets go of it however the process ends. Nothing listens there.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Claim the first of `names` that nobody holds.

        Raises:
            BusyError: somebody holds each of the first few hundred.
        """
        for _, name in zip(range(_TRIES), names, strict=False):
            if (held := _bind(name)) is not None:
                self.name = name
                self._held = held
                return
        raise BusyError(
            "every name for a tunnel device is taken by another daemon",
            hint="Stop the daemons that are too many; each holds a name @pyflannel/device/….",
        )

    def close(self) -> None:
        """Let go of the name."""
        self._held.close()


def _bind(name: str) -> socket.socket | None:
    """Return what holds the claim; None when somebody else has it."""
    hint = "Give flanneld the right to make Unix sockets."
    what = f"the device name {name} cannot be claimed"
    with target_errors(what, hint=hint), contextlib.ExitStack() as unless_held:
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        unless_held.enter_context(claim)
        try:
            claim.bind(f"\0pyflannel/device/{name}")
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return None
            raise
        unless_held.pop_all()
        return claim
