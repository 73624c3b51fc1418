"""Pins, laid by somebody with every right for a daemon that may not open programs by their identifiers."""

import ctypes
import os
import socket
from collections.abc import Iterable
from contextlib import ExitStack

from pyflannel.kernel.bpf.kernel_hooks import KernelHooks
from pyflannel.kernel.bpf.objects import KernelObjects
from pyflannel.kernel.bpf.standing import StandingPrograms
from pyflannel.kernel.bpf.syscall import opened


def mount_pin_directory(path: str) -> None:
    """Make the directory and mount a bpffs on it, for root alone, unless there is one.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN; ENODEV, the kernel has no bpffs.
    """
    os.makedirs(path, exist_ok=True)
    if os.path.ismount(path):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(path), b"bpf", 0, b"mode=0700"):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


async def pin_standing(directory: str) -> int:
    """Pin each program of ours that stands in this network namespace; return how many.

    A daemon that had every right, or whose bpffs is gone, left them without.

    Raises:
        OSError: the kernel refused: EPERM without CAP_SYS_ADMIN, ENOSYS where it has no bpf(2).
        TargetError: it did not answer.
    """
    objects = KernelObjects(directory)
    hooks = KernelHooks(objects)
    try:
        standing = await StandingPrograms(hooks, objects).find(dict(socket.if_nameindex()))
    finally:
        hooks.close()
    for program in (one.program for one in standing):
        _pin(objects, program.id, {program.settings_map_id, *program.map_ids})
    return len(standing)


def _pin(objects: KernelObjects, program_id: int, map_ids: Iterable[int]) -> None:
    with ExitStack() as descriptors:
        program = descriptors.enter_context(opened(objects.open_program(program_id)))
        maps = [descriptors.enter_context(opened(objects.open_map(map_id))) for map_id in map_ids]
        objects.pin(program, maps)
