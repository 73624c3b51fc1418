"""The directory of a lab: its name, its lock, and all that its end must remove."""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pyflannel.errors import BusyError, LabError, UsageError
from pyflannel.lab.program import end_processes, first_processes, remove_cgroups, remove_roots
from pyflannel.lab.waiting import POLL_S

ROOT = Path("/var/tmp/flannel-lab")  # not /tmp nor /run: Docker's images may be too large for memory
_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_KEPT = "kept"
PATIENCE_S = 0.5
"""Who only looks at a lab holds its lock for a moment."""


class LabDirectory:
    """One lab's directory below ROOT; whoever holds the lock on it may change the lab.

    The lock goes with the process that took it, so a lab without one was kept on purpose, or is the remains
    of a run that was killed.
    """

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is no name for a lab",
                hint="Use up to 20 lower-case letters, digits and dashes, a letter first.",
            )
        self.name = name
        self.path = ROOT / name
        self._lock: int | None = None

    def acquire(self) -> None:
        """Make the directory if need be, and take the lock; wait for whoever removes remains.

        They take a directory without a lock for remains, as ours is for a moment.

        Raises:
            BusyError: a running program holds it.
            LabError: the directory cannot be made.
        """
        with nobody_removes():
            self._acquire()

    def _acquire(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                what = f"no directory {self.path}: {error.strerror}"
                raise LabError(what, hint="The lab needs root.") from error
            if self.take():
                return
            if time.monotonic() >= end:
                raise BusyError(
                    f"lab {self.name} is in use by another program",
                    hint="Wait until it ends, or choose another name.",
                )
            time.sleep(POLL_S)

    def take(self) -> bool:
        """Take the lock and return True; False when there is no directory, or somebody else has the lock."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        if not self._is_current(descriptor):  # it was removed, and perhaps made again, meanwhile
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def release(self) -> None:
        """Let the lock go; the lab stays as it is."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def mark_kept(self) -> None:
        """Note that the lab stays on purpose when its program ends."""
        (self.path / _KEPT).touch()

    @property
    def is_kept(self) -> bool:
        """Whether it stays on purpose; of meaning only while no program uses the lab."""
        return (self.path / _KEPT).exists()

    def hosts(self) -> dict[str, int]:
        """Return the first process of each sandbox that stands, by name."""
        return first_processes(self.path)

    def clear(self) -> None:
        """End every process, and remove every control group and file of the lab, but not the directory.

        Raises:
            LabError: something resists; the message names it.
        """
        end_processes(self.path)
        remove_cgroups(self.name)
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def remove(self) -> None:
        """Clear the lab, remove the directory and let the lock go."""
        self._remove()
        with nobody_removes():
            _remove_what_is_shared()

    def _remove(self) -> None:
        try:
            self.clear()
            self.path.rmdir()
        finally:
            self.release()

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False


def lab_names() -> list[str]:
    """Return the names of the labs that have a directory, in order."""
    try:
        return sorted(name for name in os.listdir(ROOT) if _NAME.fullmatch(name))
    except FileNotFoundError:
        return []


def remove_remains() -> None:
    """Remove what killed runs left, under whatever name; what resists is left to `flannelctl lab down`."""
    with nobody_removes():
        for name in lab_names():
            home = LabDirectory(name)
            if not home.take():
                continue
            if home.is_kept:
                home.release()
            else:
                with contextlib.suppress(LabError):
                    home._remove()
        _remove_what_is_shared()


def _remove_what_is_shared() -> None:
    """Remove what labs have in common, if none stands; nobody begins one meanwhile."""
    if not lab_names():
        remove_roots()
        with contextlib.suppress(OSError):
            ROOT.rmdir()


@contextlib.contextmanager
def nobody_removes() -> Iterator[None]:
    """Hold off whoever removes remains, or what labs share, for the length of a block; wait for one who does.

    Of two labs that begin in the same moment, the second waits for the first: what it removes may have the
    name of the second, which would find it in use.
    """
    descriptor = os.open(ROOT.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
