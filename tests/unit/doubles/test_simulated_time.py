"""Simulated time advances in the order of timers, with a clock for each host, and never waits forever."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

from doubles.simulated_time import SimulatedClock, SimulatedLoop

DAY_S = 24 * 3600.0

_Result = TypeVar("_Result")


def simulate(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(coroutine)


def test_simulated_weeks_pass_immediately_and_in_order() -> None:
    async def test() -> None:
        clock, woken = SimulatedClock(), []

        async def wake_after(days: int) -> None:
            await clock.sleep(days * DAY_S)
            woken.append((days, clock.now()))

        begin = clock.now()
        await asyncio.gather(*(wake_after(days) for days in (14, 1, 7)))

        assert woken == [(days, pytest.approx(begin + days * DAY_S)) for days in (1, 7, 14)]

    simulate(test())


def test_a_host_that_slept_is_late_for_due_events() -> None:
    """The clock of this host advanced, and the clocks of the other hosts did not jump."""

    async def test() -> None:
        clock, other = SimulatedClock(), SimulatedClock()
        begin, sleeping = other.now(), asyncio.ensure_future(clock.sleep(DAY_S))
        await other.sleep(1.0)

        clock.step(DAY_S - 11.0)
        await other.sleep(9.0)
        assert not sleeping.done()

        clock.step(5.0)
        await sleeping

        assert other.now() == pytest.approx(begin + 10.0)

    simulate(test())


def test_the_wall_clock_is_set_separately() -> None:
    async def test() -> None:
        clock = SimulatedClock()
        now, utc = clock.now(), clock.utc()

        clock.step_utc(-DAY_S)

        assert clock.now() == now
        assert clock.utc() == pytest.approx(utc - DAY_S)

    simulate(test())


def test_a_scheduled_call_occurs_at_its_time() -> None:
    async def test() -> None:
        clock, called = SimulatedClock(), []
        when = clock.now() + DAY_S

        clock.call_at(when, lambda: called.append(clock.now()))
        await clock.sleep(2 * DAY_S)

        assert called == [pytest.approx(when)]

    simulate(test())


def test_a_wait_for_nothing_ends_with_an_error() -> None:
    loop = SimulatedLoop()
    waiting = loop.create_future()

    with pytest.raises(RuntimeError, match="no further event can occur"):
        loop.run_until_complete(waiting)

    loop.close()
