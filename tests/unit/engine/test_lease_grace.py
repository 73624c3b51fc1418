"""A lease that vanishes is waited for, for a moment."""

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doubles.fake_clock import FakeClock
from pyflannel.engine.departures import LINGER_AFTER_ABSENCE_S, LINGER_S, Departures
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_protocol import StoreAway, StoreBack
from pyflannel.model.lease_set import LeaseSet


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


def test_when_nobody_is_waited_for_one_map_is_in_memory() -> None:
    there = LeaseSet.of([TWO])

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.departures.see(there)
        await story.clock.advance(LINGER_S * 1.1)

    story = play(act)

    assert story.departures.counted is there.by_subnet


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


@pytest.mark.parametrize("is_back", [False, True])
def test_after_an_absence_of_the_store_owners_have_longer(is_back: bool) -> None:
    """They may not have found it again yet; what vanishes long after it is no longer waited for so long."""
    lingering: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.departures.hear(StoreAway("cut", 1.0))
        if is_back:
            story.departures.hear(StoreBack())
        await story.clock.advance(LINGER_AFTER_ABSENCE_S * 0.9)
        story.see(TWO)
        await story.clock.advance(LINGER_AFTER_ABSENCE_S * 0.9)
        lingering.append(story.departures.lingering)
        await story.clock.advance(LINGER_AFTER_ABSENCE_S * 0.2)
        lingering.append(story.departures.lingering)
        story.departures.hear(StoreBack())
        await story.clock.advance(LINGER_AFTER_ABSENCE_S)
        story.see()
        await story.clock.advance(LINGER_S * 1.1)
        lingering.append(story.departures.lingering)

    play(act)

    assert lingering == [(ONE,), (), ()]


def test_nobody_is_waited_for_whose_subnet_is_another_s_in_part() -> None:
    half = Lease(subnet=next(ONE.subnet.subnets()), attributes=TWO.attributes)

    async def act(story: Story) -> None:
        story.see(ONE)
        story.see()
        assert story.departures.lingering == (ONE,)
        story.see(half)
        assert story.departures.lingering == ()

    play(act)


def test_who_leaves_later_may_be_forgotten_sooner() -> None:
    """One left as the store's absence ended, the other long after it."""
    lingering: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.departures.hear(StoreBack())
        await story.clock.advance(LINGER_AFTER_ABSENCE_S - 1)
        story.see(TWO)
        await story.clock.advance(2)
        story.see()
        await story.clock.advance(LINGER_S * 2)
        lingering.append(story.departures.lingering)

    play(act)

    assert lingering == [(ONE,)]


@given(st.lists(st.sets(st.sampled_from([1, 2, 3, 4])), max_size=8))
def test_what_counts_is_what_there_is_and_what_is_waited_for(history: list[set[int]]) -> None:
    """However the leases came and went; two of them lie within one that may come, too."""
    wide = Lease(subnet=lease(2).subnet.supernet(), attributes=TWO.attributes)

    async def act(story: Story) -> None:
        for numbers in history:
            leases = LeaseSet.of(wide if number == 4 else lease(number) for number in numbers)
            story.departures.see(leases)
            lingering = {lease.subnet: lease for lease in story.departures.lingering}
            assert dict(story.departures.counted) == lingering | dict(leases.by_subnet)
            await story.clock.advance(LINGER_S / 2)
        await story.clock.advance(LINGER_S * 1.1)
        assert dict(story.departures.counted) == (dict(leases.by_subnet) if history else {})

    play(act)
