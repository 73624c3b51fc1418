"""Files that are whole at every moment: written beside, synced, renamed."""

import contextlib
import os

MODE = 0o644


def replace_file(path: str, octets: bytes | bytearray) -> None:
    """Make the file hold exactly this, mode 0644 whatever the umask; make its directories, 0755.

    Readers see the old file or the new, never a part. When it fails, on a full disk, the old file stays.
    There may be one writer of a path at a time.

    Raises:
        OSError: it could not be written.
    """
    directory, name = os.path.split(os.path.abspath(path))
    os.makedirs(directory, mode=0o755, exist_ok=True)
    temporary = os.path.join(directory, f".{name}.new")
    # One fixed name, so that writers that were killed leave one file and not many.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)
    try:
        _write(temporary, octets)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(directory)


def _write(path: str, octets: bytes | bytearray) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    with open(descriptor, "wb") as file:
        os.fchmod(descriptor, MODE)
        file.write(octets)
        file.flush()
        os.fsync(descriptor)


def _sync_directory(path: str) -> None:
    """Make the new name outlast a power failure; file systems that cannot do so keep it anyhow."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
