"""The reconciler: whatever happens to the kernel, a pass makes it equal to the plan again."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Set
from dataclasses import dataclass, field

from pyflannel.engine.damping import Damping
from pyflannel.engine.host_followers import hear, pause
from pyflannel.engine.journal import Journal
from pyflannel.errors import TargetError
from pyflannel.model.host_file import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import MARK
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.plan.describe import found
from pyflannel.plan.diff import Missing, diff, order
from pyflannel.plan.ownership import ours, taken_links, without_links
from pyflannel.ports import Clock, Target

log = logging.getLogger(__name__)

AUDIT_S = 10.0
"""Pause after which a pass looks without being told: the kernel does not announce everything."""

AUDITED_PER_S = 1000
"""So many objects an audit may look at for each second since the last: some 10 µs each are 1 % of a core."""

REFUSED_PAUSE_MAX_S = 1.0
"""Longest pause before what was refused is tried again; whatever removes the cause then helps at once."""

NAMED_IN_LOG = 8
"""So many objects are named in one line."""


@dataclass(kw_only=True)
class PassCounts:
    """What the passes did so far; `held` is what the latest left for later, as somebody fights over it.

    Attributes:
        repairs_by_kind: how many objects were mended.
        failures: passes that could not read what is there.
        duration_s: of the latest pass that ended.
        has_given_up: the latest was refused something that leaves the plan because of it.
    """

    passes: int = 0
    repairs_by_kind: Counter[str] = field(default_factory=Counter)
    failures: int = 0
    duration_s: float | None = None
    last_repair: str | None = None
    refused: tuple[Refusal, ...] = ()
    has_given_up: bool = False
    held: tuple[Operation, ...] = ()
    error: str | None = None
    has_applied: bool = False

    @property
    def repairs(self) -> int:
        """How many objects were mended."""
        return self.repairs_by_kind.total()

    @property
    def is_clean(self) -> bool:
        """The last pass left nothing undone."""
        is_undone = self.refused or self.has_given_up or self.held
        return self.has_applied and not is_undone and self.error is None


class Reconciler:
    """Repairs the target after every change, whoever made it, and at every audit.

    A change of single peers is applied at once and without a look: a put takes what stands at its key, and a
    removal names what we had put there. The next look finds what that left.

    `desired` gives the plan, or None while there is none yet. Single peers may be exchanged in it at any
    time, with a word by `change`; it is another after `wake`. `passed` hears of each pass, and `alive` of
    each turn of the loop, with a plan or without: they are never further apart than a pass and the pause
    after it, `audit_s`. `judge` hears what each pass was refused, or that it was nothing, and returns what of
    it is to be said and waited for: for the rest there is another plan.
    """

    def __init__(
        self,
        *,
        target: Target,
        clock: Clock,
        desired: Callable[[], State | None],
        judge: Callable[[tuple[Refusal, ...]], tuple[Refusal, ...]] = lambda refused: refused,
        passed: Callable[[], None] = lambda: None,
        alive: Callable[[], object] = lambda: None,
        audit_s: float = AUDIT_S,
        mark: str = MARK,
        device: str = FIRST_DEVICE,
        journal: Journal | None = None,
    ) -> None:
        self._target = target
        self._clock = clock
        self._desired = desired
        self._judge = judge
        self._passed = passed
        self._alive = alive
        self._audit_s = audit_s
        self._mark = mark
        self._device = device
        self._journal = Journal(clock) if journal is None else journal
        self._must_look = asyncio.Event()
        self._has_other_plan = False  # than that of the latest pass, and not by a change of single peers
        self._may_change = asyncio.Event()
        self._writing = asyncio.Lock()
        self._pending: dict[Hashable, Operation] = {}
        self._changed_while_looking: set[Hashable] | None = None  # as nobody looks
        self._planned = State.EMPTY  # what was applied, but for what stands under these keys:
        self._not_applied: set[Hashable] = set()
        self._damping = Damping()
        self._failures = 0
        self._looked_at = float("-inf")
        self._count = 0
        self.counts = PassCounts()

    def wake(self) -> None:
        """Make a pass soon: anything may have changed."""
        self._has_other_plan = True
        self._must_look.set()

    def change(self, operations: Iterable[Operation]) -> None:
        """Apply this change of the plan soon; until a pass has left nothing undone, by a pass."""
        by_key = {_subject(operation).key: operation for operation in operations}
        self._not_applied.update(by_key)
        if self._has_other_plan or not self.counts.is_clean:
            self.wake()  # what the change builds on may not be there yet
            return
        self._planned = self._desired() or State.EMPTY
        for key, operation in by_key.items():
            self._pending.pop(key, None)  # so that the later is behind
            self._pending[key] = operation
        self._may_change.set()

    async def run(self) -> None:
        """Run until cancelled; if a task fails, the others are cancelled. The target stays as it is."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hear(self._target.changes, self._clock, self._must_look), name="watch target")
            tasks.create_task(self._follow_changes(), name="follow changes")
            tasks.create_task(self._reconcile(), name="reconcile")

    async def _follow_changes(self) -> None:
        while True:
            await self._may_change.wait()
            async with self._writing:
                self._may_change.clear()
                operations, self._pending = order(self._pending.values()), {}
                if operations:
                    await self._make_change(operations)

    async def _make_change(self, operations: list[Operation]) -> None:
        keys = {_subject(operation).key for operation in operations}
        self._not_applied -= keys
        refused = await self._target.apply(operations)
        if self._changed_while_looking is not None:
            # Now, and not before: a look that began meanwhile may have missed it, too.
            self._changed_while_looking |= keys
        log.info("Applied a change of the plan operations=%d refused=%d", len(operations), len(refused))
        self._journal.note("planned", operations)
        _tell_each(operations)
        if refused:
            self._not_applied.update(_subject(refusal.operation).key for refusal in refused)
            self.wake()  # a pass tries again, and says what is refused

    async def _reconcile(self) -> None:
        while True:
            pause_s = self._audit_s
            if self._must_look.is_set() or self._is_audit_due():
                self._must_look.clear()  # first, so that a change during the pass counts
                desired = self._desired()
                if desired is not None:
                    pause_s = await self._pass(desired)
                    self._passed()
            self._alive()
            await pause(self._clock, pause_s, until=self._must_look)

    def _is_audit_due(self) -> bool:
        """Return whether it is time to look without being told: the more there is, the less often."""
        pause_s = max(self._audit_s, self._count / AUDITED_PER_S)
        return not self.counts.is_clean or self._clock.now() - self._looked_at >= pause_s

    async def _pass(self, interest: State) -> float:
        """Make one pass; return the seconds until the next that nobody asks for."""
        self.counts.passes += 1
        self._looked_at = self._clock.now()
        self._changed_while_looking = set()
        try:
            snapshot = await self._target.snapshot(interest)
        except TargetError as error:
            self._changed_while_looking = None
            return await self._fail(error)
        async with self._writing:
            desired = self._desired() or interest
            self._pending.clear()  # it is in the plan
            self._has_other_plan = False
            taken = taken_links(snapshot, desired, self._mark)
            desired = without_links(desired, taken.keys()) if taken else desired
            actual = ours(snapshot, desired, self._mark, self._device)
            self._count = len(desired)
            wanted = diff(desired, actual)
            changed, self._changed_while_looking = self._changed_while_looking, None
            if changed:
                wanted = (o for o in wanted if _subject(o).key not in changed)
            operations, wait_s = self._admitted(order(wanted), desired)
            damaged = {_subject(o).key for o in operations if self._is_repair(o, desired)}
            self._planned, self._not_applied = desired, set()
            refused, left = await self._apply(operations, tuple(taken.values()))
            undone = {_subject(operation).key for operation in (*left, *(each.operation for each in refused))}
            self._not_applied |= undone - damaged  # which stood: the pass that mends it repairs it
            self._tell([o for o in operations if _subject(o).key not in undone], refused, damaged)
            self.counts.has_applied, self.counts.error = True, None
            self.counts.duration_s = self._clock.now() - self._looked_at
        if not refused:
            self._failures = 0
            return min(self._audit_s, wait_s)
        return await self._rest()

    async def _apply(
        self, operations: list[Operation], refused: tuple[Refusal, ...]
    ) -> tuple[tuple[Refusal, ...], list[Operation]]:
        """Apply the operations; return what was refused, `refused` before all, and what was left for later.

        Files wait until the host's own part stands: whoever reads subnet.env may start containers at once.
        """
        files = [operation for operation in operations if isinstance(_subject(operation), HostFile)]
        objects = [operation for operation in operations if not isinstance(_subject(operation), HostFile)]
        refused += tuple(await self._target.apply(objects)) if objects else ()
        if any(_subject(refusal.operation).IS_HOST_PART for refusal in refused):
            return refused, files
        if files:
            refused += tuple(await self._target.apply(files))
        return refused, []

    async def _fail(self, error: TargetError) -> float:
        if self.counts.error != str(error):
            log.error("Could not read what is there: %s. %s", error, error.hint)
        self.counts.error = str(error)
        self.counts.failures += 1
        return await self._rest()

    async def _rest(self) -> float:
        """Pause before what failed is tried again, however often the target says that it changed."""
        self._failures += 1
        await self._clock.sleep(min(0.05 * 2.0 ** min(self._failures, 10), REFUSED_PAUSE_MAX_S))
        return 0.0

    def _admitted(self, operations: Iterable[Operation], desired: State) -> tuple[list[Operation], float]:
        """Return the operations on objects that nobody fights over, and the seconds until the next may go.

        A changed plan waits for no fight; what hangs on an object that must wait waits with it.
        """
        admitted: list[Operation] = []
        held: list[Operation] = []
        missing = Missing()
        wait_s, now = self._audit_s, self._clock.now()
        for operation in operations:
            item = _subject(operation)
            until = self._damping.waits_until(item.key, now) if self._is_repair(operation, desired) else None
            if until is not None:
                wait_s = min(wait_s, until - now)
            elif not missing.blocks(operation):
                admitted.append(operation)
                continue
            held.append(operation)
            missing.note(operation)
        self.counts.held = tuple(held)
        return admitted, wait_s

    def _tell(self, done: list[Operation], refused: tuple[Refusal, ...], damaged: Set[Hashable]) -> None:
        repairs = [operation for operation in done if _subject(operation).key in damaged]
        if repairs:
            self.counts.repairs_by_kind.update(_subject(operation).KIND for operation in repairs)
            self.counts.last_repair = _listing(repairs)
            self._journal.note("repaired", repairs)
            log.warning("Repaired %s", self.counts.last_repair)
            self._tell_fights(repairs)
        if len(done) > len(repairs):
            self._journal.note("planned", [o for o in done if _subject(o).key not in damaged])
            log.info("Applied the plan operations=%d refused=%d", len(done) - len(repairs), len(refused))
        _tell_each(done)
        remaining = self._judge(refused)
        self._tell_refused(remaining)
        self.counts.refused, self.counts.has_given_up = remaining, len(remaining) < len(refused)

    def _is_repair(self, operation: Operation, desired: State) -> bool:
        """Return whether somebody damaged what stood, rather than the plan having changed."""
        key = _subject(operation).key
        return (
            self.counts.has_applied
            and key not in self._not_applied
            and self._planned.by_key.get(key) == desired.by_key.get(key)
        )

    def _tell_refused(self, refused: tuple[Refusal, ...]) -> None:
        """Say each cause once; what only wants a link that was refused itself would hide it."""
        known = {(found(r.operation), r.cause) for r in self.counts.refused}
        missing = {_subject(r.operation).key for r in refused if isinstance(r.operation, Add)}
        news: dict[tuple[str, str], list[Operation]] = {}
        for refusal in refused:
            operation, cause = refusal.operation, refusal.cause
            if (found(operation), cause) in known:
                continue
            if any(key in missing for key in _subject(operation).requires):
                log.debug("%s; refused: %s", found(operation), cause)
            else:
                news.setdefault((cause, refusal.hint), []).append(operation)
        for (cause, hint), operations in news.items():
            self._journal.note("refused", operations, cause)
            log.error("%s; refused: %s. %s", _listing(operations), cause, hint)

    def _tell_fights(self, repairs: list[Operation]) -> None:
        now = self._clock.now()
        self._damping.forget(now)
        for operation in repairs:
            pause_s = self._damping.repaired(_subject(operation).key, now)
            if pause_s is not None:
                self._journal.note("fought over", [operation])
                log.error(
                    "Somebody keeps undoing our repairs: %s. The next one waits %.0f s. Find the program that"
                    " manages this object (NetworkManager, systemd-networkd, dhcpcd) and exclude it there.",
                    found(operation),
                    pause_s,
                )


def _subject(operation: Operation) -> Item:
    match operation:
        case Add(item) | Remove(item) | Replace(_, item):
            return item


def _tell_each(operations: Iterable[Operation]) -> None:
    if log.isEnabledFor(logging.DEBUG):
        for operation in operations:
            log.debug("%s %s", type(operation).__name__, found(operation))


def _listing(operations: list[Operation]) -> str:
    named = "; ".join(found(operation) for operation in operations[:NAMED_IN_LOG])
    more = len(operations) - NAMED_IN_LOG
    return f"{named}; and {more} more" if more > 0 else named
