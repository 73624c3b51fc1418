"""The directory of a lab: its name, its lock, and the removal of the lab."""

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pyflannel.errors import BusyError, LabError, UsageError
from pyflannel.lab.program import end_processes, first_processes, remove_cgroups, remove_roots, thaw
from pyflannel.lab.waiting import POLL_S

# the directory is not in /tmp or /run, because Docker's images may be too large for memory
ROOT = Path("/var/tmp/flannel-lab")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,19}")
_KEPT = "kept"
PATIENCE_S = 0.5
"""Time in seconds for other programs to release a lock that they hold only to examine a lab."""


class LabDirectory:
    """The directory of one lab below ROOT. Only the process that holds the lock of the directory may change
    the lab.

    The lock is released when the process that holds it exits. Therefore a lab without a lock was kept, or
    remained after a killed run.
    """

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} is not a valid name for a lab",
                hint="Use up to 20 lower-case letters, digits and dashes, beginning with a letter.",
            )
        self.name = name
        self.path = ROOT / name
        self._lock: int | None = None

    def acquire(self) -> None:
        """Create the directory if necessary, and acquire the lock. Wait for a program that removes remains.

        A program that removes remains would treat the new directory as remains while the directory has no
        lock.

        Raises:
            BusyError: a running program holds the lock.
            LabError: the directory cannot be created.
        """
        with without_removals():
            self._acquire()

    def _acquire(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LabError(
                    f"{self.path} cannot be created: {error.strerror}", hint="Run the lab as root."
                ) from error
            if self.take():
                return
            if time.monotonic() >= end:
                raise BusyError(
                    f"lab {self.name} is in use by another program",
                    hint="Wait until that program exits, or choose another name.",
                )
            time.sleep(POLL_S)

    def take(self) -> bool:
        """Acquire the lock and return True; return False if the directory does not exist, or if another
        program holds the lock.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        # the directory was removed, and perhaps created again, before the lock was taken
        if not self._is_current(descriptor):
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def release(self) -> None:
        """Release the lock. The lab is not changed."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def mark_kept(self) -> None:
        """Record that the lab is kept when its program exits."""
        (self.path / _KEPT).touch()

    @property
    def is_kept(self) -> bool:
        """True if the lab is kept. The value is valid only while no program uses the lab."""
        return (self.path / _KEPT).exists()

    def hosts(self) -> dict[str, int]:
        """Return the first process of each running sandbox, by name."""
        return first_processes(self.path)

    def clear(self) -> None:
        """End every process, and remove every control group and file of the lab, except the directory.

        Raises:
            LabError: a removal failed; the message names the object.
        """
        thaw(self.name)
        end_processes(self.path)
        remove_cgroups(self.name)
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def remove(self) -> None:
        """Clear the lab, remove the directory and release the lock."""
        self._remove()
        with without_removals():
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
    """Return the names of the labs that have a directory, sorted."""
    try:
        return sorted(name for name in os.listdir(ROOT) if _NAME.fullmatch(name))
    except FileNotFoundError:
        return []


def remove_remains() -> None:
    """Remove the remains of all killed runs. `flannelctl lab down` reports files that cannot be removed."""
    with without_removals():
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
    """Remove the objects that all labs share, if no lab exists. No lab may begin while this function runs."""
    if not lab_names():
        remove_roots()
        with contextlib.suppress(OSError):
            ROOT.rmdir()


@contextlib.contextmanager
def without_removals() -> Iterator[None]:
    """Prevent the removal of remains and shared objects by other programs during the block.

    Of two labs that begin at the same time, the second lab waits for the first lab. The first lab may be
    removing the remains of a lab with the name of the second lab. Without the wait, the second lab would find
    that its name is in use.
    """
    descriptor = os.open(ROOT.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
