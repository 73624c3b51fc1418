"""The law: after any history, a host soon equals the plan of its inputs, and no other object was changed.

A host has a history of events. Then all troubles end except for one target, which remains silent, and the
other targets must be correct. In the end, the silent target responds again, and the whole host must be
correct and remain correct. Finally, the inputs change once, and the host is damaged once, without a trouble.

"Soon" is a limited number of simulated seconds: `Life.patience_s`.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from doubles.simulated_time import SimulatedLoop
from engine_law.host import Part
from engine_law.life import SOON_S, Life
from engine_law.steps import History
from pyflannel.engine.list_watch import REOPEN_MIN_S
from pyflannel.engine.reconciler import AUDIT_S

BUSY_S = 4.0
"""Seconds between two announcements of a busy host: less than between two audits."""

QUIET_S = 25.0
"""Seconds for which the host is watched after it is correct."""

RIGHT = "the kernel equals the plan"
OTHERS_RIGHT = "the kernel equals the plan, but for a silent target"
CLEAN = "the engine reports the host as planned if it is, and only then"
REPAIRS = "a repair follows damage"
QUIET = "nothing is done while nothing happens"
REFUSALS = "the kernel is asked for nothing that it must refuse"
LOOKS = "a scan is an audit, or follows an announcement, another plan or a failed read"
COUNTS = "the counters match the operations"


class BrokenLaw(AssertionError):
    """The engine broke a rule."""


def check(history: History) -> None:
    """Let a host perform the history.

    Raises:
        BrokenLaw: the engine broke a rule.
    """
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(_check(history))


async def _check(history: History) -> None:
    life = Life(history)
    engine = asyncio.create_task(life.reconciler.run())
    try:
        with _listening(life):
            await _judge(life)
        _demand(not engine.done(), "the engine runs on")
    finally:
        engine.cancel()
        with suppress(asyncio.CancelledError):
            await engine


async def _judge(life: Life) -> None:
    began = life.clock.now()
    await life.perform()
    async with _busy(life):
        if life.history.silent is not None:
            await _check_others(life, life.host.parts[life.history.silent])
        life.end_troubles()
        await _settle(life, life.patience_s)
        await _stay(life)
    await _change(life)
    await _damage(life)
    _check_looks(life, life.looks, life.causes_of_looks, began)
    counts, failures = life.reconciler.counts, sum(part.failures for part in life.host.parts)
    _demand(counts.failures == failures, COUNTS, counts.failures, failures)
    # One comparison uses at most one response of each target. In addition, one scan may be in progress.
    _demand(max(life.looks) - 1 <= counts.passes <= sum(life.looks), COUNTS, counts.passes, life.looks)


async def _check_others(life: Life, silent: Part) -> None:
    """Check that all independent objects are repaired while a target is silent."""
    life.end_troubles(silent=silent)
    await life.until(lambda: not life.differences(silent), life.patience_s)
    _demand(not life.differences(silent), OTHERS_RIGHT, *life.differences(silent))
    _check_repairs(life)


async def _settle(life: Life, seconds: float) -> None:
    """Check that the host is correct within this number of seconds, and that the engine reports that the host
    is correct.
    """
    reconciler = life.reconciler
    await life.until(lambda: not life.differences() and reconciler.is_clean, seconds)
    _demand(not life.differences(), RIGHT, *life.differences())
    left = [*reconciler.refused(), *reconciler.delayed()]
    _demand(life.wanted is None or (reconciler.is_clean and not left), CLEAN, reconciler.error, *left)
    _demand(not life.clean_writes, CLEAN, life.clean_writes)
    _check_repairs(life)


async def _stay(life: Life) -> None:
    """Check that the host does not change while audits read it."""
    await asyncio.sleep(2 * REOPEN_MIN_S)  # failed channels are open again
    parts, began = life.host.parts, life.clock.now()
    looks, causes = life.looks, life.causes_of_looks
    state, tries = life.host.kernel.state, [part.tries for part in parts]
    await asyncio.sleep(QUIET_S)
    _demand(life.host.kernel.state == state and [part.tries for part in parts] == tries, QUIET)
    _demand(life.wanted is None or life.reconciler.is_clean, CLEAN)
    _check_looks(
        life,
        [now - before for now, before in zip(life.looks, looks, strict=True)],
        life.causes_of_looks - causes,
        began,
    )


async def _change(life: Life) -> None:
    """Check that another plan takes effect immediately, without a repair and without a refusal."""
    asked, repairs = len(life.host.kernel.own_refusals), len(life.repairs)
    life.change(life.history.change)
    await _settle(life, SOON_S)
    _demand(len(life.repairs) == repairs, REPAIRS, *life.repairs[repairs:])
    refused = life.host.kernel.own_refusals[asked:]
    _demand(not refused, REFUSALS, *refused)


async def _damage(life: Life) -> None:
    """Check that damage is repaired immediately and reported, without a refusal."""
    asked, repairs = len(life.host.kernel.own_refusals), len(life.repairs)
    life.damage(life.history.damage)
    is_damaged = bool(life.differences())
    await _settle(life, SOON_S)
    _demand(len(life.repairs) > repairs or not is_damaged, REPAIRS, "nothing was reported")
    refused = life.host.kernel.own_refusals[asked:]
    _demand(not refused, REFUSALS, *refused)


def _check_repairs(life: Life) -> None:
    """Check that only repairs of damaged objects are reported, equally in log, journal and counters."""
    undamaged = life.undamaged_repairs
    _demand(not undamaged, REPAIRS, *undamaged, *life.repairs)
    counts, repaired = life.reconciler.counts, life.witness.repaired
    counted = {kind: count for kind, count in counts.repairs_by_kind.items() if count}
    _demand(counted == Counter(item.KIND for item in repaired), COUNTS, counted, *repaired)
    _demand(counts.repairs == len(repaired), COUNTS, counts.repairs, *repaired)
    _demand(counts.last_repair == (life.repairs[-1] if life.repairs else None), COUNTS, *life.repairs)


def _check_looks(life: Life, looks: list[int], causes: int, since: float) -> None:
    """Check that the number of reads of each target since a time is not greater than the number of causes."""
    audits = (life.clock.now() - since) / AUDIT_S
    _demand(max(looks) <= causes + audits + 2, LOOKS, looks, causes, audits)


@asynccontextmanager
async def _busy(life: Life) -> AsyncIterator[None]:
    """Announce changes of foreign objects constantly if the history requires it."""

    async def keep_busy() -> None:
        while life.history.is_busy:
            await asyncio.sleep(BUSY_S)
            life.host.parts[0].announce()

    task = asyncio.create_task(keep_busy())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@contextmanager
def _listening(life: Life) -> Iterator[None]:
    """Pass the log of the engine to the `Life`, and print nothing."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            life.read_log_line(record.getMessage())

    log = logging.getLogger("pyflannel")
    listener, level, propagates = Listener(), log.level, log.propagate
    log.addHandler(listener)
    log.setLevel(logging.WARNING)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
        log.propagate = propagates


def _demand(holds: bool, rule: str, *found: object) -> None:
    if not holds:
        raise BrokenLaw(": ".join([rule, *map(str, found)]))
