"""System calls of a thread or of a program that fail on request: the kernel itself refuses them.

A seccomp filter stops each known system call of the thread, and asks a supervisor, which is a separate
process, whether the call continues or fails with an errno (seccomp_unotify(2)). Therefore the failure affects
every caller: Python, the C library, libbpf. Threads that the thread starts inherit the filter. Programs that
the thread starts also inherit the filter, but the calls of these programs always continue. A filter remains
after execve(2), so a real program is affected as well.
"""

import asyncio
import ctypes
import errno
import fcntl
import mmap
import os
import platform
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ERRNOS = (errno.EIO, errno.EMFILE, errno.ENOSPC, errno.EISDIR, errno.EACCES, errno.EINTR)
"""The errors of failing calls: a broken disk, a limit, a full disk, a wrong type, a right, a signal."""

_X86_64 = {
    "read": 0,
    "write": 1,
    "lseek": 8,
    "ioctl": 16,
    "pread64": 17,
    "pwrite64": 18,
    "select": 23,
    "dup": 32,
    "socket": 41,
    "connect": 42,
    "sendto": 44,
    "recvfrom": 45,
    "recvmsg": 47,
    "bind": 49,
    "getsockname": 51,
    "socketpair": 53,
    "setsockopt": 54,
    "getsockopt": 55,
    "clone": 56,
    "vfork": 58,
    "fsync": 74,
    "ftruncate": 77,
    "rename": 82,
    "mkdir": 83,
    "rmdir": 84,
    "unlink": 87,
    "readlink": 89,
    "fchmod": 91,
    "getdents64": 217,
    "epoll_ctl": 233,
    "inotify_add_watch": 254,
    "openat": 257,
    "newfstatat": 262,
    "pipe2": 293,
    "inotify_init1": 294,
    "memfd_create": 319,
    "bpf": 321,
    "statx": 332,
    "pidfd_send_signal": 424,
    "pidfd_open": 434,
    "clone3": 435,
}
"""Numbers of system calls (asm/unistd_64.h), without calls that cannot fail, and without calls that the
interpreter requires, for example for memory."""

_AUDIT_ARCH_X86_64 = 0xC000003E
_SECCOMP = 317
_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_RETURN_ALLOW = 0x7FFF0000
_RETURN_USER_NOTIFICATION = 0x7FC00000

_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER_AT, _ARCH_AT = 0, 4

_RECEIVE = 0xC0502100  # SECCOMP_IOCTL_NOTIF_RECV
_SEND = 0xC0182101  # SECCOMP_IOCTL_NOTIF_SEND
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # id, task, flags, number, architecture, instruction, arguments
_RESPONSE = struct.Struct("=QqiI")  # id, value, errno, flags
_GO_ON = 1

_EPOLL_CTL_ADD = 1

_ORDER = struct.Struct("=6I")
"""Fields of the shared memory: whether a failure is armed, number of the failing call, its errno, whether
later calls fail, number of calls so far, mode.

The mode is the number of counted calls, or _ANY.
"""
_ANY = 0xFFFFFFFF
_IGNORED_AT, _IGNORED = _ORDER.size, struct.Struct("=8i")
_CALLS_AT = _IGNORED_AT + _IGNORED.size
_MOST_CALLS = 4096


class Call(NamedTuple):
    """A system call: its position in the block, counted from 1, and its name."""

    place: int
    name: str


class SystemCalls:
    """The system calls of the thread that creates this object, until the thread ends.

    This object is created in a coroutine. The calls by which its event loop wakes itself are not counted.
    """

    def __init__(self) -> None:
        descriptor = os.memfd_create("system calls")
        os.ftruncate(descriptor, _CALLS_AT + _MOST_CALLS * 2)
        self._memory = mmap.mmap(descriptor, 0)
        loop: Any = asyncio.get_running_loop()
        ignored = [loop._ssock.fileno(), loop._csock.fileno()]
        _IGNORED.pack_into(self._memory, _IGNORED_AT, *ignored, *[-1] * (8 - len(ignored)))
        self._supervisor = _supervised(descriptor)
        os.close(descriptor)

    @contextmanager
    def counted(self) -> Iterator[list[Call]]:
        """Count the calls of a block. The list is filled at the end of the block."""
        calls: list[Call] = []
        _ORDER.pack_into(self._memory, 0, 1, 0, 0, 0, 0, _ANY)
        try:
            yield calls
        finally:
            calls += self._stop()

    @contextmanager
    def failing(self, place: int, code: int, *, lasting: bool = False) -> Iterator[None]:
        """Let one call of a block fail: the call at position `place`, counted from 1. With `lasting`, each
        later call of the same name fails too.
        """
        _ORDER.pack_into(self._memory, 0, 1, place, code, lasting, 0, _ANY)
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> list[Call]:
        seen = _ORDER.unpack_from(self._memory, 0)[4]
        _ORDER.pack_into(self._memory, 0, 0, 0, 0, 0, 0, _ANY)
        numbers = struct.unpack_from(f"={min(seen, _MOST_CALLS)}H", self._memory, _CALLS_AT)
        return [Call(place, _NAMES[number]) for place, number in enumerate(numbers, 1)]


class ProgramCalls:
    """The system calls of a program in any sandbox. `control` is a file that both sides can read.

    The calls by which its asyncio loop wakes itself always continue.
    """

    def __init__(self, control: Path) -> None:
        self._control = control
        with control.open("wb+") as file:
            file.truncate(_CALLS_AT + _MOST_CALLS * 2)
            self._memory = mmap.mmap(file.fileno(), 0)
        _IGNORED.pack_into(self._memory, _IGNORED_AT, *[-1] * 8)

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return the command that starts the program with the filter."""
        return [sys.executable, "-I", "-S", __file__, "run", str(self._control), *argv]

    def fail_next(self, name: str, code: int) -> None:
        """Let only the next call of this name fail."""
        _ORDER.pack_into(self._memory, 0, 1, 1, code, 0, 0, _X86_64[name])

    def has_failed(self) -> bool:
        """Return whether this call has failed."""
        return bool(_ORDER.unpack_from(self._memory, 0)[4])

    def stop(self) -> None:
        """Let all calls continue."""
        _ORDER.pack_into(self._memory, 0, 0, 0, 0, 0, 0, _ANY)


NAMES = tuple(_X86_64)
"""The system calls that can fail."""

_NAMES = {number: name for name, number in _X86_64.items()}


def why_not() -> str | None:
    """Return the reason why system calls cannot be made to fail on this machine; None if they can."""
    if platform.machine() != "x86_64":
        return "numbers of system calls are known for x86_64 only"
    if os.geteuid() != 0:
        return "needs root: seccomp filters"
    try:
        with open("/proc/sys/kernel/seccomp/actions_avail", encoding="ascii") as file:
            return None if "user_notif" in file.read() else "the kernel has no seccomp user notification"
    except OSError:
        return "the kernel has no seccomp"


def _supervised(descriptor: int) -> "subprocess.Popen[bytes]":
    """Filter the calling thread from now on; return the process that decides about its calls."""
    ours, its = socket.socketpair()
    words = [str(descriptor), str(its.fileno()), str(os.getpid())]
    command = [sys.executable, "-I", "-S", __file__, "supervise", *words]
    supervisor = subprocess.Popen(command, pass_fds=[descriptor, its.fileno()])
    its.close()
    listener = _install_filter()
    socket.send_fds(ours, [b"x"], [listener])  # no filter stops this call
    os.close(listener)
    ours.close()
    return supervisor


def _run(control: str, *argv: str) -> None:
    """Become a program whose calls the memory in the file `control` controls."""
    descriptor = os.open(control, os.O_RDWR | os.O_CLOEXEC)
    _supervised(descriptor)
    os.execvp(argv[0], argv)


def _install_filter() -> int:
    """Filter the calling thread; return the descriptor for decisions about its calls."""
    numbers = list(_NAMES)
    program = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_EQUAL, 0, len(numbers) + 1, _AUDIT_ARCH_X86_64),
        (_LOAD, 0, 0, _NUMBER_AT),
        *((_JUMP_EQUAL, len(numbers) - place, 0, number) for place, number in enumerate(numbers)),
        (_RETURN, 0, 0, _RETURN_ALLOW),
        (_RETURN, 0, 0, _RETURN_USER_NOTIFICATION),
    ]
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*each) for each in program))
    attributes = ctypes.create_string_buffer(struct.pack("=H6xQ", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    listener: int = libc.syscall(_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, attributes)
    if listener < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")
    return listener


def _supervise(descriptor: int, socket_descriptor: int, process: int) -> None:
    """Decide about calls until the last filtered task has ended."""
    memory = mmap.mmap(descriptor, 0)
    with socket.socket(fileno=socket_descriptor) as channel:
        _, (listener, *_), _, _ = socket.recv_fds(channel, 1, 1)
    events = select.poll()
    events.register(listener, select.POLLIN)
    failing = 0
    while events.poll()[0][1] & select.POLLIN:
        notification = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notification)
        except OSError:
            continue  # the task ended in the meantime
        identifier, task, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
        is_armed, place, code, is_lasting, seen, wanted = _ORDER.unpack_from(memory, 0)
        error = 0
        is_wanted = is_armed and wanted in (_ANY, number)
        if is_wanted and _counts(memory, process, task, number, arguments):
            struct.pack_into("=H", memory, _CALLS_AT + 2 * min(seen, _MOST_CALLS - 1), number)
            seen += 1
            _ORDER.pack_into(memory, 0, is_armed, place, code, is_lasting, seen, wanted)
            if seen == place:
                failing = number
            if seen == place or (is_lasting and place and seen > place and number == failing):
                error = code
        try:
            response = _RESPONSE.pack(identifier, 0, -error, 0 if error else _GO_ON)
            fcntl.ioctl(listener, _SEND, response)
        except OSError:
            continue


def _counts(memory: mmap.mmap, process: int, task: int, number: int, arguments: list[int]) -> bool:
    if not os.path.exists(f"/proc/{process}/task/{task}"):
        return False  # a call of a program that the thread started
    if number == _X86_64["epoll_ctl"] and arguments[1] != _EPOLL_CTL_ADD:
        return False
    if (number, arguments[2]) in _WAKING:
        return False
    # A descriptor is an int, so the upper half of the register has no meaning.
    return arguments[0] & 0xFFFFFFFF not in _IGNORED.unpack_from(memory, _IGNORED_AT)


_WAKING = ((_X86_64["sendto"], 1), (_X86_64["recvfrom"], 4096))
"""The calls by which an asyncio loop wakes itself, with their numbers of bytes."""

if __name__ == "__main__":
    if sys.argv[1] == "run":
        _run(*sys.argv[2:])
    else:
        _supervise(*map(int, sys.argv[2:]))
