"""A small text that outlives the daemon."""

from collections.abc import Iterable
from typing import Protocol


class Memory(Protocol):
    """One file in the state directory, or whatever stands in for it."""

    async def load(self) -> bytes | None:
        """Return what was saved last, or None; a file that cannot be read counts as none, and is said."""

    async def save(self, parts: Iterable[bytes]) -> None:
        """Replace it by these parts, each asked for in its turn.

        Atomically; a failure is said, and the old text stays.
        """
