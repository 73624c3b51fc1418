"""Drops root, capabilities and most system calls of the forwarder before its first packet.

The forwarder parses packets of unknown senders, so a defect in the forwarder must not give these senders
access to the host. After the restriction, the process can only use its open descriptors: the descriptors of
one tunnel and of its control socket.

Sources: capabilities(7), prctl(2), seccomp(2), linux/seccomp.h, linux/bpf_common.h.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from struct import Struct

from pyflannel.wire.forwarder_control import Restriction

USER = "flannel-forwarder"
"""The system user of the forwarder. The Debian package creates this user."""


def restrict() -> Restriction:
    """Drop all rights of this process permanently, and return the restrictions in effect.

    No restriction is required. In a container without the user, uid 0 remains, but without capabilities.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    done = Restriction(0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # Linux 3.5; required by the filter
    _drop_bounding_set(libc)
    if _become(USER):
        done |= Restriction.OWN_USER
    if _drop_capabilities(libc):
        done |= Restriction.NO_CAPABILITIES
    if _filter_calls(libc):
        done |= Restriction.FILTERED_CALLS
    return done


def _become(name: str) -> bool:
    """Switch to this user if this process has the right to do so. Return whether the switch succeeded.

    /etc/passwd is read directly, because a name service could use a network that needs this process.
    """
    entry = _user(name)
    if entry is None:
        return False
    uid, gid = entry
    if os.geteuid() == 0:
        with suppress(PermissionError):  # the kernel refuses this without CAP_SETUID and CAP_SETGID
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
    return os.getresuid() == (uid, uid, uid)


def _user(name: str) -> tuple[int, int] | None:
    with suppress(OSError), open("/etc/passwd", encoding="utf-8", errors="replace") as file:
        for line in file:
            fields = line.split(":")
            if fields[0] == name and len(fields) > 3 and fields[2].isdecimal() and fields[3].isdecimal():
                return int(fields[2]), int(fields[3])
    return None


_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_CAPABILITIES = 64
"""A number larger than the number of capabilities of any kernel. The kernel refuses unknown capabilities
with EINVAL."""

_CAPABILITY_HEADER = Struct("=Ii")
_CAPABILITY_VERSION_3 = 0x20080522
_NO_CAPABILITY = bytes(24)


def _drop_bounding_set(libc: ctypes.CDLL) -> None:
    """Let no program that this process executes get a capability. Refused without CAP_SETPCAP."""
    for number in range(_CAPABILITIES):
        if libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0):
            return


def _drop_capabilities(libc: ctypes.CDLL) -> bool:
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = _CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0)
    libc.capset(header, _NO_CAPABILITY)  # may fail: the unit's filter of system calls refuses this call
    kept = ctypes.create_string_buffer(len(_NO_CAPABILITY))
    return not libc.capget(header, kept) and kept.raw == _NO_CAPABILITY


_SYSTEM_CALLS = {
    # name: number on x86_64, number on architectures with the generic table, such as aarch64 and riscv64
    "read": (0, 63),
    "writev": (20, 66),
    "recvmsg": (47, 212),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "write": (1, 64),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "epoll_ctl": (233, 21),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "close": (3, 57),
    "accept4": (288, 242),
    "getsockname": (51, 204),  # Python uses this system call for each accepted connection
    "getsockopt": (55, 209),
    "listen": (50, 201),
    "getpid": (39, 172),
    "clock_gettime": (228, 113),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "getrandom": (318, 278),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""The allowed system calls. The calls that are used for each packet are first.

The list was recorded with strace while the process forwarded packets in both directions, in runs and singly,
and served clients. The process also lost its device and got another device, was replaced, and exited because
of STOP and of SIGTERM. The calls that the C library and the interpreter use under other conditions were added
(memory, signals, clocks without a vDSO).
"""

_IOCTL = (16, 29)
_IOCTLS = (0x800454D2, 0x5421)  # TUNGETIFF, FIONBIO
_MMAP = (9, 222)
_MPROTECT = (10, 226)
_PROT_EXEC = 4

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1), "riscv64": (0xC00000F3, 1)}
"""linux/audit.h, AUDIT_ARCH_…, and the column of the system call numbers."""

_INSTRUCTION = Struct("=HBBI")  # code, jump if true, jump if false, operand
_LOAD, _JUMP_EQUAL, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _SECOND_ARGUMENT_AT, _THIRD_ARGUMENT_AT = 0, 4, 24, 32
"""Offsets in struct seccomp_data. The offset of an argument is the offset of its lower half on a
little-endian machine."""

_ALLOW, _KILL_PROCESS, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EPERM
"""A refused call fails with EPERM, so that an interpreter or C library that uses another call continues to
run."""

_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _filter_calls(libc: ctypes.CDLL) -> bool:
    """Let the kernel refuse all system calls except _SYSTEM_CALLS. Return False on an unknown processor
    architecture, or without seccomp.
    """
    found = _ARCHITECTURES.get(os.uname().machine)
    if found is None:
        return False
    instructions = b"".join(_INSTRUCTION.pack(*one) for one in _instructions(*found))
    program = _Program(len(instructions) // _INSTRUCTION.size, instructions)
    return not libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)


def _instructions(architecture: int, column: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the instructions of the filter. The filter has one block for each system call. A block returns a
    decision, or continues with the next block.
    """
    yield _LOAD, 0, 0, _ARCHITECTURE_AT
    yield _JUMP_EQUAL, 1, 0, architecture
    yield _RETURN, 0, 0, _KILL_PROCESS
    yield _LOAD, 0, 0, _NUMBER_AT
    for numbers in _SYSTEM_CALLS.values():
        if (number := numbers[column]) is not None:
            yield _JUMP_EQUAL, 0, 1, number
            yield _RETURN, 0, 0, _ALLOW
    yield _JUMP_EQUAL, 0, 5, _IOCTL[column]
    yield _LOAD, 0, 0, _SECOND_ARGUMENT_AT
    yield _JUMP_EQUAL, 1, 0, _IOCTLS[0]
    yield _JUMP_EQUAL, 0, 1, _IOCTLS[1]
    yield _RETURN, 0, 0, _ALLOW
    yield _RETURN, 0, 0, _REFUSE
    yield _JUMP_EQUAL, 1, 0, _MMAP[column]
    yield _JUMP_EQUAL, 0, 3, _MPROTECT[column]
    yield _LOAD, 0, 0, _THIRD_ARGUMENT_AT
    yield _JUMP_ANY_BIT, 1, 0, _PROT_EXEC
    yield _RETURN, 0, 0, _ALLOW
    yield _RETURN, 0, 0, _REFUSE
