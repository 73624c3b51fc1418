"""Which kernel runs, as exactly as the system says it."""

import contextlib
import os
import re

_UBUNTUS = "/proc/version_signature"
_DEBIANS = re.compile(r"\bDebian (\d+\.\d+\.\d+)")


def kernel_release() -> str:
    """Return the release that the kernel is made from, `5.4.233`, or what uname says, `6.1.0-18-amd64`.

    Debian and Ubuntu keep the last number of uname's release at 0, whatever fixes are in.
    """
    signature = ""
    with contextlib.suppress(OSError), open(_UBUNTUS, encoding="ascii", errors="replace") as file:
        signature = file.read()
    system = os.uname()
    return exact_release(system.release, system.version, signature)


def exact_release(release: str, version: str, signature: str) -> str:
    """Return the release that stands in uname's version or in Ubuntu's signature, or else uname's own.

    The signature is `Ubuntu 5.4.0-150.167-generic 5.4.233`, Debian's version `#1 SMP Debian 4.19.118-2`.
    """
    words = signature.split()
    if len(words) == 3 and words[0] == "Ubuntu":
        return words[2]
    found = _DEBIANS.search(version)
    return found[1] if found else release
