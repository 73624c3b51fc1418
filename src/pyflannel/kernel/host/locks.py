"""Locks: only one program of its kind in a run directory, and only one daemon with a device name."""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import Self

from pyflannel.errors import BusyError, in_words, target_errors
from pyflannel.wire.netlink.message import ERROR, Request, pack, parse_acknowledgement, split
from pyflannel.wire.netlink.nftables import IPV4, PROTOCOL, TableName, get_table, own_table

log = logging.getLogger(__name__)


class RunLock:
    """A lock file, held during the block. The kernel releases the lock if the process exits earlier.

    The file contains the process ID and the program of the holder, such as `1234 flanneld`. The error of a
    second process contains both values.

    Raises:
        BusyError: on entering, if another process holds the lock; the message names that process.
        TargetError: on entering, if the file cannot be created.
    """

    def __init__(self, path: str, program: str = "flanneld") -> None:
        self._path = path
        self._program = program
        self._descriptor = -1

    def __enter__(self) -> Self:
        hint = "Run as root, or name a directory that this user may write to."
        with target_errors(f"the lock file {self._path} cannot be created", hint=hint):
            os.makedirs(os.path.dirname(os.path.abspath(self._path)), mode=0o755, exist_ok=True)
            self._descriptor = self._acquire()
        # on a full disk, the lock is held, but the file does not contain the process ID
        with contextlib.suppress(OSError):
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()} {self._program}\n".encode(), 0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            # the file is removed while the lock is held, so that no lock of another process is removed
            os.unlink(self._path)
        os.close(self._descriptor)

    def _acquire(self) -> int:
        while True:
            descriptor = _open(self._path)
            with contextlib.ExitStack() as unless_held:
                unless_held.callback(os.close, descriptor)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    holder = os.pread(descriptor, 256, 0).decode(errors="replace").strip()
                    raise self._busy(holder) from None
                if self._is_at_path(descriptor):  # otherwise, the holder has removed the file in the meantime
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
            hint="Stop the running program first, or start this program with another run directory "
            "(--run-dir).",
        )


def _open(path: str) -> int:
    """Open the lock file, and create it if it is missing.

    On a read-only file system, the file of an earlier daemon can still be locked.
    """
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
    return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def is_locked(path: str) -> bool:
    """Return whether a program holds the lock at `path`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


_TRIES = 256
_ANSWER_S = 10.0
"""Deadline in seconds for an answer. The kernel answers during the send call."""

_NO_OWNED_TABLE = frozenset(
    {errno.EOPNOTSUPP, errno.EINVAL, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EPERM}
)
"""The errors of a kernel before 5.12 or without nf_tables, and of any kernel if CAP_NET_ADMIN is missing."""


class DeviceClaim:
    """A device name, reserved in the network namespace of this process until the process ends.

    The claim is an empty nftables table that belongs to a socket of this process. Creating the table requires
    CAP_NET_ADMIN, no other process can delete the table, and the kernel deletes it when the process ends for
    any reason. Each network namespace has its own tables, as it has its own devices.

    If the kernel has no such tables (before Linux 5.12, or without nf_tables), the claim is a name in the
    abstract namespace of Unix sockets. Any local user can reserve a name in this namespace; then the daemon
    claims the next name.
    """

    def __init__(self, names: Iterable[str]) -> None:
        """Claim the first of `names` that is free.

        Raises:
            BusyError: all of the first few hundred names are in use.
            TargetError: the kernel refuses to create a socket.
        """
        hint = "Give flanneld the right to create netlink and Unix sockets."
        with target_errors("no device name can be claimed", hint=hint):
            claim = _claim(list(islice(names, _TRIES)))
        if claim is None:
            raise BusyError(
                "other daemons use every name for a tunnel device",
                hint="Stop daemons that are not needed. Each daemon holds an nftables table "
                "pyflannel-device-….",
            )
        self.name, self._held = claim

    def close(self) -> None:
        """Release the name."""
        self._held.close()


def _claim(names: Sequence[str]) -> tuple[str, socket.socket] | None:
    """Claim the first free name; return the name with the socket that holds it."""
    try:
        return _claim_by_table(names)
    except OSError as error:
        if error.errno not in _NO_OWNED_TABLE:
            raise
        log.info("Claiming the device name by a Unix socket, not by an nftables table: %s", in_words(error))
    return _claim_by_address(names)


def _claim_by_table(names: Iterable[str]) -> tuple[str, socket.socket] | None:
    with contextlib.ExitStack() as unless_held:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        owner = unless_held.enter_context(socket.socket(socket.AF_NETLINK, kind, PROTOCOL))
        owner.settimeout(_ANSWER_S)
        owner.bind((0, 0))
        for name in names:
            table = f"pyflannel-device-{name}"
            code = _ask(owner, [get_table(TableName(IPV4, table))])
            if code == errno.ENOENT:  # a query is a hundred times as fast as a refused creation
                code = _ask(owner, own_table(TableName(IPV4, table)))
                if not code:
                    unless_held.pop_all()
                    return name, owner
                if code in (errno.EEXIST, errno.EPERM):
                    continue  # another daemon claimed the name first
            if code:
                raise OSError(code, os.strerror(code))
    return None


def _claim_by_address(names: Iterable[str]) -> tuple[str, socket.socket] | None:
    with contextlib.ExitStack() as unless_held:
        kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        holder = unless_held.enter_context(socket.socket(socket.AF_UNIX, kind))
        for name in names:
            try:
                holder.bind(f"\0pyflannel/device/{name}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                unless_held.pop_all()
                return name, holder
    return None


def _ask(asking: socket.socket, requests: Sequence[Request]) -> int:
    """Send requests, one of which requests an answer; return the errno of the answer, 0 for success."""
    asking.send(b"".join(pack(request, number) for number, request in enumerate(requests, start=1)))
    while True:
        answers = [message for message in split(asking.recv(1 << 16)) if message.kind == ERROR]
        if answers:
            return parse_acknowledgement(answers[0]).errno
