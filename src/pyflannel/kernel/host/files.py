"""Files: atomic writes, the Target of planned files, and the saved state of the daemon."""

import asyncio
import contextlib
import errno
import logging
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from pyflannel.errors import TargetError, in_words, is_permanent, target_errors
from pyflannel.kernel.host.inotify import OVERFLOWED, UNWATCHED_HINT, Event, Inotify
from pyflannel.model.host import HostFile
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.ports import Announce, ChangeChannel, in_thread, performed

MODE = 0o644
_PRIVATE = 0o600
"""Mode of the file of the last known leases. Only the owner of this file may read it, because the network
config may contain a preshared key."""


def replace_file(path: str, data: bytes, mode: int = MODE) -> None:
    """Replace the content of the file, in the same way as `Replacement`.

    Raises:
        OSError: the file could not be written.
    """
    with Replacement(path, mode) as replacement:
        replacement.write(data)
        replacement.finish()


class Replacement:
    """The new content of a file. The umask has no effect on its mode; new directories have mode 0755.

    Readers see the old file until `finish`, and then the new file. If a write fails, for example on a full
    disk, the old file is kept. A path must have only one writer at a time.

    Raises:
        OSError: raised by each method if the file could not be written.
    """

    def __init__(self, path: str, mode: int = MODE) -> None:
        self._path = path
        self._mode = mode
        self._directory, name = os.path.split(os.path.abspath(path))
        os.makedirs(self._directory, mode=0o755, exist_ok=True)
        # The name is fixed, so that killed processes leave at most one temporary file.
        self._temporary = os.path.join(self._directory, f".{name}.new")
        self._remove()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = open(os.open(self._temporary, flags, mode), "wb")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Keep the old file, unless `finish` has replaced it."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._remove()

    def write(self, data: bytes) -> None:
        """Add these bytes."""
        self._file.write(data)

    def finish(self) -> None:
        """Replace the old file with the new file."""
        self._file.flush()
        os.fchmod(self._file.fileno(), self._mode)
        os.fsync(self._file.fileno())
        os.rename(self._temporary, self._path)
        _sync_directory(self._directory)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)


KEY_MODE = 0o600
"""Mode of a file with a secret key."""

_OTHERS = 0o077
_LARGEST_KEY_FILE = 4096  # bytes


def next_path(path: Path) -> Path:
    """Return the file of the next key, beside the key file at `path`."""
    return path.with_name(f"{path.name}.next")


def read_key_file(path: Path, name: str, *, if_exposed: str) -> bytes | None:
    """Return the content of a file with a secret key; None if the file does not exist.

    Args:
        path: path of the file.
        name: name of the file in messages, for example `the WireGuard key file`.
        if_exposed: the remedy if other users may know the key.

    Raises:
        TargetError: the file is unreadable, belongs to another user, or may be read by other users.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            mode = stat.S_IMODE(status.st_mode)
            if not stat.S_ISREG(status.st_mode):
                raise unusable_key(path, name, "not a regular file", "Move the file to another directory.")
            if mode & _OTHERS:
                why = f"its mode is {mode:04o}, so other users may know the key"
                raise unusable_key(path, name, why, if_exposed)
            if status.st_uid not in (0, os.geteuid()):
                why = f"its owner is user {status.st_uid}"
                raise unusable_key(path, name, why, f"Run `chown root {path}`.")
            return os.read(descriptor, _LARGEST_KEY_FILE)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise unusable_key(path, name, in_words(error), "Make the file readable for flanneld.") from error


_LARGEST_FILE = 1 << 28  # in bytes; 65,536 leases need an eighth of this size


def read_end(path: Path, most: int = _LARGEST_FILE, *, follows_links: bool = False) -> bytes:
    """Return the last bytes of a regular file, at most `most` bytes.

    Root reads files in directories of the user flanneld. A file of the user flanneld must not lead root to
    another file by a link, block the program as a FIFO, or fill the memory.

    Raises:
        OSError: the file is unreadable, is a link, or is not a regular file.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follows_links else os.O_NOFOLLOW)
    with open(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        file.seek(max(0, status.st_size - most))
        return file.read(most)


def unusable_key(path: Path, name: str, why: str, hint: str) -> TargetError:
    """Return the error of a key file that cannot be used."""
    return TargetError(f"{name} {path} is unusable: {why}", hint=hint)


def _sync_directory(path: str) -> None:
    """Sync the directory, so that the new file name survives a power failure. Errors of file systems that
    do not support this are ignored.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


log = logging.getLogger(__name__)


class FileMemory:
    """One small file that is replaced atomically.

    Args:
        path: the file.
        content: name of the content in log lines.
        is_vital: True to raise an error if the file exists and is unreadable, instead of starting without it.
    """

    def __init__(self, path: Path, *, content: str = "the last known leases", is_vital: bool = False) -> None:
        self._path = path
        self._content = content
        self._is_vital = is_vital
        self._complaint: str | None = None

    async def load(self) -> bytes | None:
        """Return the bytes of the file; None if it does not exist or is unreadable."""
        try:
            return await in_thread(self._path.read_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            if self._is_vital:
                raise TargetError.of(
                    f"{self._path} cannot be read",
                    error,
                    hint="Make the file readable, then restart flanneld.",
                ) from error
            log.warning("Could not read %s: %s", self._path, error.strerror)
            return None

    async def save(self, parts: Iterable[bytes]) -> bool:
        """Replace the file by these parts, between which other tasks can run. Log a failure only once.

        Return whether the file was replaced.
        """
        try:
            with await in_thread(Replacement, str(self._path), _PRIVATE) as replacement:
                for part in parts:
                    await in_thread(replacement.write, part)
                await in_thread(replacement.finish)
        except OSError as error:
            if error.strerror != self._complaint:
                log.warning("Could not save %s to %s: %s", self._content, self._path, error.strerror)
            self._complaint = error.strerror
            return False
        if self._complaint is not None:
            log.info(
                "Saved %s to %s, because this problem ended: %s", self._content, self._path, self._complaint
            )
        self._complaint = None
        return True


_COALESCE_S = 0.005
_LARGEST = 1 << 20  # in bytes; the files of pyflannel are far smaller

_OTHER = "\0"
"""Text of an object that is not a readable regular file of mode 0644. This text differs from every planned
text."""


class FileTarget:
    """A Target for HostFile items.

    Within its `with` block, this target receives every change of the files in the last snapshot, even while
    no task waits. If other programs use all inotify instances of the kernel, this target receives no changes,
    and requests an instance at each scan.
    """

    kinds = (HostFile,)

    def __init__(self) -> None:
        self._inotify: Inotify | None = None
        self._hears = asyncio.Event()
        self._has_complained = False
        self._names: dict[int, set[str]] = {}

    async def __aenter__(self) -> Self:
        self._listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    async def snapshot(self, desired: State) -> State:
        """Return the planned files in their current state. Missing files are omitted."""
        paths = [item.path for item in desired.of_type(HostFile)]
        if (inotify := self._listen()) is not None:
            # watches begin before the files are read, so that no change is missed
            self._watch(inotify, paths)
        with target_errors(
            "a file cannot be read", hint="Check the file system of the planned files, and dmesg."
        ):
            found = await in_thread(lambda: [_read(path) for path in paths])
        return State.collect(item for item in found if item is not None)

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Write or delete the files, in order."""
        return await performed(operations, in_thread(_apply, operations))

    def changes(self) -> ChangeChannel:
        """Open a channel of changes to the files of the last snapshot."""
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        await self._hears.wait()
        inotify = self._inotify
        assert inotify is not None
        while True:
            if self._concerned(await inotify.read()):
                await asyncio.sleep(_COALESCE_S)
                inotify.take()
                announce()

    def _listen(self) -> Inotify | None:
        """Return the inotify instance. If the kernel has none left, log this once and return None."""
        if self._inotify is None:
            try:
                self._inotify = Inotify()
                self._hears.set()
            except OSError as error:
                self._complain(error)
        return self._inotify

    def _complain(self, error: OSError) -> None:
        """Log only once that files cannot be watched."""
        if not self._has_complained:
            log.warning(
                "Could not watch files for changes, so they are checked at each audit instead: %s. %s",
                in_words(error),
                UNWATCHED_HINT,
            )
        self._has_complained = True

    def _watch(self, inotify: Inotify, paths: Sequence[str]) -> None:
        """Watch the directory of each path or, while it does not exist, its nearest existing parent.

        This method is called before each scan, so that a directory that was deleted and created again is
        watched again.
        """
        names: dict[int, set[str]] = {}
        has_failed = False
        for path in paths:
            directory, name = os.path.split(os.path.abspath(path))
            try:
                while (watch := _add(inotify, directory)) is None and directory != "/":
                    directory, name = os.path.split(directory)
            except OSError as error:
                self._complain(error)
                has_failed = True
            else:
                if watch is not None:
                    names.setdefault(watch, {""}).add(name)  # "" is the directory itself
        for watch in self._names.keys() - names.keys():
            inotify.remove(watch)
        self._names = names
        self._has_complained = has_failed

    def _concerned(self, events: Sequence[Event]) -> bool:
        """Return whether an event concerns a planned file, or a directory on its path."""
        return any(
            event.mask & OVERFLOWED or event.name in self._names.get(event.watch, ()) for event in events
        )


def _add(inotify: Inotify, directory: str) -> int | None:
    """Watch a directory and return the number of the watch; None if the directory does not exist yet.

    Raises:
        OSError: the limit of watches is reached, or there is no permission to read the directory.
    """
    try:
        return inotify.add(directory)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _read(path: str) -> HostFile | None:
    """Return the file at the path.

    Raises:
        OSError: the file is currently unreadable.
    """
    try:
        # O_NONBLOCK: the opening of a FIFO does not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        # the file is a link, unreadable or a socket
        if error.errno in (
            errno.ELOOP,
            errno.EACCES,
            errno.ENXIO,
        ):
            return HostFile(path=path, text=_OTHER)
        raise
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) != MODE:
            return HostFile(path=path, text=_OTHER)
        with open(descriptor, "rb", closefd=False) as file:
            return HostFile(path=path, text=file.read(_LARGEST).decode(errors="surrogateescape"))
    finally:
        os.close(descriptor)


def _apply(operations: Sequence[Operation]) -> list[Refusal]:
    return [refusal for operation in operations if (refusal := _perform(operation)) is not None]


def _perform(operation: Operation) -> Refusal | None:
    try:
        match operation:
            case Add(HostFile() as file) | Replace(_, HostFile() as file):
                replace_file(file.path, file.text.encode(errors="surrogateescape"))
            case Remove(HostFile() as file):
                _delete(file.path)
            case _:
                raise TypeError(f"not an operation on a file: {operation!r}")
    except OSError as error:
        return _refusal(operation, error, file.path)
    return None


def _delete(path: str) -> None:
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return


def _refusal(operation: Operation, error: OSError, path: str) -> Refusal:
    directory = os.path.dirname(path)
    hints = {
        errno.ENOSPC: f"Free space on the file system of {directory}. The old file is unchanged.",
        errno.EDQUOT: f"Free space on the file system of {directory}. The old file is unchanged.",
        errno.EROFS: f"Mount the file system of {directory} writable, or choose another path.",
        errno.EISDIR: f"{path} is a directory: move or remove it.",
        errno.ENOTDIR: f"A part of the path {path} is not a directory: move or remove it.",
        errno.EACCES: f"Run as root, or let this user write to {directory}.",
        errno.EPERM: f"Run as root; look at the attributes of {directory} with lsattr.",
    }
    return Refusal(
        operation=operation,
        cause=in_words(error),
        hint=hints.get(error.errno or 0, f"Look at the file system of {directory}."),
        is_permanent=is_permanent(error.errno),
    )
