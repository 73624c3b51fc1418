"""The memory allocator of the C library, told to give back what a moment needed; others are let be."""

import contextlib
import ctypes

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
