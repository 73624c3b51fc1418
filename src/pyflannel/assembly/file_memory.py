"""A Memory in one file of the state directory."""

import asyncio
import logging
from pathlib import Path

from pyflannel.kernel.atomic_file import replace_file

log = logging.getLogger(__name__)


class FileMemory:
    """One small file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def load(self) -> bytes | None:
        """Return the file's octets, or None."""
        try:
            return await asyncio.to_thread(self._path.read_bytes)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("Could not read %s: %s", self._path, error.strerror)
            return None

    async def save(self, octets: bytes | bytearray) -> None:
        """Replace the file."""
        try:
            await asyncio.to_thread(replace_file, str(self._path), octets)
        except OSError as error:
            log.warning("Could not save the last known leases to %s: %s", self._path, error.strerror)
