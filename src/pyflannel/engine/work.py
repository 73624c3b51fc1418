"""The record of what is to be done: the keys whose object may differ from the plan.

A change of the plan marks a few keys. A look at the host finds keys that differ. A refusal keeps its key
here, for later. Each mark and each write has a generation, and of two facts about one key the later one
counts: a look that began before a key was marked or written knows nothing of that.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pyflannel.model.item import Item, Key
from pyflannel.model.state import Refusal


@dataclass(slots=True)
class Mark:
    """What is known of one key.

    Attributes:
        generation: of the latest change or write of the key.
        found: the object at the key, as far as known; None if there is none.
        is_known: False while only a look can tell the object.
        is_planned: the difference follows from a change of the plan. Otherwise it is damage.
        due_s: time of the clock before which nothing is done; infinite while something else must happen
            first.
        attempts: how often it was refused in succession.
        refusal: the latest refusal; None if it was not refused.
        tried_s: time of the clock of the latest refusal.
        is_done: nothing is left to do. The mark remains until the looks that began before it have ended.
    """

    generation: int
    found: Item | None
    is_known: bool
    is_planned: bool
    due_s: float = -math.inf
    attempts: int = 0
    refusal: Refusal | None = None
    tried_s: float = -math.inf
    is_done: bool = False

    @property
    def is_waiting(self) -> bool:
        """It waits although it was not refused: for the end of a pause, or for an object that it requires."""
        return self.due_s > -math.inf and self.refusal is None


class Work:
    """Marks by key. One task writes them."""

    def __init__(self) -> None:
        self._marks: dict[Key, Mark] = {}
        self._looks: list[int] = []
        self.generation = 0

    def plan(self, key: Key, previous: Item | None, *, is_known: bool) -> None:
        """Mark a key whose planned object has changed.

        Args:
            key: of the object.
            previous: the planned object before the change. It is in place, unless the record says otherwise.
            is_known: False if a look must tell what is in place.
        """
        self.generation += 1
        mark = self._marks.get(key)
        if mark is None or mark.is_done:
            found = previous if mark is None else mark.found
            self._marks[key] = Mark(self.generation, found, is_known, is_planned=True)
        else:
            is_known = mark.is_known and is_known
            self._marks[key] = Mark(self.generation, mark.found, is_known, is_planned=True)

    def begin_look(self) -> int:
        """Return the generation of what is known now, when a look begins."""
        self._looks.append(self.generation)
        return self.generation

    def end_look(self, generation: int) -> None:
        """Forget what only this look could have missed."""
        self._looks.remove(generation)
        oldest = min(self._looks, default=math.inf)
        self._marks = {
            key: mark for key, mark in self._marks.items() if not mark.is_done or mark.generation > oldest
        }

    def is_later(self, key: Key, generation: int) -> bool:
        """Return whether the key was changed or written after `generation`."""
        mark = self._marks.get(key)
        return mark is not None and mark.generation > generation

    def get(self, key: Key) -> Mark | None:
        """Return the mark of a key; None if nothing is left to do there."""
        mark = self._marks.get(key)
        return None if mark is None or mark.is_done else mark

    def settle(self, key: Key, found: Item | None, since: int) -> None:
        """Note that the object at a key is now `found`, as it was wanted at generation `since`.

        If the key was changed later, its mark stays, and knows what is in place.
        """
        self.generation += 1
        mark = self._marks.get(key)
        if mark is not None and mark.generation > since and not mark.is_done:
            mark.found, mark.is_known = found, True
        elif self._looks:
            self._marks[key] = Mark(self.generation, found, True, is_planned=False, is_done=True)
        elif mark is not None:
            del self._marks[key]

    def postpone(
        self,
        key: Key,
        found: Item | None,
        since: int,
        *,
        is_planned: bool,
        due_s: float = math.inf,
        refusal: Refusal | None = None,
        tried_s: float = -math.inf,
    ) -> None:
        """Keep a key for later: its operation was refused, or must wait. A later change of the key wins."""
        mark = self._marks.get(key)
        if mark is not None and mark.generation > since and not mark.is_done:
            mark.found, mark.is_known = found, True
            return
        attempts = 0 if mark is None or mark.is_done else mark.attempts
        if mark is None or mark.is_done:
            self.generation += 1
        generation = self.generation if mark is None or mark.is_done else mark.generation
        attempts += refusal is not None
        self._marks[key] = Mark(generation, found, True, is_planned, due_s, attempts, refusal, tried_s)

    def release(self) -> None:
        """Make due what waits for an object that it requires: some object is in place now."""
        for _, mark in self.open():
            if mark.is_waiting and mark.due_s == math.inf:
                mark.due_s = -math.inf

    def due(self, now: float) -> list[tuple[Key, Mark]]:
        """Return what can be worked on without a look, in the order in which it was marked."""
        return [(key, mark) for key, mark in self.open() if mark.is_known and mark.due_s <= now]

    def next_due_s(self) -> float:
        """Return when something is due next; infinite if nothing ever is by itself."""
        return min((mark.due_s for _, mark in self.open() if mark.is_known), default=math.inf)

    def open(self) -> Iterator[tuple[Key, Mark]]:
        """Yield the keys on which something is left to do."""
        return ((key, mark) for key, mark in self._marks.items() if not mark.is_done)

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The latest refusal of each key that was refused."""
        return tuple(mark.refusal for _, mark in self.open() if mark.refusal is not None)

    @property
    def is_empty(self) -> bool:
        """Nothing is left to do."""
        return next(self.open(), None) is None
