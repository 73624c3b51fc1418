"""Repairs that another program undoes, forgotten objects, and the number of log lines per minute."""

import asyncio
import logging

import pytest

from doubles.fake_clock import FakeClock
from pyflannel.engine.pacing import (
    COSTS,
    FIGHT_REPAIRS,
    FIGHT_WINDOW_S,
    LINES_A_MINUTE,
    LONGEST_PAUSE_S,
    PAUSE_S,
    Damping,
    LogLimit,
)


def test_objects_without_further_damage_are_forgotten() -> None:
    """Each of ten thousand routes may be repaired once while the daemon runs."""
    damping = Damping()
    for number in range(100):
        damping.repaired(number, 0.0)
    damping.repaired("late", 1.0)
    assert damping.remembered == 101

    damping.forget(FIGHT_WINDOW_S)

    assert damping.remembered == 1


def test_repairs_that_were_undone_are_remembered_until_a_window_after_the_pause() -> None:
    damping = Damping()
    pauses = [damping.repaired("route", 0.1 * number) for number in range(FIGHT_REPAIRS)]
    assert pauses[:-1] == [None] * (FIGHT_REPAIRS - 1)
    first = pauses[-1]
    assert first is not None
    until = damping.waits_until("route", 0.1 * FIGHT_REPAIRS)
    assert until is not None

    damping.forget(until + FIGHT_WINDOW_S)
    assert damping.repaired("route", until + FIGHT_WINDOW_S) == 2 * first

    damping.forget(until + first + 3 * FIGHT_WINDOW_S)
    assert damping.remembered == 0


def test_a_pause_is_no_longer_than_the_cost_of_repairs_requires() -> None:
    """Cheap repairs occur every second. Expensive repairs use a tenth of a core, or occur every few
    seconds.
    """
    for cost_s, longest_s in ((0.001, PAUSE_S), (0.2, COSTS * 0.2), (0.42, LONGEST_PAUSE_S)):
        damping, now, pauses = Damping(), 0.0, []
        for _ in range(60):
            pauses.append(damping.repaired("route", now, cost_s))
            now = (damping.waits_until("route", now) or now) + 0.3

        assert max(pause for pause in pauses if pause is not None) == longest_s


def test_lines_above_the_limit_per_minute_are_only_counted(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        clock = FakeClock()
        limit = LogLimit(logging.getLogger("pyflannel.test"), clock, "bad keys")
        for number in range(1000):
            limit.line(logging.WARNING, "Skipped %d", number)
        await clock.advance(60)
        limit.line(logging.WARNING, "Skipped %s", "another")
        await clock.advance(60)
        limit.line(logging.WARNING, "Skipped %s", "the last")

    asyncio.run(check())

    said = [record.getMessage() for record in caplog.records]
    assert said == [
        *(f"Skipped {number}" for number in range(LINES_A_MINUTE)),
        "Omitting more lines about bad keys for a minute",
        f"Omitted {1000 - LINES_A_MINUTE} lines about bad keys",
        "Skipped another",
        "Skipped the last",
    ]
    assert {record.filename for record in caplog.records} == {"test_pacing.py"}
