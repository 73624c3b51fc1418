"""The reconciler: keeps the host equal to the plan, whatever changes either of them.

One task works on one record (`engine.work`). Three events fill the record: a change of the plan, a look that
finds an object that differs from the plan, and a refusal. The task takes the keys that are due, computes one
operation for each from the present plan, puts them into order, and applies them as one batch.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from types import NoneType

from pyflannel.engine.batch_report import Batch, BatchReport, Counts
from pyflannel.engine.journal import Journal
from pyflannel.engine.pacing import FIRST_PAUSE_S, Damping, longest_pause_s, pause
from pyflannel.engine.planner import Blocked, Changed, PlanResult, Replaced, Unchanged
from pyflannel.engine.targets import Answer, Kinds, Targets
from pyflannel.engine.work import Mark, Work
from pyflannel.errors import TargetError
from pyflannel.model.host_file import HostFile
from pyflannel.model.item import Item, Key
from pyflannel.model.link import MARK, Link
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.plan.diff import Missing, change, diff, differences, order
from pyflannel.plan.ownership import ours, taken_links, without_links
from pyflannel.ports import Clock, Target

log = logging.getLogger(__name__)

AUDIT_S = 10.0
"""Longest pause between two looks at the host: the kernel does not announce every change."""

AUDITED_PER_S = 1000
"""Objects that an audit may look at for each second since the last one: 10 µs each are 1 % of a core."""

RETRY_MIN_S = 0.05
"""First pause before a temporary refusal is retried. It doubles; an event ends it at once."""


class Reconciler:
    """Keeps `targets` equal to the plan.

    Args:
        targets: what the plan is applied to.
        clock: time.
        draw: a random number below its argument, for the jitter of retries.
        judge: is told the refusals of a batch, and returns those that are to be reported. For the others
            it has changed the inputs of the plan.
        progressed: is called after each batch and each look.
        alive: is called in each turn of the loop, at least every `audit_s`.
        audit_s: longest pause between two looks.
        mark: alias of the links of this daemon.
        device: device name that this daemon claims.
        journal: of what was found and done.
    """

    def __init__(
        self,
        *,
        targets: Iterable[Target],
        clock: Clock,
        draw: Callable[[int], int] = lambda below: below - 1,
        judge: Callable[[Sequence[Refusal]], Sequence[Refusal]] = lambda refused: refused,
        progressed: Callable[[], None] = lambda: None,
        alive: Callable[[], object] = lambda: None,
        audit_s: float = AUDIT_S,
        mark: str = MARK,
        device: str = FIRST_DEVICE,
        journal: Journal | None = None,
    ) -> None:
        self._targets = Targets(targets, clock)
        self._clock = clock
        self._draw = draw
        self._judge = judge
        self._progressed = progressed
        self._alive = alive
        self._audit_s = audit_s
        self._mark = mark
        self._device = device
        self._damping = Damping()
        self._plan: State | None = None
        self._work = Work()
        self._has_news = asyncio.Event()
        self._must_look = False
        self._is_audit = False
        self._looked_at = -math.inf
        self._retry_at = math.inf
        self._retries = 0
        self._unread: dict[type[Item], TargetError] = {}
        self._new_kinds: Kinds = frozenset(self._targets.kinds)  # nothing of them was applied: no damage yet
        self._has_applied = False
        self._taken: Mapping[str, Refusal] = {}
        self._report = BatchReport(Journal(clock) if journal is None else journal, self._targets.kinds)

    # What others ask.

    @property
    def counts(self) -> Counts:
        """What was done since the start."""
        return self._report.counts

    @property
    def is_clean(self) -> bool:
        """The host is as planned: every target was read, and nothing is left to do."""
        return self._has_applied and not self._unread and self._work.is_empty

    @property
    def refused(self) -> tuple[Refusal, ...]:
        """The operations that were refused, and not performed since."""
        return self._work.refusals

    @property
    def delayed(self) -> tuple[Operation, ...]:
        """Repairs that wait because another program keeps undoing them, and what requires these objects."""
        waiting = [(key, mark) for key, mark in self._work.open() if mark.is_waiting]
        if all(mark.due_s == math.inf for _, mark in waiting):
            return ()
        operations = (self._operation_on(key, mark) for key, mark in waiting)
        return tuple(operation for operation in operations if operation is not None)

    @property
    def error(self) -> str | None:
        """Why a target could not be read; None if all were."""
        return "; ".join(dict.fromkeys(map(str, self._unread.values()))) or None

    def follow(self, result: PlanResult) -> None:
        """Take in what the planner made of new inputs. The host follows soon."""
        match result:
            case Changed(previous):
                for key, item in previous.items():
                    self._work.plan(key, item, is_known=self._is_known(key, item))
            case Replaced(plan):
                before, self._plan = self._plan or State.EMPTY, plan
                for old, new in differences(before, plan):
                    item = new if old is None else old
                    if item is not None and type(item) not in self._new_kinds:
                        self._work.plan(item.key, old, is_known=False)
                self._must_look = True
            case Unchanged() | Blocked():
                return
        self._has_news.set()

    def look(self) -> None:
        """Look at the host soon: anything may have changed."""
        self._must_look = True
        self._has_news.set()

    async def run(self) -> None:
        """Run until cancelled. The host stays as it is."""
        async with asyncio.TaskGroup() as tasks:
            following = self._targets.run(changed=self.look, answered=self._has_news.set)
            tasks.create_task(following, name="targets")
            tasks.create_task(self._reconcile(), name="reconcile")

    # The loop.

    async def _reconcile(self) -> None:
        while True:
            self._has_news.clear()
            self._alive()
            if self._plan is None:
                await pause(self._clock, self._audit_s, until=self._has_news)
            elif not await self._turn(self._plan):
                await pause(self._clock, self._rest_s(), until=self._has_news)

    async def _turn(self, plan: State) -> bool:
        """Do what can be done now; return whether anything was done."""
        now = self._clock.now()
        if self._must_look or now >= self._audit_due_s:
            self._is_audit, self._must_look, self._looked_at = not self._must_look, False, now
            self._targets.ask(plan, self._work.begin_look, self._targets.kinds)
        elif self._unread and now >= self._retry_at:
            self._retry_at = math.inf
            self._targets.ask(plan, self._work.begin_look, self._unread.keys())
        if answers := self._targets.take(must_have_all=bool(self._new_kinds)):
            await self._compare(answers, plan)
            if changed := self._targets.changed_kinds:
                self._targets.ask(plan, self._work.begin_look, changed)
        elif due := self._work.due(now):
            await self._work_on(due)
        else:
            return False
        self._progressed()
        return True

    def _rest_s(self) -> float:
        """Return the seconds until something is due although nothing happens."""
        now = self._clock.now()
        due_s = min(self._audit_due_s, self._work.next_due_s(), self._retry_at) - now
        if self._targets.has_answer and not self._new_kinds:
            due_s = min(due_s, self._targets.late_in_s)
        return max(0.0, min(due_s, self._audit_s))

    @property
    def _audit_due_s(self) -> float:
        """Time of the next audit: the more there is to read, the later."""
        return self._looked_at + max(self._audit_s, len(self._plan or ()) / AUDITED_PER_S)

    async def _compare(self, answers: Sequence[Answer], plan: State) -> None:
        """Compare what the targets showed with the plan, and perform the operations that follow."""
        began = self._clock.now()
        read = [answer for answer in answers if answer.error is None]
        kinds: Kinds = frozenset[type[Item]]().union(*(answer.kinds for answer in read))
        shown = reduce(or_, (answer.state for answer in read), State.EMPTY)
        generation = min(answer.generation for answer in answers)
        self._note_errors(answers)
        if Link in kinds:
            self._taken = taken_links(shown, plan, self._mark)
        desired = without_links(plan, self._taken.keys()) if self._taken else plan
        actual = ours(shown, desired, self._mark, self._device)
        operations = [
            operation
            for operation in diff(desired.of_kinds(kinds), actual)
            if not self._work.is_later(operation.subject.key, generation)
        ]
        self._settle_equal(desired, kinds, generation, operations)
        for answer in answers:
            self._work.end_look(answer.generation)
        for item in plan if self._taken else ():
            if item.key not in desired.by_key and not isinstance(item, Link):
                self._work.postpone(item.key, None, self._work.generation, is_planned=True)
        new_kinds, self._new_kinds = self._new_kinds, self._new_kinds - kinds
        hopeful = [operation for operation in operations if not self._is_hopeless(operation)]
        taken = tuple(self._taken.values())
        await self._perform(hopeful, self._work.generation, new_kinds, taken, is_look=True)
        self._has_applied = not self._new_kinds
        self.counts.passes += 1
        self.counts.duration_s = self._clock.now() - began

    def _note_errors(self, answers: Iterable[Answer]) -> None:
        """Note which targets could not be read. They are asked again soon, and delay no other."""
        for answer in answers:
            before = next((self._unread[kind] for kind in answer.kinds if kind in self._unread), None)
            for kind in answer.kinds:
                self._unread.pop(kind, None)
            if answer.error is not None:
                self._unread.update(dict.fromkeys(answer.kinds, answer.error))
                self.counts.failures += 1
                if str(before) != str(answer.error):
                    log.error("Could not read the current state of the host: %s", answer.error.in_full)
            elif before is not None:
                log.info("Read the current state of the host again, after: %s", before)
        self._retries = self._retries + 1 if self._unread else 0
        pause_s = min(RETRY_MIN_S * 2.0**self._retries, longest_pause_s(0))
        self._retry_at = self._clock.now() + pause_s if self._unread else math.inf

    def _settle_equal(
        self, desired: State, kinds: Kinds, generation: int, differing: Iterable[Operation]
    ) -> None:
        """Take the keys out of the record whose object a look found as desired."""
        if self._work.is_empty:
            return
        keys, plan = {operation.subject.key for operation in differing}, self._plan or State.EMPTY
        for key, mark in list(self._work.open()):
            item = plan.by_key.get(key)
            is_shown = type(item or mark.found) in {*kinds, NoneType}
            is_left_out = item is not None and key not in desired.by_key
            if is_shown and key not in keys and mark.generation <= generation and not is_left_out:
                self._work.settle(key, item, self._work.generation)

    async def _work_on(self, due: Iterable[tuple[Key, Mark]]) -> None:
        """Perform what is due without a look: the record knows what is in place."""
        since = self._work.generation
        operations = []
        for key, mark in due:
            operation = self._operation_on(key, mark)
            if operation is None:
                self._work.settle(key, mark.found, since)
            else:
                operations.append(operation)
        await self._perform(operations, since)

    async def _perform(
        self,
        operations: Iterable[Operation],
        since: int,
        new_kinds: Kinds = frozenset(),
        refused: Sequence[Refusal] = (),
        *,
        is_look: bool = False,
    ) -> None:
        """Apply the operations as one batch. Keep in the record what is refused or must wait.

        Args:
            operations: in any order.
            since: generation of the plan from which the operations were computed.
            new_kinds: of which nothing was applied before, so that none of their operations is a repair.
            refused: operations that need not be tried.
            is_look: the operations follow from a look.
        """
        known = self._work.refusals
        began = self._clock.now()
        batch = Batch(since, new_kinds, list(refused))
        for refusal in refused:
            self._postpone(batch, refusal.operation, refusal=refusal)
        admitted = self._admit(batch, order(operations))
        objects = [operation for operation in admitted if not isinstance(operation.subject, HostFile)]
        files = [operation for operation in admitted if isinstance(operation.subject, HostFile)]
        await self._apply(batch, objects)
        if files and self._is_host_part_missing():
            for operation in files:
                self._postpone(batch, operation)
        else:
            await self._apply(batch, files)
        if batch.done:
            self._work.release()
        self._note_fights(batch, self._clock.now() - began)
        self._report.tell(batch)
        if is_look or batch.refused:
            self._report.tell_refusals(self._judge(batch.refused), known)

    def _note_fights(self, batch: Batch, cost_s: float) -> None:
        """Find the repairs that another program undid so often that the next one must wait."""
        now = self._clock.now()
        if batch.repairs:
            self._damping.forget(now)
        for operation in batch.repairs:
            pause_s = self._damping.repaired(operation.subject.key, now, cost_s)
            if pause_s == FIRST_PAUSE_S:
                batch.fights.append(operation)

    def _admit(self, batch: Batch, operations: Sequence[Operation]) -> list[Operation]:
        """Return the operations that can succeed now. The others wait in the record.

        An operation waits while another program keeps undoing it, while its target cannot be read, and while
        an object that it requires is missing.
        """
        admitted: list[Operation] = []
        missing, now = Missing(), self._clock.now()
        if not self._work.is_empty:
            keys = {operation.subject.key for operation in operations}
            for undone in self._undone():
                if undone.subject.key not in keys:
                    missing.note(undone)
        for operation in operations:
            item = operation.subject
            is_planned = self._is_planned(batch, item)
            until = None if is_planned else self._damping.waits_until(item.key, now)
            if until is not None:
                self._postpone(batch, operation, due_s=until)
            elif type(item) in self._unread or missing.blocks(operation):
                self._postpone(batch, operation)
            else:
                admitted.append(operation)
                continue
            missing.note(operation)
        return admitted

    async def _apply(self, batch: Batch, operations: Sequence[Operation]) -> None:
        """Apply the operations, and bring the record up to date."""
        if not operations:
            return
        began = self._clock.now()
        refused = await self._targets.apply(operations)
        cost_s = self._clock.now() - began
        keys = {refusal.operation.subject.key for refusal in refused}
        for operation in operations:
            item = operation.subject
            if item.key in keys:
                continue
            batch.done.append(operation)
            if not self._is_planned(batch, item):
                batch.repairs.append(operation)
            self._work.settle(item.key, None if isinstance(operation, Remove) else item, batch.since)
        missing = Missing()
        for refusal in refused:
            if missing.blocks(refusal.operation):
                self._postpone(batch, refusal.operation)  # no trouble of its own
            else:
                due_s = math.inf if refusal.is_permanent else self._retry_due_s(refusal, cost_s)
                now = self._clock.now()
                self._postpone(batch, refusal.operation, due_s=due_s, refusal=refusal, tried_s=now)
                batch.refused.append(refusal)
            missing.note(refusal.operation)

    def _postpone(
        self,
        batch: Batch,
        operation: Operation,
        *,
        due_s: float = math.inf,
        refusal: Refusal | None = None,
        tried_s: float = -math.inf,
    ) -> None:
        item = operation.subject
        is_planned = self._is_planned(batch, item)
        self._work.postpone(
            item.key,
            _found_by(operation),
            batch.since,
            is_planned=is_planned,
            due_s=due_s,
            refusal=refusal,
            tried_s=tried_s,
        )

    def _retry_due_s(self, refusal: Refusal, cost_s: float) -> float:
        """Return when a temporary refusal is retried. Jitter keeps hosts with one trouble apart."""
        mark = self._work.get(refusal.operation.subject.key)
        attempts = 0 if mark is None else mark.attempts
        pause_s = min(RETRY_MIN_S * 2.0 ** min(attempts, 30), longest_pause_s(cost_s))
        return self._clock.now() + pause_s * (0.5 + self._draw(1000) / 2000)

    # Questions about the record.

    def _operation_on(self, key: Key, mark: Mark) -> Operation | None:
        """Return what is to be done about a key, as far as known."""
        planned = (self._plan or State.EMPTY).by_key.get(key)
        return change(mark.found if mark.is_known or planned is None else None, planned)

    def _undone(self) -> Iterator[Operation]:
        """Yield what is left to do."""
        for key, mark in self._work.open():
            operation = self._operation_on(key, mark)
            if operation is not None:
                yield operation

    def _is_known(self, key: Key, item: Item | None) -> bool:
        """Return whether the object at a changed key is known without a look."""
        planned = (self._plan or State.EMPTY).by_key.get(key)
        return type(planned if item is None else item) not in self._new_kinds

    def _is_planned(self, batch: Batch, item: Item) -> bool:
        """Return whether an operation on the item follows from the plan, and repairs no damage."""
        mark = self._work.get(item.key)
        return type(item) in batch.new_kinds or (mark is not None and mark.is_planned)

    def _is_hopeless(self, operation: Operation) -> bool:
        """Return whether the operation need not be tried again after a look.

        It was refused for good and nothing has changed since, or it was refused this very moment.
        """
        mark = self._work.get(operation.subject.key)
        if mark is None or mark.refusal is None or mark.found != _found_by(operation):
            return False
        if mark.refusal.is_permanent:
            return not self._is_audit
        return self._clock.now() < mark.tried_s + RETRY_MIN_S

    def _is_host_part_missing(self) -> bool:
        """Return whether a program that reads subnet.env now would start containers too early."""
        missing, plan = Missing(), self._plan or State.EMPTY
        for operation in self._undone():
            if operation.subject.IS_HOST_PART:
                missing.note(operation)
        unread = (kind for kind in self._unread if kind.IS_HOST_PART)
        return bool(missing) or any(next(plan.of_type(kind), None) is not None for kind in unread)


def _found_by(operation: Operation) -> Item | None:
    """Return the object that was in place when the operation was computed."""
    match operation:
        case Add():
            return None
        case Replace(old, _):
            return old
        case Remove(item):
            return item
