"""Pins of programs and maps in a bpffs, for a daemon that may not open objects by identifier."""

import ctypes
import errno
import os
import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from pyflannel.kernel.bpf.hooks import KernelHooks
from pyflannel.kernel.bpf.objects import KernelObjects
from pyflannel.kernel.bpf.standing import StandingPrograms
from pyflannel.kernel.bpf.syscall import opened


def is_bpffs(path: str) -> bool | None:
    """Return whether a bpffs is mounted at `path`; None if this is unknown.

    Source: proc(5), mountinfo.
    """
    place = os.path.realpath(path)
    try:
        kinds = [mount.kind for mount in mounts_in(_MOUNTS.read_bytes()) if mount.place == place]
    except OSError:
        return None
    return kinds[-1:] == ["bpf"]  # the last mount hides the earlier mounts


def kernel_has_bpffs() -> bool | None:
    """Return whether the kernel has a bpffs that could be mounted; None if this is unknown."""
    try:
        with open("/proc/filesystems", encoding="ascii", errors="replace") as file:
            return any(line.split()[-1:] == ["bpf"] for line in file)
    except OSError:
        return None


_MOUNTS = Path("/proc/self/mountinfo")


class Mount(NamedTuple):
    """A mounted file system. `device` contains the major and the minor number."""

    device: str
    place: str
    kind: str


def mounts_in(mountinfo: bytes) -> Iterator[Mount]:
    """Yield the mounts in /proc/PID/mountinfo (proc(5)).

    A user may choose the path of a mount, for example with FUSE. The kernel escapes space, tab, newline, the
    backslash and #, but no other character that Python treats as the end of a line.
    """
    for line in mountinfo.split(b"\n"):
        mount, _, source = line.partition(b" - ")
        fields = mount.split(b" ")
        if len(fields) > 4:
            place = re.sub(rb"\\([0-3][0-7]{2})", lambda found: bytes([int(found[1], 8)]), fields[4])
            kind = source.partition(b" ")[0]
            yield Mount(os.fsdecode(fields[2]), os.fsdecode(place), os.fsdecode(kind))


def remove_pin_directory(path: str) -> bool:
    """Remove the directory, with its pins and the mount on it; return whether the directory existed.

    Raises:
        OSError: EPERM if this process has no permission to unmount it. ENOTEMPTY if it is an ordinary
            directory with files.
    """
    if not os.path.isdir(path):
        return False
    while os.path.ismount(path):
        _unmount(path)
    os.rmdir(path)
    return True


_UMOUNT_NOFOLLOW = 8
"""sys/mount.h: refuse a symbolic link at the path of the directory."""


def _unmount(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _UMOUNT_NOFOLLOW):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


@contextmanager
def pin_directory(path: str) -> Iterator[str]:
    """Mount a bpffs at `path` that only root can access, unless it already exists. Yield a path that the
    daemon cannot redirect.

    The daemon owns the directory around `path`, and may replace `path` by a symbolic link at any moment.
    Therefore root opens `path` without following links, and then uses only the descriptor.

    Raises:
        NotADirectoryError: `path` is a symbolic link or a file.
        OSError: EPERM if CAP_SYS_ADMIN is missing. ENODEV if the kernel has no bpffs.
    """
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(path)
    with opened(_open_directory(path)) as directory:
        if not _has_bpffs(directory):
            _mount_bpffs(_path_of(directory), path)
    with opened(_open_directory(path)) as directory:
        if not _has_bpffs(directory):
            raise NotADirectoryError(
                errno.ENOTDIR, "the directory was replaced while a bpffs was being mounted", path
            )
        yield _path_of(directory)


def _open_directory(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _has_bpffs(directory: int) -> bool:
    """Return whether the directory is on a bpffs.

    Source: proc(5), mountinfo: the third field is the device, and the first field after the dash is the file
        system.
    """
    number = os.fstat(directory).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return any(each.device == device and each.kind == "bpf" for each in mounts_in(_MOUNTS.read_bytes()))


def _mount_bpffs(place: str, path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(place), b"bpf", 0, b"mode=0700"):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)


async def pin_standing(directory: str) -> int:
    """Pin each attached program of pyflannel in this network namespace; return the number of these programs.

    Programs have no pins if a daemon with all rights attached them, or if their bpffs was removed.

    Raises:
        OSError: the kernel refused the call: EPERM without CAP_SYS_ADMIN, ENOSYS if it has no bpf(2).
        TargetError: the kernel did not answer.
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
