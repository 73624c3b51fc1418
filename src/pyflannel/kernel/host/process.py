"""This process: its notifications to the service manager, and its memory allocator."""

import contextlib
import ctypes
import os
import socket


def notify(text: str) -> bool:
    """Send assignments such as `READY=1` to NOTIFY_SOCKET; return whether somebody was told.

    Without a service manager, or when it does not listen, nothing happens: a daemon runs all the same.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager:
            manager.connect(address)
            manager.sendall(text.encode())
    except OSError:
        return False
    return True


def watchdog_s() -> float | None:
    """Return the seconds after which the service manager takes a silent process for dead; None for never.

    Source: sd_watchdog_enabled(3).
    """
    limit = os.environ.get("WATCHDOG_USEC", "")
    if os.environ.get("WATCHDOG_PID") not in (None, str(os.getpid())):
        return None  # meant for the process that started us
    return int(limit) / 1e6 if limit.isdecimal() and int(limit) else None


# malloc.h of glibc
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

_LARGE = 128 << 10
"""Octets of a block that is mapped for itself, and unmapped when it is freed: glibc's own beginning.

It would move the bound up to the largest block that was freed; what ten thousand peers take for a moment then
comes from the heap and leaves holes there.
"""

_LIBRARY = ctypes.CDLL(None)


def keep_large_blocks_apart() -> None:
    """Keep large blocks out of the heap, and those of all threads in one."""
    with contextlib.suppress(AttributeError):
        _LIBRARY.mallopt(_M_MMAP_THRESHOLD, _LARGE)
        _LIBRARY.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Give the holes of the heap back; it takes a fifth of a millisecond when there are many."""
    with contextlib.suppress(AttributeError):
        _LIBRARY.malloc_trim(0)
