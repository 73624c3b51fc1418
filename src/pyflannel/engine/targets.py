"""The targets of a plan. Each target is read in its own task, so that a target that does not respond does
not delay the others.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

from msgspec import Struct

from pyflannel.engine.list_watch import listen
from pyflannel.engine.pacing import RETRY_MIN_S, longest_pause_s, pause
from pyflannel.engine.work import Kinds
from pyflannel.errors import TargetError
from pyflannel.model.item import Item
from pyflannel.model.state import Operation, Refusal, State
from pyflannel.ports import Clock, Target

log = logging.getLogger(__name__)

LATE_S = 0.2
"""Seconds after which a scan continues without a target that has not answered. The answer of this target
is used later."""

ANSWER_S = 15.0
"""Deadline in seconds for an answer; PER_OBJECT_S is added for each object."""

PER_OBJECT_S = 0.005
"""Seconds per object that are added to the deadline: ten times the time that a busy kernel needs."""

_Answer = TypeVar("_Answer")


class Reading(Struct, frozen=True, kw_only=True):
    """The state of one target, or the error of the attempt to read it.

    Attributes:
        kinds: the kinds of items in the target.
        generation: generation of the record of work when the target was asked.
        state: empty if there is an error.
    """

    kinds: Kinds
    generation: int
    state: State = State.EMPTY
    error: TargetError | None = None


class _Reader:
    """Reads one target on request.

    Attributes:
        reading: the latest result, until it is used.
        is_asked: True if a read is in progress, or its result was not used yet.
        asked_at: time at which the read was requested, in seconds of the clock.
        must_ask: True if the target may have changed since the request, so that it must be read again.
        is_self_contained: True if changes of other targets do not change this target.
        error: error of the latest attempt; None if it succeeded.
        retry_at: time at which the next attempt after an error is due, in seconds of the clock.
    """

    def __init__(self, target: Target, clock: Clock) -> None:
        self.target = target
        self.kinds: Kinds = frozenset(target.kinds)
        self.is_self_contained = all(kind.IS_SELF_CONTAINED for kind in self.kinds)
        self.reading: Reading | None = None
        self.is_asked = False
        self.asked_at = 0.0
        self.must_ask = False
        self.error: TargetError | None = None
        self.retry_at = math.inf
        self._retries = 0
        self._clock = clock
        self._desired = State.EMPTY
        self._generation = 0
        self._asked = asyncio.Event()

    def ask(self, desired: State, begin: Callable[[Kinds], int]) -> None:
        """Read the target soon."""
        if self.is_asked:
            self.must_ask = True
            return
        self._desired, self._generation = desired, begin(self.kinds)
        self.is_asked, self.must_ask, self.asked_at = True, False, self._clock.now()
        self.retry_at = math.inf
        self._asked.set()

    def take(self) -> Reading | None:
        """Return the result of the read; a second call returns None."""
        reading, self.reading = self.reading, None
        if reading is not None:
            self.is_asked = False
            self._note_error(reading.error)
        return reading

    def awaited_until(self, now: float) -> float:
        """Return the time until which a scan waits for this target; minus infinity if no scan waits."""
        until = self.asked_at + LATE_S
        return until if self.is_asked and self.reading is None and now < until else -math.inf

    def _note_error(self, error: TargetError | None) -> None:
        """Log the change from readable to unreadable, or back. An unreadable target is read again soon."""
        before, self.error = self.error, error
        if error is not None:
            self._retries += 1
            pause_s = min(RETRY_MIN_S * 2.0 ** min(self._retries, 30), longest_pause_s(0))
            self.retry_at = self._clock.now() + pause_s
            if before is None:
                log.error("Could not read the current state of the host: %s", error.in_full)
        elif before is not None:
            self._retries = 0
            log.info("Read the current state of the host again, because this problem ended: %s", before)

    async def read(self, answered: Callable[[], None]) -> None:
        """Read the target on each request, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self.reading = await self._attempt()
            answered()

    async def _attempt(self) -> Reading:
        """Read the target. Only the result refers to the state, so that it is freed after the scan."""
        kinds, generation, desired = self.kinds, self._generation, self._desired
        try:
            state = await within_time(self.target.snapshot(desired), self._clock, len(desired))
            return Reading(kinds=kinds, generation=generation, state=state)
        except TargetError as error:
            return Reading(kinds=kinds, generation=generation, error=error)


class Targets:
    """All targets of a plan. Each kind of item belongs to one target."""

    def __init__(self, targets: Iterable[Target], clock: Clock) -> None:
        self._clock = clock
        self._readers = [_Reader(target, clock) for target in targets]
        self._by_kind = {kind: reader.target for reader in self._readers for kind in reader.kinds}

    @property
    def kinds(self) -> Kinds:
        """The kinds of items of all targets."""
        return frozenset(self._by_kind)

    @property
    def unread_kinds(self) -> Kinds:
        """The kinds of items of the targets that could not be read."""
        return _union(reader.kinds for reader in self._readers if reader.error is not None)

    @property
    def errors(self) -> list[TargetError]:
        """The errors of the targets that could not be read."""
        return [reader.error for reader in self._readers if reader.error is not None]

    @property
    def retry_at(self) -> float:
        """Time of the clock of the next attempt to read an unreadable target; infinite if there is none."""
        return min((reader.retry_at for reader in self._readers), default=math.inf)

    async def run(self, has_news: Callable[[], None]) -> None:
        """Read the targets on request and listen to their changes, until cancelled.

        `has_news` is called after each read, and after each announced change.
        """

        def note_change(reader: _Reader) -> None:
            self._ask_affected(reader)
            has_news()

        async with asyncio.TaskGroup() as tasks:
            for reader in self._readers:
                name = type(reader.target).__name__
                listening = listen(reader.target.changes, self._clock, partial(note_change, reader))
                tasks.create_task(reader.read(has_news), name=f"read {name}")
                tasks.create_task(listening, name=f"changes of {name}")

    def _ask_affected(self, changed: _Reader) -> None:
        """Record that a target changed, and must be read with all targets that its change may affect."""
        for reader in self._readers:
            is_separate = reader.is_self_contained or changed.is_self_contained
            reader.must_ask = reader.must_ask or reader is changed or not is_separate

    def ask(self, desired: State, begin: Callable[[Kinds], int]) -> None:
        """Request the state of each target.

        `begin` is called with the kinds of each target that is read; it returns the generation for this read.
        """
        for reader in self._readers:
            reader.ask(desired, begin)

    def ask_later(self, kind: type[Item]) -> None:
        """Record that the target of this kind must be read, or read again if a read is in progress."""
        for reader in self._readers:
            reader.must_ask = reader.must_ask or kind in reader.kinds

    def ask_again(self, desired: State, begin: Callable[[Kinds], int]) -> None:
        """Read the unreadable targets whose pause is over, and the targets that changed since the request."""
        now = self._clock.now()
        for reader in self._readers:
            if reader.retry_at <= now or (reader.must_ask and not reader.is_asked):
                reader.ask(desired, begin)

    def take(self) -> list[Reading]:
        """Return the results of reads that can be used now.

        The results of one scan are used together, so that their operations have one order. A target that has
        not responded in time is skipped.
        """
        if self.awaited_until > -math.inf:
            return []
        return [reading for reader in self._readers if (reading := reader.take()) is not None]

    @property
    def awaited_until(self) -> float:
        """Time until which a scan waits for targets; minus infinity if no scan waits."""
        now = self._clock.now()
        return max((reader.awaited_until(now) for reader in self._readers), default=-math.inf)

    @property
    def late_at(self) -> float:
        """Time at which the results are used without the results of late targets; infinity if there is no
        result.
        """
        return math.inf if all(reader.reading is None for reader in self._readers) else self.awaited_until

    async def apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        """Apply the operations in the given order; consecutive operations for one target form a batch."""
        refusals: list[Refusal] = []
        for target, run in groupby(operations, key=lambda operation: self._by_kind[type(operation.subject)]):
            batch = list(run)
            try:
                refusals.extend(await within_time(target.apply(batch), self._clock, len(batch)))
            except TargetError as error:
                refusals += [Refusal(operation=one, cause=str(error), hint=error.hint) for one in batch]
        return refusals


def _union(kinds: Iterable[Kinds]) -> Kinds:
    return frozenset[type[Item]]().union(*kinds)


async def within_time(work: Coroutine[Any, Any, _Answer], clock: Clock, objects: int) -> _Answer:
    """Return the result of the work on this number of objects.

    Raises:
        TargetError: the work raised this error, or gave no result in time. After the deadline, the work is
            cancelled.
    """
    limit_s = ANSWER_S + PER_OBJECT_S * objects
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_caught(work))
        task.add_done_callback(lambda _: ended.set())
        await pause(clock, limit_s, until=ended)
        if not task.done():
            task.cancel()
    if task.cancelled():
        raise TargetError(f"no answer within {limit_s:.0f} s", hint="flanneld tries again.")
    result = task.result()
    if isinstance(result, TargetError):
        raise result
    return result


async def _caught(work: Coroutine[Any, Any, _Answer]) -> _Answer | TargetError:
    """Return the error of the work instead of raising it, because a raised error would end the task group."""
    try:
        return await work
    except TargetError as error:
        return error
