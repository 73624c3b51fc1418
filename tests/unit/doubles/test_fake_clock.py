"""A clock that a test sets."""

import asyncio

from doubles.fake_clock import FakeClock


def test_sleepers_wake_at_their_own_times_and_in_order() -> None:
    async def test() -> list[tuple[str, float]]:
        clock, woken = FakeClock(now=0), list[tuple[str, float]]()

        async def sleeper(name: str, *seconds: float) -> None:
            for pause in seconds:
                await clock.sleep(pause)
                woken.append((name, clock.now()))

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(sleeper("slow", 5, 5))
            tasks.create_task(sleeper("quick", 2, 2, 2))
            await clock.advance(4.5)
            assert woken == [("quick", 2), ("quick", 4)]
            await clock.advance(60)
        assert clock.now() == 64.5
        return woken

    assert asyncio.run(test()) == [("quick", 2), ("quick", 4), ("slow", 5), ("quick", 6), ("slow", 10)]


def test_a_sleeper_may_be_cancelled() -> None:
    async def test() -> None:
        clock = FakeClock()
        sleeper = asyncio.ensure_future(clock.sleep(10))
        await clock.settle()

        sleeper.cancel()
        await clock.advance(20)

        assert sleeper.cancelled()

    asyncio.run(test())


def test_the_wall_clock_advances_and_may_step() -> None:
    async def test() -> None:
        clock = FakeClock(now=10, utc=1000)
        await clock.advance(5)
        assert clock.utc() == 1005

        clock.step_utc(-3600)

        assert (clock.now(), clock.utc()) == (15, 1005 - 3600)

    asyncio.run(test())


def test_acts_are_called_at_their_time() -> None:
    async def test() -> list[float]:
        clock, times = FakeClock(now=0), list[float]()
        for when in (3, 1, 2):
            clock.call_at(when, lambda: times.append(clock.now()))
        await clock.advance(2)
        return times

    assert asyncio.run(test()) == [1, 2]
