"""The command line of this process, which `ps` shows to every user of the host."""

import os
from pathlib import Path

from pyflannel.model.secret import Secret

_PROCESS = Path("/proc/self")
_ARG_START = 48
_STATE = 3
"""Field numbers in /proc/PID/stat, proc(5). The name before the state may contain spaces."""


def hide_on_command_line(secret: Secret) -> bool:
    """Overwrite `secret` in the command line of this process with asterisks; return whether it is hidden.

    A word is overwritten if it equals `secret` or ends in `=` and `secret`. A process in a sandbox may not be
    allowed to write its own memory. The kernel reads /proc/PID/cmdline from the memory of the process, so the
    secret is visible only in the milliseconds between exec and this call. Another exec would not be faster.
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
