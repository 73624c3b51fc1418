"""Programs that tests start and then find in /proc."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pyflannel.lab.waiting import wait_until


@contextmanager
def started(command: Sequence[str | Path], *, user: int | None = None) -> Iterator[int]:
    """Start a program, yield its process ID, and kill the program at the end. Its input stays open and empty.

    `Popen` returns when the kernel closes the descriptors of the old program (fs/exec.c, begin_new_exec). The
    kernel sets the name and the command line of the new program only after that.
    """
    with subprocess.Popen(command, stdin=subprocess.PIPE, user=user) as program:
        try:
            shown = Path(f"/proc/{program.pid}/cmdline")
            wait_until(lambda: shown.read_bytes() != b"", what=f"{shown} is not empty", deadline_s=30)
            yield program.pid
        finally:
            program.kill()
