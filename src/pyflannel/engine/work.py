"""The record of what is to be done: the keys whose object may differ from the plan.

A change of the plan marks a few keys. A look at the host finds keys that differ. A refusal keeps its key, for
later. Each mark and each write has a generation. Of two facts about one key the later one counts: a look that
began before a key was changed or written knows nothing of that.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum, auto

from pyflannel.model.item import Item, Key
from pyflannel.model.state import Refusal

Kinds = frozenset[type[Item]]


class Stage(Enum):
    """What a mark waits for."""

    OPEN = auto()
    """Nothing: an operation can be performed now."""

    UNKNOWN = auto()
    """A look. Only a look can tell what is in place."""

    BLOCKED = auto()
    """An object that it requires, or a target that cannot be read."""

    PAUSED = auto()
    """The end of a pause, because another program keeps undoing the repair."""

    REFUSED = auto()
    """The time of the next attempt."""

    DONE = auto()
    """The end of the looks that began before the object was written. Nothing is left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What is known of one key.

    Attributes:
        kind: of the object.
        generation: of the latest change or write of the key.
        stage: what it waits for.
        found: the object at the key, as far as known; None if there is none.
        is_planned: the difference follows from a change of the plan. Otherwise it is damage.
        due_s: time of the clock at which a pause or a refusal ends.
        attempts: refusals in succession.
        refusal: the latest; None if it was not refused.
        tried_s: time of the clock of the latest attempt; infinitely long ago if there was none.
        is_hastened: the next attempt was brought forward.
        hastened: attempts in succession that were.
    """

    kind: type[Item]
    generation: int = 0
    stage: Stage
    found: Item | None = None
    is_planned: bool
    due_s: float = math.inf
    attempts: int = 0
    refusal: Refusal | None = None
    tried_s: float = -math.inf
    is_hastened: bool = False
    hastened: int = 0


class Work:
    """Marks by key. One task writes them.

    Thousands of keys may be blocked while a few others change. So each use has a table of its keys.
    """

    def __init__(self) -> None:
        self._marks: dict[Key, Mark] = {}
        self._timely: dict[Key, None] = {}  # open, paused or refused: due now or at some time
        self._host_parts: dict[Key, None] = {}  # not done, and required by others
        self._refused: dict[Key, None] = {}
        self._paused: dict[Key, None] = {}
        self._done: dict[Key, None] = {}
        self._looks: list[tuple[int, Kinds]] = []
        self.generation = 0

    # What is known.

    @property
    def is_empty(self) -> bool:
        """Nothing is left to do."""
        return len(self._marks) == len(self._done)

    @property
    def is_blank(self) -> bool:
        """No key is marked, so that a look is the only knowledge."""
        return not self._marks

    @property
    def is_idle(self) -> bool:
        """Nothing is known of any key, and no look is under way: the record needs no word of a write."""
        return not self._marks and not self._looks

    @property
    def has_pauses(self) -> bool:
        """Another program keeps undoing some repair."""
        return bool(self._paused)

    def get(self, key: Key) -> Mark | None:
        """Return the mark of a key; None if nothing is left to do there."""
        mark = self._marks.get(key)
        return None if mark is None or mark.stage is Stage.DONE else mark

    def is_later(self, key: Key, generation: int) -> bool:
        """Return whether the key was changed or written after `generation`."""
        mark = self._marks.get(key)
        return mark is not None and mark.generation > generation

    def was_refused(self, key: Key) -> bool:
        """Return whether the latest operation on a key was refused: it may have taken effect all the same."""
        mark = self.get(key)
        return mark is not None and mark.tried_s > -math.inf

    def undone(self) -> Iterator[tuple[Key, Mark]]:
        """Yield each key on which something is left to do."""
        return ((key, mark) for key, mark in self._marks.items() if mark.stage is not Stage.DONE)

    def undone_host_parts(self) -> Iterator[tuple[Key, Mark]]:
        """Yield those of them whose object others may require."""
        return ((key, self._marks[key]) for key in self._host_parts)

    def refusals(self) -> Iterator[Refusal]:
        """Yield the latest refusal of each key that was refused."""
        return (refusal for key in self._refused if (refusal := self._marks[key].refusal) is not None)

    def due(self, now: float) -> list[tuple[Key, Mark]]:
        """Return what can be worked on without a look, in the order in which it was marked."""
        marks = ((key, self._marks[key]) for key in self._timely)
        return [(key, mark) for key, mark in marks if mark.stage is Stage.OPEN or mark.due_s <= now]

    def next_due_s(self) -> float:
        """Return when something is due; infinite if nothing ever is by itself."""
        marks = (self._marks[key] for key in self._timely)
        return min((-math.inf if one.stage is Stage.OPEN else one.due_s for one in marks), default=math.inf)

    # What happens.

    def change(self, key: Key, previous: Item | None, kind: type[Item], *, is_known: bool) -> None:
        """Mark a key whose planned object has changed.

        Args:
            key: of the object.
            previous: the planned object before the change. It is in place, unless the record says otherwise.
            kind: of the object.
            is_known: False if a look must tell what is in place.
        """
        self.generation += 1
        mark = self._marks.get(key)
        found = previous if mark is None else mark.found
        is_known = is_known and (mark is None or mark.stage is not Stage.UNKNOWN)
        stage = Stage.OPEN if is_known else Stage.UNKNOWN
        self._put(key, Mark(kind=kind, generation=self.generation, stage=stage, found=found, is_planned=True))

    def begin_look(self, kinds: Kinds) -> int:
        """Return the generation of what is known now, when a look at these kinds begins."""
        self._looks.append((self.generation, kinds))
        return self.generation

    def end_look(self, generation: int, kinds: Kinds) -> None:
        """Forget what only this look could have missed."""
        self._looks.remove((generation, kinds))
        for key in [key for key in self._done if self._marks[key].kind in kinds]:
            mark = self._marks[key]
            if all(
                mark.kind not in looked_at or mark.generation <= began for began, looked_at in self._looks
            ):
                self._drop(key)

    def settle(self, key: Key, found: Item | None, kind: type[Item], since: int) -> None:
        """Note that the object at a key is now `found`, as it was wanted at generation `since`.

        If the key was changed later, its mark stays, and knows what is in place.
        """
        self.generation += 1
        mark = self.get(key)
        if mark is not None and mark.generation > since:
            self._note_found(key, mark, found)
        elif any(kind in looked_at for _, looked_at in self._looks):
            done = Mark(
                kind=kind, generation=self.generation, stage=Stage.DONE, found=found, is_planned=False
            )
            self._put(key, done)
        else:
            self._drop(key)

    def lose(self, key: Key, left: Item | None, kind: type[Item]) -> None:
        """Note that a planned object was dropped with another, and `left` remains of it. It is no damage."""
        self.generation += 1
        lost = Mark(kind=kind, generation=self.generation, stage=Stage.OPEN, found=left, is_planned=True)
        self._put(key, lost)

    def postpone(self, key: Key, later: Mark, since: int) -> None:
        """Keep a key for later, with the mark `later`, whose generation and counts are filled in.

        A change of the key after generation `since` wins: then only what is in place is noted. If `later` was
        tried, only a look tells that.
        """
        mark = self.get(key)
        if mark is not None and mark.generation > since:
            if later.tried_s > -math.inf:
                self._put(key, replace(mark, stage=Stage.UNKNOWN))
            else:
                self._note_found(key, mark, later.found)
            return
        if mark is None:
            self.generation += 1
        generation = self.generation if mark is None else mark.generation
        attempts = 0 if mark is None else mark.attempts
        hastened = 0 if mark is None or not mark.is_hastened else mark.hastened + 1
        if later.stage is Stage.REFUSED:
            attempts += 1
        self._put(key, replace(later, generation=generation, attempts=attempts, hastened=hastened))

    def hasten(self, key: Key, pause_s: float) -> None:
        """Bring the next attempt at a refused key forward, because a look came soon after the latest one.

        The look may be due to that attempt itself. So of attempts in succession each is brought forward less:
        the first to `pause_s` after the latest attempt. A permanent refusal stays as it is.
        """
        mark = self._marks[key]
        if mark.refusal is not None and not mark.refusal.is_permanent:
            due_s = mark.tried_s + pause_s * 2.0 ** min(mark.hastened, 30)
            self._put(key, replace(mark, due_s=min(due_s, mark.due_s), is_hastened=True))

    def release(self) -> None:
        """Make due what may have waited for an object that is in place now: blocked keys and refused ones."""
        for key, mark in list(self.undone()):
            if mark.stage is Stage.BLOCKED:
                self._put(key, replace(mark, stage=Stage.OPEN))
            elif mark.refusal is not None and not mark.refusal.is_permanent and mark.due_s < math.inf:
                self._put(key, replace(mark, due_s=-math.inf))

    def _note_found(self, key: Key, mark: Mark, found: Item | None) -> None:
        self._put(key, replace(mark, found=found))

    def _put(self, key: Key, mark: Mark) -> None:
        self._marks[key] = mark
        stage = mark.stage
        for table, belongs in (
            (self._timely, stage in (Stage.OPEN, Stage.PAUSED, Stage.REFUSED)),
            (self._host_parts, mark.kind.IS_HOST_PART and stage is not Stage.DONE),
            (self._refused, stage is Stage.REFUSED),
            (self._paused, stage is Stage.PAUSED),
            (self._done, stage is Stage.DONE),
        ):
            if belongs:
                table[key] = None
            else:
                table.pop(key, None)

    def _drop(self, key: Key) -> None:
        for table in (self._marks, self._timely, self._host_parts, self._refused, self._paused, self._done):
            table.pop(key, None)
