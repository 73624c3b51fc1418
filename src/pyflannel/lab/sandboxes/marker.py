"""The mark on every process of a lab, by which a later program finds them.

A process that a lab starts, and all that it starts in turn, carry the sandbox's directory in their
environment. So no list of process ids must be kept, none can be out of date, and what a killed run left is
found like the rest.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from pyflannel.errors import LabError

VARIABLE = "PYFLANNEL_SANDBOX"
_SANDBOX_DEPTH = 2
"""PID namespaces that the first process of a sandbox is in: the machine's and its own."""


def mark_of(directory: Path) -> dict[str, str]:
    """Return the environment that marks a process of the sandbox in `directory`."""
    return {VARIABLE: str(directory)}


def first_processes(lab: Path) -> dict[str, int]:
    """Return the first process of each standing sandbox of the lab in `lab`, by the sandbox's name."""
    return {
        directory.name: pid for pid, directory in _marked(lab) if directory.parent == lab and _is_first(pid)
    }


def end_processes(lab: Path, *, deadline_s: float = 60.0) -> None:
    """Kill every process of the lab and return when the kernel has taken the last one down.

    Raises:
        LabError: some still stand after `deadline_s` seconds.
    """
    end = time.monotonic() + deadline_s
    while doomed := [pid for pid, _ in _marked(lab)]:
        if time.monotonic() >= end:
            raise LabError(
                f"processes {doomed} cannot be killed", hint="Look at them with ps; the lab stays."
            )
        _kill(doomed, deadline_s)


def _kill(pids: list[int], deadline_s: float) -> None:
    """Kill these and wait: the first process of a sandbox is gone only when all the others in it are."""
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
            with contextlib.suppress(ProcessLookupError):  # has ended, and nobody asked how yet
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
    """Yield the living processes of the lab and the sandbox directory that each belongs to."""
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
            # Counted from the namespace of whoever reads: one more than our own.
            return len(ids) == _SANDBOX_DEPTH and ids[-1] == "1"
    return False
