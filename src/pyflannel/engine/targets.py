"""The targets of a plan: each is read in a task of its own, so that one that is silent delays no other."""

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from pyflannel.errors import TargetError
from pyflannel.model.item import Item
from pyflannel.model.state import Operation, Refusal, State
from pyflannel.ports import Clock, Target

LATE_S = 0.2
"""Time after which a look goes on without the targets that have not answered. Their answers count later."""

REOPEN_S = 1.0
"""Pause before the notifications of a target are opened again after they failed."""

Kinds = frozenset[type[Item]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The state of one target, or the error of the attempt to read it.

    Attributes:
        kinds: what the target can hold.
        generation: of the record of work, at the time when the target was asked.
        state: empty if there is an error.
    """

    kinds: Kinds
    generation: int
    state: State = State.EMPTY
    error: TargetError | None = None


class _Reader:
    """Reads one target when it is asked to, and hears of its changes.

    Attributes:
        is_asked: an answer is on its way, or was not taken yet.
        must_ask: the target may have changed since it was asked; it must be asked again after its answer.
    """

    def __init__(self, target: Target, clock: Clock) -> None:
        self.target = target
        self.kinds: Kinds = frozenset(target.kinds)
        self.answer: Answer | None = None
        self.is_asked = False
        self.must_ask = False
        self._clock = clock
        self._desired = State.EMPTY
        self._generation = 0
        self._asked = asyncio.Event()

    def ask(self, desired: State, begin: Callable[[], int]) -> None:
        """Read the target soon."""
        if self.is_asked:
            self.must_ask = True
            return
        self._desired, self._generation = desired, begin()
        self.is_asked, self.must_ask = True, False
        self._asked.set()

    def take(self) -> Answer | None:
        """Return the answer, once."""
        answer, self.answer = self.answer, None
        if answer is not None:
            self.is_asked = False
        return answer

    async def read(self, answered: Callable[[], None]) -> None:
        """Read whenever asked, until cancelled."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            generation = self._generation
            try:
                state = await self.target.snapshot(self._desired)
                self.answer = Answer(kinds=self.kinds, generation=generation, state=state)
            except TargetError as error:
                self.answer = Answer(kinds=self.kinds, generation=generation, error=error)
            answered()

    async def follow(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each burst of changes, until cancelled."""
        while True:
            try:
                async with self.target.changes() as changes:
                    while True:
                        await changes.next()
                        changed()
            except TargetError:
                changed()  # nothing was announced since
                await self._clock.sleep(REOPEN_S)


class Targets:
    """Everything that a plan is applied to. Each kind of item has the target that holds it."""

    def __init__(self, targets: Iterable[Target], clock: Clock) -> None:
        self._clock = clock
        self._readers = [_Reader(target, clock) for target in targets]
        self._by_kind = {kind: reader.target for reader in self._readers for kind in reader.kinds}
        self._asked_at = 0.0

    @property
    def kinds(self) -> Collection[type[Item]]:
        """Every kind of item that some target holds."""
        return self._by_kind.keys()

    async def run(self, *, changed: Callable[[], None], answered: Callable[[], None]) -> None:
        """Read the targets when asked and hear of their changes, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for reader in self._readers:
                name = type(reader.target).__name__
                tasks.create_task(reader.read(answered), name=f"read {name}")
                tasks.create_task(reader.follow(changed), name=f"changes of {name}")

    def ask(self, desired: State, begin: Callable[[], int], kinds: Collection[type[Item]]) -> None:
        """Ask for the state of the targets that hold some of these kinds.

        `begin` gives the generation of what is known when a target is asked.
        """
        self._asked_at = self._clock.now()
        for reader in self._readers:
            if not reader.kinds.isdisjoint(kinds):
                reader.ask(desired, begin)

    def take(self, *, must_have_all: bool) -> list[Answer]:
        """Return the answers that can be used now.

        Answers of one look are used together, so that their operations have one order. A target that is late
        is left out, unless all are needed.
        """
        is_waiting = any(reader.is_asked and reader.answer is None for reader in self._readers)
        if is_waiting and (must_have_all or self.late_in_s > 0):
            return []
        return [answer for reader in self._readers if (answer := reader.take()) is not None]

    @property
    def late_in_s(self) -> float:
        """Seconds until answers are used without those of late targets."""
        return max(0.0, self._asked_at + LATE_S - self._clock.now())

    @property
    def has_answer(self) -> bool:
        """An answer waits for those of other targets."""
        return any(reader.answer is not None for reader in self._readers)

    @property
    def changed_kinds(self) -> Kinds:
        """The kinds of the targets that may have changed since they were asked and have answered."""
        return frozenset[type[Item]]().union(
            *(reader.kinds for reader in self._readers if reader.must_ask and not reader.is_asked)
        )

    async def apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        """Apply the operations in their order, neighbouring ones for one target as one batch."""
        refusals: list[Refusal] = []
        for target, run in groupby(operations, key=lambda operation: self._by_kind[type(operation.subject)]):
            refusals.extend(await target.apply(list(run)))
        return refusals
