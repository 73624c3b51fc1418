"""The turns of the reconcilers notify the watchdog. If a reconciler hangs, the daemon sends no
notification.
"""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

from doubles.fake_clock import FakeClock
from doubles.fake_kernel import FakeKernel
from pyflannel.engine.readiness import ALIVE, Liveness
from pyflannel.engine.reconciler import Reconciler
from pyflannel.model.link import Link
from pyflannel.model.state import Operation, Refusal, Replaced, State

PLAN = State.of(Link(name="flannel0", kind="tun", mtu=1472))


def test_the_watchdog_is_notified_only_after_turns_of_all_networks() -> None:
    said: list[str] = []
    liveness = Liveness(said.append, FakeClock(), watchdog_s=30)

    with liveness.watched() as red, liveness.watched() as blue:
        red()
        red()
        assert said == []
        blue()
        assert said == [ALIVE]
        blue()
        assert said == [ALIVE]
        red()

    assert said == [ALIVE, ALIVE]


def test_a_removed_network_is_not_awaited() -> None:
    said: list[str] = []
    liveness = Liveness(said.append, FakeClock(), watchdog_s=30)

    with liveness.watched() as red:
        with liveness.watched():
            red()
        assert said == []
        red()
        red()

    assert said == [ALIVE, ALIVE]


def test_nothing_is_sent_without_a_watchdog() -> None:
    said: list[str] = []
    liveness = Liveness(said.append, FakeClock(), watchdog_s=None)

    with liveness.watched() as red:
        red()
    asyncio.run(liveness.run())

    assert said == []


def test_a_daemon_that_has_no_network_yet_notifies_the_watchdog() -> None:
    async def check() -> None:
        said: list[str] = []
        clock = FakeClock()
        liveness = Liveness(said.append, clock, watchdog_s=30)
        task = asyncio.ensure_future(liveness.run())

        await clock.advance(60)
        assert len(said) == 5  # at the start, and every 15 s
        with liveness.watched():
            await clock.advance(60)
            assert len(said) == 5

        task.cancel()

    asyncio.run(check())


class StuckKernel(FakeKernel):
    """A target that takes an operation and never answers, after the test stalls it."""

    is_stuck = False

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        if self.is_stuck:
            await asyncio.Event().wait()
        return await super().apply(operations)


def test_the_turns_of_a_reconciler_notify_the_watchdog_unless_a_pass_hangs() -> None:
    async def check() -> None:
        times: list[float] = []
        clock, kernel = FakeClock(), StuckKernel()
        liveness = Liveness(lambda text: times.append(clock.now()), clock, watchdog_s=3)
        with liveness.watched() as alive:
            reconciler = Reconciler(targets=[kernel], clock=clock, alive=alive, audit_s=liveness.pause_s)
            reconciler.follow(Replaced(PLAN))
            task = asyncio.ensure_future(reconciler.run())

            await clock.advance(30)
            gaps = [later - earlier for earlier, later in pairwise(times)]
            assert len(gaps) >= 20
            assert max(gaps) < 3

            kernel.is_stuck = True
            kernel.state = State.EMPTY
            times.clear()
            await clock.advance(30)
            assert max(later - earlier for earlier, later in pairwise(times)) > 3

            task.cancel()

    asyncio.run(check())


def test_a_reconciler_without_a_plan_notifies_the_watchdog() -> None:
    async def check() -> None:
        signs: list[None] = []
        clock = FakeClock()
        reconciler = Reconciler(
            targets=[FakeKernel()],
            clock=clock,
            alive=lambda: signs.append(None),
            audit_s=5,
        )
        task = asyncio.ensure_future(reconciler.run())

        await clock.advance(20)
        task.cancel()

        assert len(signs) == 5

    asyncio.run(check())
