"""Runs a command with a seccomp filter that answers one system call instead of the kernel.

    python tests/testlab/refusing.py bpf EPERM flanneld --store=…

The filter also applies to all programs that the command starts. Source: seccomp(2); linux/filter.h.
"""

import ctypes
import errno
import os
import struct
import sys

_NUMBERS = {
    "x86_64": {"bpf": 321, "mount": 165},
    "aarch64": {"bpf": 280, "mount": 40},
}
"""asm/unistd.h of each machine."""

_NO_NEW_PRIVILEGES = 38
_SET_SECCOMP = 22
_FILTER_MODE = 2
_RETURN_ERRNO = 0x00050000
_RETURN_ALLOW = 0x7FFF0000
_INSTRUCTION = struct.Struct("=HBBI")  # code, jumps when true and when false, operand


def refuse(call: str, code: int) -> None:
    """Let each later `call` fail with this errno, in this process and its children.

    Raises:
        OSError: the kernel has no seccomp filters.
    """
    number = _NUMBERS[os.uname().machine][call]
    instructions = b"".join(
        _INSTRUCTION.pack(*one)
        for one in (
            (0x20, 0, 0, 0),  # load the number
            (0x15, 0, 1, number),
            (0x06, 0, 0, _RETURN_ERRNO | code),
            (0x06, 0, 0, _RETURN_ALLOW),
        )
    )
    code_of_filter = ctypes.create_string_buffer(instructions, len(instructions))
    data = struct.pack("=HxxxxxxQ", len(instructions) // 8, ctypes.addressof(code_of_filter))
    program = ctypes.create_string_buffer(data, len(data))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER_MODE, program, 0, 0)):
        if libc.prctl(*arguments):
            failure = ctypes.get_errno()
            raise OSError(failure, os.strerror(failure))


if __name__ == "__main__":
    refuse(sys.argv[1], getattr(errno, sys.argv[2]))
    os.execvp(sys.argv[3], sys.argv[3:])
