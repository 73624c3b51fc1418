"""The report of a batch of operations: entries of the journal, log lines and counters."""

import logging
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from msgspec import Struct, field

from pyflannel.errors import sentences
from pyflannel.model.item import Item
from pyflannel.model.state import Operation, Refusal
from pyflannel.model.status import Durations, Event, JournalEntry
from pyflannel.plan.diff import found
from pyflannel.ports import Clock

log = logging.getLogger(__name__)

ROOM = 1000
"""Maximum number of entries in the journal. The entries are lost when the daemon exits."""

NAMED_AT_ONCE = 100
"""Maximum number of objects of one pass that have their own entries, so that a start leaves room for older
entries."""

NAMED_IN_LOG = 8
"""Maximum number of objects that one log line names."""


class Journal:
    """The last entries of the journal, the oldest first."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._entries: deque[JournalEntry] = deque(maxlen=ROOM)

    def note(self, event: Event, operations: Sequence[Operation], cause: str = "") -> None:
        """Add an entry for each operation of a pass, with the cause if the operations were refused."""
        at, because = self._clock.utc(), f": {cause}" if cause else ""
        for operation in operations[:NAMED_AT_ONCE]:
            self._entries.append(JournalEntry(at=at, event=event, found=f"{found(operation)}{because}"))
        more = len(operations) - NAMED_AT_ONCE
        if more > 0:
            self._entries.append(JournalEntry(at=at, event=event, found=f"and {more} more{because}"))

    def entries(self) -> list[JournalEntry]:
        """Return the entries, the oldest first."""
        return list(self._entries)


class Counts(Struct, kw_only=True):
    """Counters of the reconciler since its start.

    Attributes:
        passes: number of times that flanneld compared the state of the host with the plan.
        failures: number of failed attempts to read a target.
        duration_s: duration of the latest comparison, including its operations.
        pass_durations: the durations of all comparisons.
        peer_durations: times from a change of peers in the plan until the state of the host equals the plan.
        repairs_by_kind: number of repaired objects; each kind has an entry.
        last_repair: the damage that the latest repair found.
    """

    passes: int = 0
    failures: int = 0
    duration_s: float | None = None
    pass_durations: Durations = field(default_factory=Durations)
    peer_durations: Durations = field(default_factory=Durations)
    repairs_by_kind: Counter[str] = field(default_factory=Counter)
    last_repair: str | None = None

    def add_pass(self, duration_s: float) -> None:
        """Count a comparison."""
        self.passes += 1
        self.duration_s = duration_s
        self.pass_durations = self.pass_durations.plus(duration_s)

    @property
    def repairs(self) -> int:
        """The number of objects that were repaired."""
        return self.repairs_by_kind.total()


class Batch(Struct):
    """A batch of operations, and their outcome.

    Attributes:
        since: generation of the plan from which the operations were computed.
        new_kinds: kinds that were not applied before, so that no operation on them is a repair.
        refused: the operations that did not take effect.
        planned: the operations that resulted from a change of the plan, in the order in which they were
            applied.
        repairs: the operations that repaired damage.
        fights: the repairs that another program keeps undoing, if this batch showed it.
    """

    since: int
    new_kinds: frozenset[type[Item]] = frozenset()
    refused: list[Refusal] = field(default_factory=list)
    planned: list[Operation] = field(default_factory=list)
    repairs: list[Operation] = field(default_factory=list)
    fights: list[Operation] = field(default_factory=list)

    def done(self) -> Iterator[Operation]:
        """Yield the operations that took effect."""
        return chain(self.planned, self.repairs)


class BatchReport:
    """Reports each batch to the log, the counters and the journal. This class decides nothing."""

    def __init__(self, journal: Journal, kinds: Iterable[type[Item]]) -> None:
        self._journal = journal
        self.counts = Counts(repairs_by_kind=Counter({kind.KIND: 0 for kind in kinds}))

    def report(self, batch: Batch) -> None:
        """Report the operations that took effect."""
        if batch.repairs:
            self.counts.repairs_by_kind.update(operation.subject.KIND for operation in batch.repairs)
            self.counts.last_repair = _listing(batch.repairs)
            self._journal.note("repaired", batch.repairs)
            log.warning("Repaired %s", self.counts.last_repair)
        for operation in batch.fights:
            self._journal.note("fought over", [operation])
            log.error(
                "Delayed the next repair: another program keeps changing this object object=%s. Find the"
                " program that manages the object (NetworkManager, systemd-networkd, dhcpcd) and exclude the "
                "object in its configuration.",
                found(operation),
            )
        if batch.planned:
            self._journal.note("planned", batch.planned)
            log.info("Applied the plan operations=%d refused=%d", len(batch.planned), len(batch.refused))
        if log.isEnabledFor(logging.DEBUG):
            for operation in batch.done():
                log.debug("%s %s", type(operation).__name__, found(operation))

    def report_refusals(self, refused: Iterable[Refusal], known: Iterable[Refusal]) -> None:
        """Report each cause of refusals, with the objects that it affects, unless the cause is `known`."""
        before = {(found(one.operation), one.cause) for one in known}
        by_cause: dict[tuple[str, str], list[Operation]] = {}
        for one in refused:
            if (found(one.operation), one.cause) not in before:
                by_cause.setdefault((one.cause, one.hint), []).append(one.operation)
        for (cause, hint), operations in by_cause.items():
            self._journal.note("refused", operations, cause)
            log.error("%s; refused: %s", _listing(operations), sentences(cause, hint))


def _listing(operations: Sequence[Operation]) -> str:
    named = "; ".join(found(operation) for operation in operations[:NAMED_IN_LOG])
    more = len(operations) - NAMED_IN_LOG
    return f"{named}; and {more} more" if more > 0 else named
