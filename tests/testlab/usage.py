"""Processor time and memory of a process, and its end."""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyflannel.lab.waiting import wait_until


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """A process at one moment.

    Attributes:
        processor_s: processor time of all its threads so far.
        resident_mib: current memory.
        peak_mib: maximum memory.
    """

    processor_s: float
    resident_mib: float
    peak_mib: float


def usage_of(pid: int) -> Usage:
    """Return the usage of a process (proc_pid_stat(5), proc_pid_status(5))."""
    process = Path(f"/proc/{pid}")
    times = process.joinpath("stat").read_text().rpartition(")")[2].split()
    memory = dict(line.split(":", 1) for line in process.joinpath("status").read_text().splitlines())
    return Usage(
        processor_s=(int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
        resident_mib=int(memory["VmRSS"].split()[0]) / 1024,
        peak_mib=int(memory["VmHWM"].split()[0]) / 1024,
    )


def running_s(pid: int) -> float:
    """Return the processor time of a process's running threads, with nanoseconds.

    Ended threads do not count.
    """
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int(thread.joinpath("schedstat").read_text().split()[0])
    return total / 1e9


def is_running(pid: int) -> bool:
    """Return whether a process runs. A zombie does not run."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_ended(pid: int, deadline_s: float = 60.0) -> None:
    """Wait for the end of a process."""
    wait_until(lambda: not is_running(pid), what=f"the end of process {pid}", deadline_s=deadline_s)
