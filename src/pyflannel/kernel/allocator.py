"""The C library's memory allocator, told to give back what a look or a listing needed for a moment."""

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


def give_back_large_blocks() -> None:
    """Keep large blocks out of the heap, and all threads in one; other C libraries are left as they are."""
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
        mallopt(_M_ARENA_MAX, 1)
