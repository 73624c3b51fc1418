"""The journal: what the passes found and did, object by object, as far back as there is room."""

from collections import deque
from collections.abc import Sequence

from pyflannel.model.state import Operation
from pyflannel.model.status import Event, JournalEntry
from pyflannel.plan.describe import found
from pyflannel.ports import Clock

ROOM = 1000
"""So many entries are kept; they are gone with the daemon."""

NAMED_AT_ONCE = 100
"""So many objects of one pass have entries of their own, so that a start leaves room for what came before."""


class Journal:
    """The last entries, the oldest first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: deque[JournalEntry] = deque(maxlen=ROOM)

    def note(self, event: Event, operations: Sequence[Operation], cause: str = "") -> None:
        """Note what a pass did, or what it was refused and why."""
        at, because = self._clock.utc(), f": {cause}" if cause else ""
        for operation in operations[:NAMED_AT_ONCE]:
            self._entries.append(JournalEntry(at=at, event=event, found=f"{found(operation)}{because}"))
        more = len(operations) - NAMED_AT_ONCE
        if more > 0:
            self._entries.append(JournalEntry(at=at, event=event, found=f"and {more} more{because}"))

    def entries(self) -> list[JournalEntry]:
        """Return what is kept."""
        return list(self._entries)
