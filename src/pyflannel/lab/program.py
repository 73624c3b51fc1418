"""Programs in a sandbox. This module contains the mark of these programs, their control groups, and the
parsing of commands in systemd units.
"""

import contextlib
import os
import re
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from pyflannel.errors import LabError
from pyflannel.lab.waiting import wait_until

# EnvironmentFile and ExecStart of a unit, interpreted in the same way as by systemd.
#
# Source: systemd.exec(5), EnvironmentFile; systemd.service(5), Command lines.

_ASSIGNMENT = re.compile(r"\s*(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)")
_BRACED = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
_WHOLE_WORD = re.compile(r"\$(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


def read_environment_file(text: str) -> dict[str, str]:
    """Return the variables of an EnvironmentFile. Quotes are removed, and nothing is expanded.

    Comments and other lines that are not assignments are ignored.
    """
    variables = {}
    for line in text.splitlines():
        if match := _ASSIGNMENT.fullmatch(line):
            variables[match["name"]] = _unquoted(match["value"].strip())
    return variables


def expand(exec_start: str, variables: Mapping[str, str]) -> list[str]:
    """Return the words of a command line.

    `${NAME}` is replaced by the value of the variable, also inside a word. `$NAME` as a separate word is
    split at white space into any number of words. An unset variable is empty.
    """
    words = []
    for word in shlex.split(exec_start):
        if match := _WHOLE_WORD.fullmatch(word):
            words += shlex.split(variables.get(match["name"], ""))
        else:
            words.append(_BRACED.sub(lambda found: variables.get(found["name"], ""), word))
    return words


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


# The mark on every process of a lab, by which a later program finds it.
#
# The environment of every process of a lab, and of its children, contains the directory of its sandbox.
# Therefore no list of process IDs is needed, and the processes of a killed run are found like all others.

VARIABLE = "PYFLANNEL_SANDBOX"
_SANDBOX_DEPTH = 2
"""Number of PID namespaces of the first process of a sandbox. The two namespaces are the namespace of the
machine and the namespace of the sandbox."""


def mark_of(directory: Path) -> dict[str, str]:
    """Return the environment that marks a process of the sandbox in `directory`."""
    return {VARIABLE: str(directory)}


def first_processes(lab: Path) -> dict[str, int]:
    """Return the first process of each running sandbox of the lab in `lab`, by name of the sandbox."""
    return {
        directory.name: pid for pid, directory in _marked(lab) if directory.parent == lab and _is_first(pid)
    }


def end_processes(lab: Path, *, deadline_s: float = 60.0) -> None:
    """Kill every process of the lab and return when the last process has exited.

    Raises:
        LabError: some processes still run after `deadline_s` seconds.
    """
    end = time.monotonic() + deadline_s
    while doomed := [pid for pid, _ in _marked(lab)]:
        if time.monotonic() >= end:
            raise LabError(
                f"processes {doomed} cannot be killed",
                hint="Examine these processes with ps. The lab is not removed.",
            )
        _kill(doomed, deadline_s)


def _kill(pids: list[int], deadline_s: float) -> None:
    """Kill these processes and wait. The first process of a sandbox exits after all other processes in the
    sandbox.
    """
    descriptors = []
    poller = select.poll()
    try:
        for pid in pids:
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            descriptors.append(descriptor)
            poller.register(descriptor, select.POLLIN)
            # the process has exited, but its parent has not read the status yet
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        waiting = len(descriptors)
        end = time.monotonic() + deadline_s
        while waiting and time.monotonic() < end:
            for descriptor, _ in poller.poll(1000):
                poller.unregister(descriptor)
                waiting -= 1
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _marked(lab: Path) -> Iterator[tuple[int, Path]]:
    """Yield the processes of the lab, each with the directory of its sandbox."""
    beginning = f"{VARIABLE}={lab}/".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdecimal() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        for variable in environment.split(b"\0"):
            if variable.startswith(beginning):
                yield int(entry), Path(os.fsdecode(variable.partition(b"=")[2]))


def _is_first(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            ids = line.split()[1:]
            # the line has one ID for each PID namespace, from the namespace of the reader to that of the
            # process
            return len(ids) == _SANDBOX_DEPTH and ids[-1] == "1"
    return False


ROOT = "flannel-lab"
_HIERARCHIES = Path("/sys/fs/cgroup")
_EMPTY_DEADLINE_S = 30.0


def cgroup_of(directory: Path) -> str:
    """Return the control group of the sandbox in `directory`."""
    return f"{ROOT}/{directory.parent.name}/{directory.name}"


def thaw(lab: str) -> None:
    """Thaw the control groups of the lab, for example those of paused containers. With version 1 of control
    groups, a signal does not end a frozen process.
    """
    for root in _roots():
        for path, _, _ in os.walk(root / lab):
            for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if (state := Path(path, name)).exists():
                    state.write_text(value)


def remove_cgroups(lab: str) -> None:
    """Remove every control group of the lab, whose processes have exited.

    Raises:
        LabError: a group is still in use after some seconds.
    """
    for root in _roots():
        group = root / lab
        if group.is_dir():
            wait_until(
                partial(_remove, group),
                what=f"control group {group} is empty",
                deadline_s=_EMPTY_DEADLINE_S,
            )


def remove_roots() -> None:
    """Remove the parent of the control groups of all labs.

    No lab may exist or begin while this function runs, because the programs of a lab may create a group
    there.
    """
    for root in _roots():
        with contextlib.suppress(OSError):
            root.rmdir()


def _roots() -> list[Path]:
    # Version 2 of control groups has one hierarchy at the mount point. Version 1 has one hierarchy below the
    # mount point for each controller.
    return [_HIERARCHIES / ROOT, *_HIERARCHIES.glob(f"*/{ROOT}")]


def _remove(group: Path) -> bool:
    """Remove a control group and its descendants; return False if one of them is in use."""
    try:
        for path, _, _ in os.walk(group, topdown=False):
            os.rmdir(path)
    except OSError:
        return False
    return True


_ENTRY_DEADLINE_S = 60.0
_STOP_DEADLINE_S = 60.0


class Program:
    """A running program. Signals are sent to the program itself, not to the `nsenter` that started it.

    Attributes:
        name: name in messages.
        log: file that receives the standard output and error of the program, or None.
    """

    def __init__(self, name: str, entry: subprocess.Popen[str], *, log: Path | None) -> None:
        self.name = name
        self.log = log
        self._entry = entry
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The process ID of the program in the machine's PID namespace.

        Raises:
            LabError: the program exited before its process ID was read.
        """
        if (pid := self._find_pid()) is None:
            raise LabError(f"{self.name} exited before it could be found", hint=self.last_words())
        return pid

    @property
    def exit_code(self) -> int | None:
        """The exit status; None while the program runs."""
        return self._entry.poll()

    def send(self, signal_number: int) -> None:
        """Send a signal to the program, unless it has exited."""
        if self.exit_code is not None or (pid := self._find_pid()) is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal_number)

    def pause(self) -> None:
        """Stop the program until `go_on`; return when each of its threads has stopped.

        A running thread could still answer a request. nsenter stops together with its child.
        """
        self.send(signal.SIGSTOP)
        wait_until(
            lambda: self.exit_code is not None or (_is_stopped(self.pid) and _is_stopped(self._entry.pid)),
            what=f"{self.name} stops",
            deadline_s=_STOP_DEADLINE_S,
        )

    def go_on(self) -> None:
        """Continue after `pause`. nsenter continues and lets its child continue."""
        self._entry.send_signal(signal.SIGCONT)
        wait_until(
            lambda: self.exit_code is not None or not _is_stopped(self.pid),
            what=f"{self.name} continues",
            deadline_s=_STOP_DEADLINE_S,
        )

    def wait(self, deadline_s: float = _STOP_DEADLINE_S) -> int:
        """Wait for the exit of the program, and return its exit status.

        Raises:
            LabError: the program still runs after `deadline_s` seconds.
        """
        try:
            return self._entry.wait(deadline_s)
        except subprocess.TimeoutExpired as error:
            raise LabError(
                f"{self.name} still runs after {deadline_s:g} s", hint=self.last_words()
            ) from error

    def stop(self, deadline_s: float = _STOP_DEADLINE_S) -> int:
        """Terminate the program with SIGTERM and return its exit status.

        Raises:
            LabError: the program did not exit in time.
        """
        self.send(signal.SIGTERM)
        return self.wait(deadline_s)

    def kill(self) -> None:
        """Kill the program with SIGKILL and wait for its exit."""
        self.send(signal.SIGKILL)
        self.wait()

    def communicate(self, text: str | None, timeout_s: float) -> tuple[str, str]:
        """Write standard input, and return standard output and standard error when the program exits.

        Raises:
            LabError: the program did not exit within `timeout_s` seconds, and was killed.
        """
        try:
            return self._entry.communicate(text, timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            self.kill()
            raise LabError(
                f"{self.name} did not exit within {timeout_s:g} s",
                hint="Increase the deadline, or find out why the program hangs.",
            ) from error

    def last_words(self, lines: int = 8) -> str:
        """Return the end of the program's log, for an error message."""
        if self.log is None or not self.log.exists():
            return "There is no log."
        return (
            "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
            or "The log of the program is empty."
        )

    def _find_pid(self) -> int | None:
        """Return the process ID, or None if the program exited before its process ID was read."""
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
    """Return whether every thread has stopped. The state follows the name, which may contain brackets."""
    try:
        stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:  # a thread has just exited
        return False
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)
