"""The record of work: the keys whose object may differ from the plan.

A change of the plan adds the marks of a few keys to the record. A scan of the host finds keys that differ. A
refused key remains in the record. Each mark in the record, and each write to the host, has a generation. Of
two observations of one key, the later one is used. A scan that began before a key was changed or written does
not contain that change.
"""

import math
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.item import Item, Key
from pyflannel.model.state import Refusal

Kinds = frozenset[type[Item]]


class Stage(Enum):
    """The next step for a marked key."""

    OPEN = auto()
    """An operation can be performed now."""

    UNKNOWN = auto()
    """A scan must first show which object exists."""

    BLOCKED = auto()
    """The operation waits for a required object, or for a target that cannot be read."""

    PAUSED = auto()
    """The operation waits for the end of a pause, because another program keeps undoing the repair."""

    REFUSED = auto()
    """The operation waits for the time of the next attempt."""

    DONE = auto()
    """No work is left for this key. The mark remains until the scans end that began before the object was
    written."""


class Mark(Struct, frozen=True, kw_only=True):
    """The pending work on one key.

    Attributes:
        kind: kind of the object.
        generation: generation of the latest change or write of the key.
        stage: the next step.
        found: the object at the key, as far as known; None if no object exists.
        is_planned: True if the difference results from a change of the plan; False if the difference is
            damage.
        due_s: time at which a pause ends or a refused operation is retried, in seconds of the clock.
        attempts: number of consecutive refusals.
        refusal: the latest refusal; None if no operation was refused.
        tried_s: time of the latest attempt, in seconds of the clock; minus infinity if there was no attempt.
        is_hastened: True if the next attempt was brought forward.
        hastened: number of consecutive attempts that were brought forward.
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
    """Marks by key. Only one task changes the marks.

    Thousands of keys may be blocked while a few others change. Therefore the record keeps a separate table of
    keys for each purpose.
    """

    def __init__(self) -> None:
        self._marks: dict[Key, Mark] = {}
        self._timely: dict[Key, None] = {}  # keys that are open, paused or refused, and due now or later
        # keys whose work is not done, and whose objects other objects require
        self._host_parts: dict[Key, None] = {}
        self._unknown: dict[Key, None] = {}
        self._refused: dict[Key, None] = {}
        self._paused: dict[Key, None] = {}
        self._done: dict[Key, None] = {}
        self._tables: tuple[dict[Key, Any], ...] = (
            self._marks,
            self._timely,
            self._host_parts,
            self._unknown,
            self._refused,
            self._paused,
            self._done,
        )
        self._looks: list[tuple[int, Kinds]] = []
        self.generation = 0

    # Methods that query the record.

    @property
    def is_empty(self) -> bool:
        """True if no key has pending work."""
        return len(self._marks) == len(self._done)

    @property
    def is_blank(self) -> bool:
        """True if no key is marked."""
        return not self._marks

    @property
    def is_idle(self) -> bool:
        """True if no key is marked and no scan is in progress, so that writes need not be recorded."""
        return not self._marks and not self._looks

    @property
    def has_pauses(self) -> bool:
        """True if another program keeps undoing a repair."""
        return bool(self._paused)

    def get(self, key: Key) -> Mark | None:
        """Return the mark of a key; None if no work is left for the key."""
        mark = self._marks.get(key)
        return None if mark is None or mark.stage is Stage.DONE else mark

    def is_later(self, key: Key, generation: int) -> bool:
        """Return whether the key was changed or written after `generation`."""
        mark = self._marks.get(key)
        return mark is not None and mark.generation > generation

    def needs_look(self, but: Kinds) -> bool:
        """Return whether a scan must read a key, except keys of the kinds `but`."""
        return any(self._marks[key].kind not in but for key in self._unknown)

    def is_outdated(self, began: Mapping[type[Item], int]) -> bool:
        """Return whether a scan must read a key that was changed after the scan of its kind began."""
        marks = (self._marks[key] for key in self._unknown)
        return any(mark.generation > began.get(mark.kind, mark.generation) for mark in marks)

    def was_refused(self, key: Key) -> bool:
        """Return whether the latest operation on a key was refused. The operation may have taken effect
        nevertheless.
        """
        mark = self.get(key)
        return mark is not None and mark.tried_s > -math.inf

    def undone(self) -> Iterator[tuple[Key, Mark]]:
        """Yield each key that has pending work."""
        return ((key, mark) for key, mark in self._marks.items() if mark.stage is not Stage.DONE)

    def undone_host_parts(self) -> Iterator[tuple[Key, Mark]]:
        """Yield each key that has pending work and whose object other objects may require."""
        return ((key, self._marks[key]) for key in self._host_parts)

    def refusals(self) -> Iterator[Refusal]:
        """Yield the latest refusal of each key that was refused."""
        return (refusal for key in self._refused if (refusal := self._marks[key].refusal) is not None)

    def due(self, now: float) -> list[tuple[Key, Mark]]:
        """Return the keys that can be worked on without a scan, in the order of their marks."""
        marks = ((key, self._marks[key]) for key in self._timely)
        return [(key, mark) for key, mark in marks if mark.stage is Stage.OPEN or mark.due_s <= now]

    def next_due_s(self) -> float:
        """Return the time at which the next key is due, in seconds of the clock; infinity if no key is
        pending.
        """
        marks = (self._marks[key] for key in self._timely)
        return min((-math.inf if one.stage is Stage.OPEN else one.due_s for one in marks), default=math.inf)

    # Methods that change the record.

    def change(self, key: Key, previous: Item | None, kind: type[Item], *, is_known: bool) -> bool:
        """Mark a key whose planned object has changed. Return whether the existing object is known.

        If the existing object is unknown, a scan must begin now, because a scan that is in progress does not
        contain this change.

        Args:
            key: key of the object.
            previous: the planned object before the change. This object exists, unless the record contains
                another object.
            kind: kind of the object.
            is_known: False if a scan must show which object exists.
        """
        self.generation += 1
        mark = self._marks.get(key)
        found = previous if mark is None else mark.found
        is_known = is_known and (mark is None or mark.stage is not Stage.UNKNOWN)
        stage = Stage.OPEN if is_known else Stage.UNKNOWN
        self._put(key, Mark(kind=kind, generation=self.generation, stage=stage, found=found, is_planned=True))
        return is_known

    def begin_look(self, kinds: Kinds) -> int:
        """Record that a scan of these kinds begins; return the current generation."""
        self._looks.append((self.generation, kinds))
        return self.generation

    def end_look(self, generation: int, kinds: Kinds) -> None:
        """Record that a scan ended, and remove the marks that only this scan needed."""
        self._looks.remove((generation, kinds))
        for key in [key for key in self._done if self._marks[key].kind in kinds]:
            mark = self._marks[key]
            if all(
                mark.kind not in looked_at or mark.generation <= began for began, looked_at in self._looks
            ):
                self._drop(key)

    def settle(self, key: Key, found: Item | None, kind: type[Item], since: int) -> None:
        """Record that the object at a key now equals the object in the plan of generation `since`.

        `found` is the object at the key, or None if the object was removed.

        If the plan of the key changed later, its mark remains, with the existing object.
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
        """Record that the kernel dropped a planned object together with another object. `left` is the part
        that remains. The loss of a dropped object is not damage.
        """
        self.generation += 1
        lost = Mark(kind=kind, generation=self.generation, stage=Stage.OPEN, found=left, is_planned=True)
        self._put(key, lost)

    def postpone(self, key: Key, later: Mark, since: int) -> None:
        """Keep a key in the record, with the mark `later`; this method sets its generation and counters.

        A change of the key after generation `since` has precedence; in that case only the existing object is
        recorded. If the operation of `later` was attempted, only a scan can show the existing object.
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
        """Bring the next attempt at a refused operation forward, because a scan followed soon after the
        latest attempt.

        The attempt may itself have caused the scan. Therefore each consecutive attempt is brought forward
        less. The first attempt that is brought forward is due `pause_s` after the latest attempt. The time of
        a permanently refused operation does not change.
        """
        mark = self._marks[key]
        if mark.refusal is not None and not mark.refusal.is_permanent:
            due_s = mark.tried_s + pause_s * 2.0 ** min(mark.hastened, 30)
            self._put(key, replace(mark, due_s=min(due_s, mark.due_s), is_hastened=True))

    def release(self, before: float = math.inf) -> None:
        """Make blocked and refused keys due, because a required object may exist now.

        A key that was refused at the time `before` or later keeps its pause. Without this rule, an operation
        that is refused repeatedly would have no pause if other operations of its batch succeed.
        """
        for key, mark in list(self.undone()):
            if mark.stage is Stage.BLOCKED:
                self._put(key, replace(mark, stage=Stage.OPEN))
            elif _may_succeed(mark) and mark.tried_s < before:
                self._put(key, replace(mark, due_s=-math.inf))

    def _note_found(self, key: Key, mark: Mark, found: Item | None) -> None:
        self._put(key, replace(mark, found=found))

    def _put(self, key: Key, mark: Mark) -> None:
        self._marks[key] = mark
        stage = mark.stage
        for table, belongs in (
            (self._timely, stage in (Stage.OPEN, Stage.PAUSED, Stage.REFUSED)),
            (self._host_parts, mark.kind.IS_HOST_PART and stage is not Stage.DONE),
            (self._unknown, stage is Stage.UNKNOWN),
            (self._refused, stage is Stage.REFUSED),
            (self._paused, stage is Stage.PAUSED),
            (self._done, stage is Stage.DONE),
        ):
            if belongs:
                table[key] = None
            else:
                table.pop(key, None)

    def _drop(self, key: Key) -> None:
        for table in self._tables:
            table.pop(key, None)
        if not self._marks:  # an emptied table keeps the memory of its largest size until it is cleared
            for table in self._tables:
                table.clear()


def _may_succeed(mark: Mark) -> bool:
    """Return whether another attempt at a refused operation may succeed."""
    return mark.refusal is not None and not mark.refusal.is_permanent and mark.due_s < math.inf
