"""Files that are whole at every moment: written beside, synced, renamed."""

import contextlib
import os
from typing import Self

MODE = 0o644


def replace_file(path: str, octets: bytes) -> None:
    """Make the file hold exactly this, as `Replacement` does.

    Raises:
        OSError: it could not be written.
    """
    with Replacement(path) as replacement:
        replacement.write(octets)
        replacement.finish()


class Replacement:
    """What a file is to hold, as it grows; mode 0644 whatever the umask, its directories 0755.

    Readers see the old file until `finish`, then the new. When it fails, on a full disk, the old file stays.
    There may be one writer of a path at a time.

    Raises:
        OSError: from each method; it could not be written.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._directory, name = os.path.split(os.path.abspath(path))
        os.makedirs(self._directory, mode=0o755, exist_ok=True)
        # One fixed name, so that writers that were killed leave one file and not many.
        self._temporary = os.path.join(self._directory, f".{name}.new")
        self._remove()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = open(os.open(self._temporary, flags, MODE), "wb")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the old file as it is, unless this one is finished."""
        with contextlib.suppress(OSError):
            self._file.close()
        self._remove()

    def write(self, octets: bytes) -> None:
        """Add these octets."""
        self._file.write(octets)

    def finish(self) -> None:
        """Put the new file in the place of the old."""
        self._file.flush()
        os.fchmod(self._file.fileno(), MODE)
        os.fsync(self._file.fileno())
        os.rename(self._temporary, self._path)
        _sync_directory(self._directory)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)


def _sync_directory(path: str) -> None:
    """Make the new name outlast a power failure; file systems that cannot do so keep it anyhow."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
