"""A Memory in one file of the state directory."""

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path

from pyflannel.kernel.host.atomic_file import Replacement

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

    async def save(self, parts: Iterable[bytes]) -> None:
        """Replace the file by these parts; they are written apart, so that others have their turn."""
        try:
            with await asyncio.to_thread(Replacement, str(self._path)) as replacement:
                for part in parts:
                    await asyncio.to_thread(replacement.write, part)
                await asyncio.to_thread(replacement.finish)
        except OSError as error:
            log.warning("Could not save the last known leases to %s: %s", self._path, error.strerror)
