"""The directory of pins, and the bpffs that somebody mounted on it for us."""

import ctypes
import os
import re


def is_bpffs(path: str) -> bool | None:
    """Return whether a bpffs is mounted at `path`; None when that cannot be told.

    Source: proc(5), mountinfo.
    """
    place = os.path.realpath(path)
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            mounts = [line.split(" - ", 1) for line in file]
    except OSError:
        return None
    kinds = [kind.split()[0] for mount, kind in mounts if _unescaped(mount.split()[4]) == place]
    return kinds[-1:] == ["bpf"]  # the last hides those before


def kernel_has_bpffs() -> bool | None:
    """Return whether the kernel has a bpffs that could be mounted; None when that cannot be told."""
    try:
        with open("/proc/filesystems", encoding="ascii", errors="replace") as file:
            return any(line.split()[-1:] == ["bpf"] for line in file)
    except OSError:
        return None


def _unescaped(path: str) -> str:
    """Return a path of /proc as it is: it has white space in octal."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def remove_pin_directory(path: str) -> bool:
    """Take the directory away, with its pins and what is mounted on it; return whether there was one.

    Raises:
        OSError: EPERM, the mount is not ours to undo; ENOTEMPTY, it is a plain directory with files.
    """
    if not os.path.isdir(path):
        return False
    while os.path.ismount(path):
        _unmount(path)
    os.rmdir(path)
    return True


def _unmount(path: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
