"""A program that runs inside a sandbox."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from pyflannel.errors import LabError
from pyflannel.lab.waiting import wait_until

_ENTRY_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 60.0


class Program:
    """A running program: signals reach the program itself, not the `nsenter` that brought it in.

    Attributes:
        name: what it is called in messages.
        log: file that takes its standard output and error, or None.
    """

    def __init__(self, name: str, entry: subprocess.Popen[str], *, log: Path | None) -> None:
        self.name = name
        self.log = log
        self._entry = entry
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The program's process id, as the machine outside the sandbox counts.

        Raises:
            LabError: it ended before anybody asked.
        """
        if (pid := self._find_pid()) is None:
            raise LabError(f"{self.name} ended before it could be found", hint=self.last_words())
        return pid

    @property
    def exit_code(self) -> int | None:
        """How it ended: the exit status, or None while it runs."""
        return self._entry.poll()

    def send(self, signal_number: int) -> None:
        """Send the program a signal; one that has ended already gets none."""
        if self.exit_code is not None or (pid := self._find_pid()) is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)

    def pause(self) -> None:
        """Let it stand still until it is told to go on; return when each of its threads does.

        A thread that does not yet may answer somebody. nsenter stops itself along with its child.
        """
        self.send(signal.SIGSTOP)
        wait_until(
            lambda: self.exit_code is not None or (_is_stopped(self.pid) and _is_stopped(self._entry.pid)),
            what=f"{self.name} stands still",
            deadline_s=_STOP_DEADLINE_S,
        )

    def go_on(self) -> None:
        """Let it go on after `pause`: nsenter does, and lets its child."""
        self._entry.send_signal(signal.SIGCONT)
        wait_until(
            lambda: self.exit_code is not None or not _is_stopped(self.pid),
            what=f"{self.name} goes on",
            deadline_s=_STOP_DEADLINE_S,
        )

    def wait(self, deadline_s: float = _STOP_DEADLINE_S) -> int:
        """Return the exit status.

        Raises:
            LabError: it still runs after `deadline_s` seconds.
        """
        try:
            return self._entry.wait(deadline_s)
        except subprocess.TimeoutExpired as error:
            raise LabError(
                f"{self.name} still runs after {deadline_s:g} s", hint=self.last_words()
            ) from error

    def stop(self, deadline_s: float = _STOP_DEADLINE_S) -> int:
        """Ask it to end by SIGTERM and return its exit status.

        Raises:
            LabError: it did not end in time.
        """
        self.send(signal.SIGTERM)
        return self.wait(deadline_s)

    def kill(self) -> None:
        """End it by SIGKILL and wait until it is gone."""
        self.send(signal.SIGKILL)
        self.wait()

    def communicate(self, text: str | None, timeout_s: float) -> tuple[str, str]:
        """Feed standard input, and return what came out and on standard error once the program ended.

        Raises:
            LabError: it did not end in `timeout_s` seconds, and was killed.
        """
        try:
            return self._entry.communicate(text, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise LabError(
                f"{self.name} did not end in {timeout_s:g} s", hint="Give it more time, or look why it hangs."
            ) from error

    def last_words(self, lines: int = 8) -> str:
        """Return the end of its log, for an error message."""
        if self.log is None or not self.log.exists():
            return "It left no log."
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) or "Its log is empty."

    def _find_pid(self) -> int | None:
        """Return the process id, or None when the program ended before it was asked for."""
        if self._pid is None:
            entered = f"{self.name} enters its sandbox"
            wait_until(self._has_entered, what=entered, deadline_s=_ENTRY_DEADLINE_S)
        return self._pid

    def _has_entered(self) -> bool:
        try:
            children = Path(f"/proc/{self._entry.pid}/task/{self._entry.pid}/children").read_text().split()
        except FileNotFoundError:
            children = []
        if children:
            self._pid = int(children[0])
        return self._pid is not None or self._entry.poll() is not None


def _is_stopped(pid: int) -> bool:
    """Return whether every thread was stopped; the state stands behind its name, which may have brackets."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # a thread just ended
        return False
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
