"""A program on a pseudo-terminal, and the content of its screen."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte

_LOOK_S = 0.02
_ALTERNATE, _HIDDEN = ("\x1b[?1049h", "\x1b[?1049l"), ("\x1b[?25l", "\x1b[?25h")
"""The sequences that begin and end the alternate screen, and that hide and show the cursor (xterm)."""


class Terminal:
    """A program on a new terminal. The end of the block ends the program.

    Attributes:
        received: the complete output of the program.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        columns: int = 80,
        lines: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._own, theirs = pty.openpty()
        self.received = ""
        self._resize(columns, lines)
        self._attributes = termios.tcgetattr(self._own)
        own = {"TERM": "xterm-256color", "LANG": "C.UTF-8"}
        self.program = subprocess.Popen(
            command,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={"PATH": os.environ["PATH"], **(environment or {}), **own},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that the program gets SIGWINCH
        )
        os.close(theirs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.program.poll() is None:
            self.program.kill()
        self.program.wait()
        os.close(self._own)

    @property
    def text(self) -> str:
        """The screen at present, line by line."""
        self._read()
        return "\n".join(line.rstrip() for line in self._screen.display)

    @property
    def is_restored(self) -> bool:
        """True if line mode, echo, normal screen and cursor of the terminal are as before the program."""
        return termios.tcgetattr(self._own) == self._attributes and all(
            self.received.rfind(begin) < self.received.rfind(end) for begin, end in (_ALTERNATE, _HIDDEN)
        )

    def type(self, keys: str) -> None:
        """Type these characters."""
        os.write(self._own, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the window."""
        self._screen.resize(lines, columns)
        self._resize(columns, lines)

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._own, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def wait(self, is_reached: str | Callable[[str], bool], deadline_s: float = 20.0) -> str:
        """Wait until the screen contains this text, or fulfils this condition. Return the screen.

        Raises:
            AssertionError: the screen does not change as expected in time. The message contains the screen.
        """
        is_there = (lambda text: is_reached in text) if isinstance(is_reached, str) else is_reached
        end = time.monotonic() + deadline_s
        while not is_there(text := self.text):
            assert time.monotonic() < end, f"the screen does not become as expected:\n{text}"
            select.select([self._own], [], [], _LOOK_S)
        return text

    def wait_ended(self, deadline_s: float = 20.0) -> int:
        """Wait until the program ends. Return the exit code of the program."""
        end = time.monotonic() + deadline_s
        while (code := self.program.poll()) is None:
            assert time.monotonic() < end, f"the program does not end:\n{self.text}"
            self._read(_LOOK_S)
        self._read()
        return code

    def _read(self, wait_s: float = 0.0) -> None:
        while select.select([self._own], [], [], wait_s)[0]:
            try:
                data = os.read(self._own, 65536)
            except OSError:  # EIO: the program has closed the terminal
                return
            self.received += data.decode(errors="replace")
            self._stream.feed(data)
            wait_s = 0.0
