"""Being told that a file changed, without looking again and again."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol


class FileWatch(Protocol):
    """Something that says when a file may have changed, whoever wrote it."""

    def changes(self, path: Path) -> AsyncIterator[None]:
        """Yield after each burst of writes to `path`, also when the file is created, replaced or deleted.

        It may yield once too often. Only what happens after the first `anext` began is sure to be told,
        so the caller looks at the file once by itself after that.

        Raises:
            OSError: the file's directory cannot be watched.
        """
