"""The reconciler: keeps the state of the host equal to the plan.

One task works on one record (`engine.work`). Three events fill the record: a change of the plan, a scan of
the host that finds an object that differs from the plan, and a refusal. The task takes the keys that are due,
computes one operation for each from the current plan, sorts the operations, and applies them as one batch.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import or_

from pyflannel.engine.batch_report import Batch, BatchReport, Counts, Journal
from pyflannel.engine.pacing import FIRST_PAUSE_S, RETRY_MIN_S, Damping, longest_pause_s, pause
from pyflannel.engine.targets import Reading, Targets
from pyflannel.engine.work import Kinds, Mark, Stage, Work
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item, Key
from pyflannel.model.link import MARK, Link
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.state import (
    Add,
    Blocked,
    Changed,
    Operation,
    PlanResult,
    Refusal,
    Remove,
    Replace,
    Replaced,
    State,
    Unchanged,
)
from pyflannel.plan.diff import Missing, change, differences, losses, order
from pyflannel.plan.ownership import ours, taken_links, without_links
from pyflannel.ports import Clock, Target

AUDIT_S = 10.0
"""Longest pause in seconds between two scans of the host, because the kernel does not announce every
change."""

AUDITED_PER_S = 600
"""Average number of objects per second that audits may read. A slow processor needs 17 µs for each object, so
that the audits use 1 % of a core."""

RETRY_COSTS = 4
"""Minimum ratio of the pause after a refused operation to the duration of this operation. An operation on a
target that hangs takes long, and must not occupy most of the time.
"""

Judge = Callable[[Sequence[Refusal], Kinds], Sequence[Refusal]]


class Reconciler:
    """Keeps `targets` equal to the plan.

    Args:
        targets: the targets to which the plan is applied.
        clock: the clock.
        draw: function that returns a random number below its argument, for the jitter of retries.
        judge: function that takes the current refusals, and the kinds of which every object is in place. The
            function returns the refusals to report. For each other refusal, the function changes the inputs
            of the plan.
        progressed: function that is called after each batch and each scan.
        alive: function that is called in each turn of the loop, at least every `audit_s` seconds.
        audit_s: longest pause between two scans.
        mark: alias of the links of this daemon.
        device: device name that this daemon claims.
        journal: journal of the operations.
    """

    def __init__(
        self,
        *,
        targets: Iterable[Target],
        clock: Clock,
        draw: Callable[[int], int] = lambda below: below - 1,
        judge: Judge = lambda refused, settled: refused,
        progressed: Callable[[], object] = lambda: None,
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
        self._report = BatchReport(Journal(clock) if journal is None else journal, self._targets.kinds)
        self._damping = Damping()
        self._plan = State.EMPTY
        self._has_plan = False
        self._work = Work()
        self._has_news = asyncio.Event()
        self._must_look = False
        self._peers_changed_at: float | None = None  # the first change of peers that is not yet applied
        self._has_skipped = False
        self._looked_at = -math.inf
        # kinds that were never applied, so that a difference is not damage yet
        self._new_kinds = self._targets.kinds
        self._has_applied = False
        self._is_performing = False
        self._taken: Mapping[str, Refusal] = {}
        self._known: tuple[Refusal, ...] = ()  # refusals that were already reported

    # Methods that answer queries.

    @property
    def counts(self) -> Counts:
        """The counters since the start of flanneld."""
        return self._report.counts

    @property
    def is_clean(self) -> bool:
        """True if the state of the host equals the plan: all targets were read, and no operation is left
        or in progress.
        """
        is_busy = self._is_performing or not self._work.is_empty
        return self._has_applied and not self._targets.errors and not is_busy

    def is_in_place(self, kind: type[Item]) -> bool:
        """Return whether every object of a kind is as planned, as far as the reconciler knows."""
        return not self._is_performing and all(mark.kind is not kind for _, mark in self._work.undone())

    def lacks(self, kinds: Collection[type[Item]]) -> bool:
        """Return whether an object of these kinds is not as planned, as far as the reconciler knows."""
        return not self._has_applied or any(mark.kind in kinds for _, mark in self._work.undone())

    def has_built(self, keys: Iterable[Key]) -> bool:
        """Return whether the objects with these keys are as planned, as far as the reconciler knows."""
        is_busy = self._is_performing or bool(self._new_kinds)
        return not is_busy and all(self._work.get(key) is None for key in keys)

    def refused(self) -> Iterator[Refusal]:
        """Yield the operations that were refused, and that were not performed since then."""
        return self._work.refusals()

    def delayed(self) -> Iterator[Operation]:
        """Yield the repairs that another program keeps undoing, and the operations that require these
        repairs.
        """
        waiting = (Stage.PAUSED, Stage.BLOCKED) if self._work.has_pauses else ()
        for key, mark in self._work.undone() if waiting else ():
            if mark.stage in waiting and (operation := self._operation_on(key, mark)) is not None:
                yield operation

    @property
    def error(self) -> str | None:
        """The reason why a target could not be read; None if all targets were read."""
        return "; ".join(dict.fromkeys(map(str, self._targets.errors))) or None

    # Methods that record events.

    def follow(self, result: PlanResult) -> None:
        """Record a result of the planner. The reconciler changes the host soon after this call."""
        match result:
            case Changed(previous):
                if self._peers_changed_at is None:
                    self._peers_changed_at = self._clock.now()
                for key, old in previous.items():
                    self._note_change(key, old, self._plan.by_key.get(key), is_known=True)
            case Replaced(plan):
                before, self._plan, self._has_plan = self._plan, plan, True
                for old, new in differences(before, plan):
                    item = new if old is None else old
                    if item is not None and type(item) not in self._new_kinds:
                        self._note_change(item.key, old, new, is_known=False)
                self._must_look = True
            case Unchanged() | Blocked():
                return
        self._has_news.set()

    def look(self) -> None:
        """Read the host soon, because any part may have changed."""
        self._must_look = True
        self._has_news.set()

    def _note_change(self, key: Key, old: Item | None, new: Item | None, *, is_known: bool) -> None:
        item = new if old is None else old
        if item is not None:
            is_known = is_known and type(item) not in self._new_kinds and not self._work.was_refused(key)
            is_known = self._work.change(key, old, type(item), is_known=is_known)
            if not is_known:
                self._targets.ask_later(type(item))

    # Methods of the loop.

    async def run(self) -> None:
        """Run until cancelled. After the call ends, the reconciler does not change the host."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._targets.run(self._has_news.set), name="targets")
            tasks.create_task(self._reconcile(), name="reconcile")

    async def _reconcile(self) -> None:
        while True:
            self._has_news.clear()
            self._alive()
            if not self._has_plan or not await self._turn():
                await pause(self._clock, self._rest_s(), until=self._has_news)

    async def _turn(self) -> bool:
        """Perform the work that is due; return whether any work was due."""
        now = self._clock.now()
        if self._must_look or now >= self._audit_due_s:
            self._must_look = False
            self._looked_at = now
            self._targets.ask(self._plan, self._work.begin_look)
        else:
            self._targets.ask_again(self._plan, self._work.begin_look)
        unread = self._targets.unread_kinds
        if readings := self._targets.take():
            if unread - self._targets.unread_kinds:
                self._work.release()
            await self._compare(readings)
        elif not self._is_held and (due := self._work.due(now)):
            await self._work_on(due)
        else:
            return False
        self._progressed()
        if self._peers_changed_at is not None and self._work.is_empty:
            duration_s = self._clock.now() - self._peers_changed_at
            self.counts.peer_durations = self.counts.peer_durations.plus(duration_s)
            self._peers_changed_at = None
        return True

    def _rest_s(self) -> float:
        """Return the seconds until work is due without an event."""
        now = self._clock.now()
        if not self._has_plan:
            return self._audit_s
        due_s = self._targets.awaited_until if self._is_held else self._work.next_due_s()
        due_s = min(due_s, self._audit_due_s, self._targets.retry_at, self._targets.late_at) - now
        return max(0.0, min(due_s, self._audit_s))

    @property
    def _is_held(self) -> bool:
        """True if all work waits for a scan that is in progress, so that its operations have one order.

        If the operations did not wait, a route could be removed before the scan permits the route that
        replaces it.
        """
        is_looking = self._targets.awaited_until > -math.inf
        return is_looking and self._work.needs_look(but=self._targets.unread_kinds)

    @property
    def _audit_due_s(self) -> float:
        """Time of the next audit. The audit is later if there are more objects to read."""
        return self._looked_at + max(self._audit_s, len(self._plan) / AUDITED_PER_S)

    async def _compare(self, readings: Sequence[Reading]) -> None:
        """Compare the states that were read from the targets with the plan, and perform the resulting
        operations.
        """
        began = self._clock.now()
        shown = [reading for reading in readings if reading.error is None]
        generations = {kind: reading.generation for reading in shown for kind in reading.kinds}
        # If the plan was replaced during the scan, the scan is discarded and the next scan is used. If the
        # scan were used, a route could be added before the objects that carry its packets. Of two consecutive
        # scans, only one is discarded.
        is_outdated = self._work.is_outdated(generations)
        self._has_skipped = is_outdated and not (self._has_skipped or self._new_kinds)
        if self._has_skipped:
            self._end_look(readings)
            self._must_look = True
            self._count_pass(began, readings)
            return
        state = reduce(or_, (reading.state for reading in shown), State.EMPTY)
        if Link in generations:
            self._taken = taken_links(state, self._plan, self._mark)
        desired = without_links(self._plan, self._taken.keys()) if self._taken else self._plan
        wanted = desired.of_kinds(generations)
        actual = ours(state, desired, self._mark, self._device)
        found = (change(old, new) for old, new in differences(actual, wanted))
        operations = [operation for operation in found if operation is not None]
        if not self._work.is_blank:  # otherwise, ten thousand unused keys would be created
            operations = self._without_later(operations, generations, desired)
        self._end_look(readings)
        batch = Batch(self._work.generation, self._new_kinds)
        self._leave_taken(batch, desired)
        self._new_kinds -= generations.keys()
        if due := self._work.due(began):
            keys = {operation.subject.key for operation in operations}
            operations += self._operations_on(batch, (one for one in due if one[0] not in keys))
        await self._perform(batch, operations)
        self._has_applied = not self._new_kinds
        self._count_pass(began, readings)
        self._report_refusals()

    def _count_pass(self, began: float, readings: Sequence[Reading]) -> None:
        self.counts.add_pass(self._clock.now() - began)
        self.counts.failures += sum(reading.error is not None for reading in readings)

    def _end_look(self, readings: Iterable[Reading]) -> None:
        for reading in readings:
            self._work.end_look(reading.generation, reading.kinds)

    def _without_later(
        self, operations: Iterable[Operation], generations: Mapping[type[Item], int], desired: State
    ) -> list[Operation]:
        """Omit the keys that changed after the scan began. Remove from the record the keys that the scan
        shows as planned.
        """
        left, differing = [], set()
        for operation in operations:
            item = operation.subject
            differing.add(item.key)
            if self._work.is_later(item.key, generations[type(item)]):
                continue
            if not self._is_hopeless(operation):
                left.append(operation)
            else:
                self._work.hasten(item.key, RETRY_MIN_S)
        has_host_part = False
        for key, mark in list(self._work.undone()):
            wanted = desired.by_key.get(key)
            # the link of the object belongs to another daemon
            is_left_out = wanted is None and key in self._plan.by_key
            is_shown = mark.generation <= generations.get(mark.kind, -1)
            if is_shown and not is_left_out and key not in differing:
                self._work.settle(key, wanted, mark.kind, self._work.generation)
                has_host_part = has_host_part or mark.kind.IS_HOST_PART
        if has_host_part:
            self._work.release()
        return left

    def _leave_taken(self, batch: Batch, desired: State) -> None:
        """Postpone the objects on links that belong to another daemon of this host."""
        for refusal in self._taken.values():
            self._postpone(batch, refusal.operation, Stage.REFUSED, refusal=refusal)
        for item in self._plan if self._taken else ():
            if item.key not in desired.by_key and not isinstance(item, Link):
                blocked = Mark(kind=type(item), stage=Stage.BLOCKED, is_planned=True)
                self._work.postpone(item.key, blocked, batch.since)

    def _operations_on(self, batch: Batch, due: Iterable[tuple[Key, Mark]]) -> list[Operation]:
        """Return the operations on keys that are due. Remove the keys that need no operation from the
        record.
        """
        operations = []
        for key, mark in due:
            operation = self._operation_on(key, mark)
            if operation is None:
                self._work.settle(key, mark.found, mark.kind, batch.since)
            else:
                operations.append(operation)
        return operations

    async def _work_on(self, due: Iterable[tuple[Key, Mark]]) -> None:
        """Perform the due operations without a scan, because the record contains the existing objects."""
        batch = Batch(self._work.generation)
        await self._perform(batch, self._operations_on(batch, due))
        if batch.refused:
            self._report_refusals()

    async def _perform(self, batch: Batch, operations: Iterable[Operation]) -> None:
        """Apply the operations as one batch. Refused and waiting operations remain in the record."""
        began = self._clock.now()
        self._is_performing = True
        admitted = self._with_losses(batch, self._admit(batch, order(operations, self._plan)))
        objects = [operation for operation in admitted if not isinstance(operation.subject, HostFile)]
        files = [operation for operation in admitted if isinstance(operation.subject, HostFile)]
        await self._apply(batch, objects)
        if files and self._is_host_part_missing():
            for operation in files:
                self._postpone(batch, operation, Stage.BLOCKED)
        else:
            await self._apply(batch, files)
        self._is_performing = False
        if any(operation.subject.IS_HOST_PART for operation in batch.done()):
            self._work.release(before=began)
        self._note_fights(batch, self._clock.now() - began)
        self._report.report(batch)

    def _report_refusals(self) -> None:
        """Pass the refusals to the function `judge`, and report the new refusals. This function may change
        the plan.
        """
        known, refused = self._known, tuple(self.refused())
        self._known = refused
        self._report.report_refusals(self._judge(refused, self._settled_kinds()), known)

    def _note_fights(self, batch: Batch, cost_s: float) -> None:
        """Record the repairs that another program undid so often that the next repair is delayed."""
        now = self._clock.now()
        if batch.repairs:
            self._damping.forget(now)
        for operation in batch.repairs:
            pause_s = self._damping.repaired(operation.subject.key, now, cost_s)
            if pause_s == FIRST_PAUSE_S:
                batch.fights.append(operation)

    def _with_losses(self, batch: Batch, operations: list[Operation]) -> list[Operation]:
        """Return the operations, together with operations that restore the objects that the kernel drops
        because of these operations.
        """
        restored: list[Operation] = []
        for item, left in losses(operations, self._plan):
            self._work.lose(item.key, left, type(item))
            restored.append(Add(item) if left is None else Replace(left, item))
        if not restored:
            return operations
        batch.since = self._work.generation
        return order([*operations, *self._admit(batch, restored, after=operations)], self._plan)

    def _admit(
        self, batch: Batch, operations: Sequence[Operation], after: Sequence[Operation] = ()
    ) -> list[Operation]:
        """Return the operations that can succeed now. Operations that cannot succeed yet wait in the record.

        An operation waits while another program keeps undoing it, while its target cannot be read, and while
        an object that it requires is missing. The operations `after` were admitted earlier.
        """
        admitted: list[Operation] = []
        unread, now = self._targets.unread_kinds, self._clock.now()
        missing = self._missing_host_parts(but=(*after, *operations))
        for operation in operations:
            item = operation.subject
            until = self._damping.waits_until(item.key, now) if self._damping.has_pauses else None
            if until is not None and not self._is_planned(batch, item):
                self._postpone(batch, operation, Stage.PAUSED, due_s=until)
            elif type(item) in unread or missing.blocks(operation):
                self._postpone(batch, operation, Stage.BLOCKED)
            else:
                admitted.append(operation)
                continue
            missing.note(operation)
        return admitted

    async def _apply(self, batch: Batch, operations: Sequence[Operation]) -> None:
        """Apply the operations, and update the record."""
        if not operations:
            return
        began = self._clock.now()
        refused = await self._targets.apply(operations)
        cost_s = self._clock.now() - began
        keys = {refusal.operation.subject.key for refusal in refused}
        for operation in operations:
            item = operation.subject
            if keys and item.key in keys:
                continue
            done = batch.planned if self._is_planned(batch, item) else batch.repairs
            done.append(operation)
            if not self._work.is_idle:
                found = None if isinstance(operation, Remove) else item
                self._work.settle(item.key, found, type(item), batch.since)
        missing = Missing()
        for refusal in refused:
            if self._work.is_later(refusal.operation.subject.key, batch.since):
                self.look()  # the object changed in the meantime
            now = self._clock.now()
            if missing.blocks(refusal.operation):  # a missing object is the cause
                self._postpone(batch, refusal.operation, Stage.BLOCKED, tried_s=now)
            else:
                due_s = self._retry_due_s(refusal, cost_s)
                self._postpone(
                    batch, refusal.operation, Stage.REFUSED, due_s=due_s, tried_s=now, refusal=refusal
                )
                batch.refused.append(refusal)
            missing.note(refusal.operation)

    # Methods that use the record of work.

    def _postpone(
        self,
        batch: Batch,
        operation: Operation,
        stage: Stage,
        *,
        due_s: float = math.inf,
        tried_s: float = -math.inf,
        refusal: Refusal | None = None,
    ) -> None:
        item = operation.subject
        later = Mark(
            kind=type(item),
            stage=stage,
            found=_found_by(operation),
            is_planned=self._is_planned(batch, item),
            due_s=due_s,
            refusal=refusal,
            tried_s=tried_s,
        )
        self._work.postpone(item.key, later, batch.since)

    def _retry_due_s(self, refusal: Refusal, cost_s: float) -> float:
        """Return the time at which a refused operation is retried without an event.

        A permanent refusal waits for the interval of an audit. The pause after a temporary refusal doubles.
        With jitter, hosts with the same problem do not retry at the same time.
        """
        if refusal.is_permanent:
            return self._clock.now() + self._audit_s
        mark = self._work.get(refusal.operation.subject.key)
        attempts = 0 if mark is None else mark.attempts
        pause_s = min(RETRY_MIN_S * 2.0 ** min(attempts, 30), longest_pause_s(cost_s))
        pause_s = max(pause_s, RETRY_COSTS * cost_s)
        return self._clock.now() + pause_s * (0.5 + self._draw(1000) / 2000)

    def _operation_on(self, key: Key, mark: Mark) -> Operation | None:
        """Return the operation that is needed for a key, as far as the reconciler knows; None if no
        operation is needed.
        """
        planned = self._plan.by_key.get(key)
        is_unknown = mark.stage is Stage.UNKNOWN and planned is not None
        return change(None if is_unknown else mark.found, planned)

    def _is_planned(self, batch: Batch, item: Item) -> bool:
        """Return whether an operation on the item results from a change of the plan and is not a repair."""
        mark = self._work.get(item.key)
        return type(item) in batch.new_kinds or (mark is not None and mark.is_planned)

    def _is_hopeless(self, operation: Operation) -> bool:
        """Return whether the scan shows that another attempt at the operation is useless.

        An attempt is useless if the operation was refused permanently and nothing has changed since, or if it
        was refused a moment ago.
        """
        mark = self._work.get(operation.subject.key)
        if mark is None or mark.refusal is None or mark.found != _found_by(operation):
            return False
        return mark.refusal.is_permanent or self._clock.now() < mark.tried_s + RETRY_MIN_S

    def _missing_host_parts(self, but: Iterable[Operation] = ()) -> Missing:
        """Return the objects that other objects may require and that do not exist yet, except those of
        `but`.
        """
        missing, undone = Missing(), list(self._work.undone_host_parts())
        keys = {operation.subject.key for operation in but} if undone else set()
        for key, mark in undone:
            if key not in keys and (operation := self._operation_on(key, mark)) is not None:
                missing.note(operation)
        for kind in self._new_kinds:
            for item in self._plan.of_type(kind) if kind.IS_HOST_PART else ():
                missing.note(Add(item))  # the object is probably missing, because its target was never read
        return missing

    def _is_host_part_missing(self) -> bool:
        """Return whether subnet.env must wait, because a program that reads it might start containers."""
        unread = (kind for kind in self._targets.unread_kinds if kind.IS_HOST_PART)
        is_unread = any(next(self._plan.of_type(kind), None) is not None for kind in unread)
        return is_unread or bool(self._missing_host_parts())

    def _settled_kinds(self) -> Kinds:
        """Return the kinds of which every object is in place."""
        open_kinds = {mark.kind for _, mark in self._work.undone()}
        return self._targets.kinds - self._new_kinds - self._targets.unread_kinds - open_kinds


def _found_by(operation: Operation) -> Item | None:
    """Return the object that was in place when the operation was computed."""
    match operation:
        case Add():
            return None
        case Replace(old, _):
            return old
        case Remove(item):
            return item
