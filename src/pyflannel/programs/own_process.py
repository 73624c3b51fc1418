"""Functions that free memory of this process, and that hide a password on its command line.

The limits of resident memory are 36 MiB with 100 leases and 50 MiB with 10,000 leases. Memory that each
setting saves, measured with Python 3.11 on x86_64, in MiB:

| setting | without | with |
|---|---|---|
| do not import OpenSSL, measured with vxlan and with udp at 100 leases | 36.6, 37.3 | 31.7, 32.6 |
| do not import OpenSSL, measured with vxlan and with udp at 10,000 leases | 49.7, 53.0 | 45.1, 48.0 |
| return free memory, measured with vxlan at 10,000 leases after 2,000 others were removed | 55.4 | 53.1 |

`scripts/bench scale` measures both limits. These settings saved less than 0.4 MiB each, and no time, and are
not used: a fixed mmap threshold and a single arena of the allocator.
"""

import contextlib
import ctypes
import gc
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pyflannel.model.store_record import Secret

_OPENSSL = ("ssl", "_ssl", "_hashlib")

_MAY_NEED_OPENSSL = re.compile(
    r"https:|etcds:|^--?(?:http|kube-subnet-mgr)\b|^FLANNELD_(?:HTTP|KUBE_SUBNET_MGR)=", re.IGNORECASE
)
"""Matches flags and values that need OpenSSL: TLS of the store, and metrics, whose library imports ssl."""

_LIBC = ctypes.CDLL(None)


def leave_out_openssl(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Prevent the import of OpenSSL in this process, unless a flag or a variable may need it.

    asyncio, the gRPC client and hashlib import OpenSSL if it is installed, and work without it. Call this
    function before the first import of these modules.
    """
    variables = (f"{name}={value}" for name, value in environment.items() if name.startswith("FLANNELD_"))
    if not any(_MAY_NEED_OPENSSL.search(each) for each in (*arguments, *variables)):
        sys.modules.update(dict.fromkeys(_OPENSSL))  # type: ignore[arg-type]


def return_free_memory() -> None:
    """Return the free pages of the heap to the kernel. The call takes 0.2 ms if there are many free pages."""
    with contextlib.suppress(AttributeError):  # this C library does not have the function
        _LIBC.malloc_trim(0)


_YOUNG, _MIDDLE, _OLD = 700, 10, 100
"""Thresholds of the garbage collector: the values of Python, but with a tenth of the full collections."""


def collect_less() -> None:
    """Exclude the objects of modules from garbage collections, and make full collections a tenth as often.

    A full collection with 10,000 leases delays events for 40 ms, and three of them take 0.17 s of a start.
    Full collections free only objects that refer to each other, such as those of a network that ended.
    """
    gc.freeze()
    gc.set_threshold(_YOUNG, _MIDDLE, _OLD)


_PROCESS = Path("/proc/self")
_ARG_START = 48
_STATE = 3
"""Field numbers in /proc/PID/stat, proc(5). The field before the state is the name of the program, which may
contain spaces."""


def hide_on_command_line(secret: Secret) -> bool:
    """Overwrite `secret` in the command line of this process with asterisks; return whether the secret is
    hidden.

    A word is overwritten if it equals `secret` or ends in `=` and `secret`. A process in a sandbox may not be
    allowed to write its own memory. The kernel reads /proc/PID/cmdline from the memory of the process, so the
    secret is visible only in the milliseconds between exec and this call. Hiding the secret by another exec
    would not be faster.
    """
    try:
        start, words = _read_words()
        descriptor = os.open(_PROCESS / "mem", os.O_WRONLY)
    except (OSError, ValueError):
        return False
    try:
        for word in words:
            at = _secret_in(word, os.fsencode(secret.reveal()))
            if at is not None:
                os.pwrite(descriptor, b"*" * (len(word) - at), start + at)
            start += len(word) + 1
        _, words = _read_words()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return all(_secret_in(word, os.fsencode(secret.reveal())) is None for word in words)


def _read_words() -> tuple[int, list[bytes]]:
    """Return the memory address of the first word, and the words."""
    _, _, fields = (_PROCESS / "stat").read_text().rpartition(") ")
    start = int(fields.split()[_ARG_START - _STATE])
    return start, (_PROCESS / "cmdline").read_bytes().split(b"\0")


def _secret_in(word: bytes, secret: bytes) -> int | None:
    if word == secret:
        return 0
    return len(word) - len(secret) if word.endswith(b"=" + secret) else None
