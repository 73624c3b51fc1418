"""Our own command line, as `ps` shows it to every user of the host."""

import os
from pathlib import Path

from pyflannel.model.secret import Secret

_PROCESS = Path("/proc/self")
_ARG_START = 48
_STATE = 3
"""Numbers of fields of /proc/PID/stat, proc(5); those from the state on stand behind the program's name."""


def hide_on_command_line(secret: Secret) -> bool:
    """Overwrite the words of our command line that are `secret`, or end in `=` and it, by asterisks.

    Returns whether none is left to be seen: what runs in a sandbox may not be able to write its own memory.
    The kernel reads /proc/PID/cmdline from the process's memory each time, so this hides it for good, but
    for the milliseconds from exec until here; starting anew with a variable would be no faster.
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
    """Return the address of the first word in memory, and the words."""
    _, _, fields = (_PROCESS / "stat").read_text().rpartition(") ")
    start = int(fields.split()[_ARG_START - _STATE])
    return start, (_PROCESS / "cmdline").read_bytes().split(b"\0")


def _secret_in(word: bytes, secret: bytes) -> int | None:
    if word == secret:
        return 0
    return len(word) - len(secret) if word.endswith(b"=" + secret) else None
