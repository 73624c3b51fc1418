"""A lease that vanishes is waited for, for a moment."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network

from pyflannel.engine.departures import LINGER_S, Departures
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_set import LeaseSet
from pyflannel.testing.fake_clock import FakeClock


def lease(number: int, revision: int = 1) -> Lease:
    return Lease(
        subnet=IPv4Network((int(IPv4Address("10.100.0.0")) + 256 * number, 24)),
        attributes=LeaseAttributes(public_ip=IPv4Address("192.0.2.0") + number),
        revision=revision,
    )


ONE, TWO = lease(1), lease(2)


class Story:
    """Departures that run on a clock of the test's; `changes` counts what they announced."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.changes = 0
        self.departures = Departures(self.clock, self._count)

    def _count(self) -> None:
        self.changes += 1

    def see(self, *leases: Lease) -> None:
        self.departures.see(LeaseSet.of(leases))


def play(act: Callable[[Story], Awaitable[None]]) -> Story:
    story = Story()

    async def run() -> None:
        task = asyncio.create_task(story.departures.run())
        await act(story)
        task.cancel()

    asyncio.run(run())
    return story


def test_a_lease_that_vanished_lingers_and_is_then_forgotten() -> None:
    lingering: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.see(TWO)
        await story.clock.advance(LINGER_S * 0.9)
        lingering.append(story.departures.lingering)
        await story.clock.advance(LINGER_S * 0.2)
        lingering.append(story.departures.lingering)

    story = play(act)

    assert lingering == [(ONE,), ()]
    assert story.changes == 1


def test_a_lease_that_comes_back_does_not_linger() -> None:
    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.see(TWO)
        story.see(lease(1, revision=5), TWO)
        assert story.departures.lingering == ()
        await story.clock.advance(LINGER_S * 2)

    assert play(act).changes == 0


def test_each_has_its_own_time() -> None:
    """One that leaves again is waited for anew."""
    lingering: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.see()
        await story.clock.advance(LINGER_S / 2)
        story.see(ONE)
        story.see()
        await story.clock.advance(LINGER_S * 0.6)
        lingering.append(story.departures.lingering)
        await story.clock.advance(LINGER_S / 2)
        lingering.append(story.departures.lingering)

    story = play(act)

    assert lingering == [(ONE,), ()]
    assert story.changes == 2
