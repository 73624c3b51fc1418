"""Settings of the Python process that save memory, each with the resident memory that it saves.

The limits are 36 MiB at 100 leases and 50 MiB at 10,000. Measured with Python 3.11 on x86_64, in MiB:

| setting | without | with |
|---|---|---|
| OpenSSL is left out: vxlan and udp, 100 leases | 36.6, 37.3 | 31.7, 32.6 |
| OpenSSL is left out: vxlan and udp, 10,000 leases | 49.7, 53.0 | 45.1, 48.0 |
| free memory is returned: vxlan, 10,000 leases, after 2,000 others were added and removed | 55.4 | 53.1 |

`scripts/bench scale` measures both limits. These settings saved less than 0.4 MiB each, and no time: a larger
threshold of the garbage collector, a fixed mmap threshold and a single arena of the allocator.
"""

import contextlib
import ctypes
import re
import sys
from collections.abc import Mapping, Sequence

_OPENSSL = ("ssl", "_ssl", "_hashlib")

_MAY_NEED_OPENSSL = re.compile(r"https:|etcds:|^--?http\b|^FLANNELD_HTTP=", re.IGNORECASE)
"""Matches TLS to the store, and the metrics, whose library imports ssl."""

_LIBC = ctypes.CDLL(None)


def leave_out_openssl(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Prevent the import of OpenSSL in this process, unless a flag or a variable may need it.

    asyncio, the gRPC client and hashlib import OpenSSL if it is installed, and work without it. Call this
    before their first import.
    """
    variables = (f"{name}={value}" for name, value in environment.items() if name.startswith("FLANNELD_"))
    if not any(_MAY_NEED_OPENSSL.search(each) for each in (*arguments, *variables)):
        sys.modules.update(dict.fromkeys(_OPENSSL))  # type: ignore[arg-type]


def return_free_memory() -> None:
    """Return the free pages of the heap to the kernel. This takes 0.2 ms if there are many."""
    with contextlib.suppress(AttributeError):  # the C library has no such function
        _LIBC.malloc_trim(0)
