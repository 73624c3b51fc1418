"""The directory of pins, and the bpffs that somebody mounted on it for us."""

import ctypes
import os


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
