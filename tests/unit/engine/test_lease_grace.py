"""A lease that disappears remains valid for its grace period."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from doubles.fake_clock import FakeClock
from pyflannel.engine.kept_leases import GRACE_S, SILENCE_S, LeaseGrace
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
    """Grace periods on the clock of the test; `changes` counts their notifications."""

    def __init__(self, renewal_margin_s: float = 3600.0) -> None:
        self.clock = FakeClock()
        self.changes = 0
        self.grace = LeaseGrace(self.clock, self._count, renewal_margin_s=renewal_margin_s)

    def _count(self) -> None:
        self.changes += 1

    def see(self, *leases: Lease) -> None:
        self.grace.update(LeaseSet.of(leases))


def play(act: Callable[[Story], Awaitable[None]], *, renewal_margin_s: float = 3600.0) -> Story:
    story = Story(renewal_margin_s)

    async def run() -> None:
        task = asyncio.create_task(story.grace.run())
        await act(story)
        task.cancel()

    asyncio.run(run())
    return story


def test_a_disappeared_lease_remains_for_a_while_and_is_then_forgotten() -> None:
    vanished: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.see(TWO)
        await story.clock.advance(GRACE_S * 0.9)
        vanished.append(story.grace.vanished)
        await story.clock.advance(GRACE_S * 0.2)
        vanished.append(story.grace.vanished)

    story = play(act)

    assert vanished == [(ONE,), ()]
    assert story.changes == 1


def test_without_disappeared_leases_only_one_map_is_in_memory() -> None:
    there = LeaseSet.of([TWO])

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.grace.update(there)
        await story.clock.advance(GRACE_S * 1.1)

    story = play(act)

    assert story.grace.counted is there.by_subnet


def test_a_lease_that_returns_has_no_grace_period() -> None:
    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.see(TWO)
        story.see(lease(1, revision=5), TWO)
        assert story.grace.vanished == ()
        await story.clock.advance(GRACE_S * 2)

    assert play(act).changes == 0


def test_each_lease_has_its_own_grace_period() -> None:
    """The grace period of a lease that disappears again starts again."""
    vanished: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.see()
        await story.clock.advance(GRACE_S / 2)
        story.see(ONE)
        story.see()
        await story.clock.advance(GRACE_S * 0.6)
        vanished.append(story.grace.vanished)
        await story.clock.advance(GRACE_S / 2)
        vanished.append(story.grace.vanished)

    story = play(act)

    assert vanished == [(ONE,), ()]
    assert story.changes == 2


@pytest.mark.parametrize("is_back", [False, True])
def test_after_an_outage_of_the_store_the_grace_period_is_longer(is_back: bool) -> None:
    """After an outage, other hosts may not have reached the store yet. Later, the grace period is short
    again.
    """
    vanished: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.grace.note_report(StoreAway("cut", 1.0))
        if is_back:
            story.grace.note_report(StoreBack())
        await story.clock.advance(SILENCE_S * 0.9)
        story.see(TWO)
        await story.clock.advance(SILENCE_S * 0.9)
        vanished.append(story.grace.vanished)
        await story.clock.advance(SILENCE_S * 0.2)
        vanished.append(story.grace.vanished)
        story.grace.note_report(StoreBack())
        await story.clock.advance(SILENCE_S)
        story.see()
        await story.clock.advance(GRACE_S * 1.1)
        vanished.append(story.grace.vanished)

    play(act)

    assert vanished == [(ONE,), (), ()]


def test_a_lease_that_another_overlaps_has_no_grace_period() -> None:
    half = Lease(subnet=next(ONE.subnet.subnets()), attributes=TWO.attributes)

    async def act(story: Story) -> None:
        story.see(ONE)
        story.see()
        assert story.grace.vanished == (ONE,)
        story.see(half)
        assert story.grace.vanished == ()

    play(act)


def test_a_later_loss_may_be_forgotten_sooner() -> None:
    """One lease disappeared at the end of the outage, the other lease long after the outage."""
    vanished: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE, TWO)
        story.grace.note_report(StoreBack())
        await story.clock.advance(SILENCE_S - 1)
        story.see(TWO)
        await story.clock.advance(2)
        story.see()
        await story.clock.advance(GRACE_S * 2)
        vanished.append(story.grace.vanished)

    play(act)

    assert vanished == [(ONE,)]


@given(st.lists(st.sets(st.sampled_from([1, 2, 3, 4])), max_size=8))
def test_valid_leases_are_those_in_the_store_and_in_their_grace_period(history: list[set[int]]) -> None:
    """For any order of additions and removals. Two of the leases are inside a third lease."""
    wide = Lease(subnet=lease(2).subnet.supernet(), attributes=TWO.attributes)

    async def act(story: Story) -> None:
        for numbers in history:
            leases = LeaseSet.of(wide if number == 4 else lease(number) for number in numbers)
            story.grace.update(leases)
            vanished = {lease.subnet: lease for lease in story.grace.vanished}
            assert dict(story.grace.counted) == vanished | dict(leases.by_subnet)
            await story.clock.advance(GRACE_S / 2)
        await story.clock.advance(GRACE_S * 1.1)
        assert dict(story.grace.counted) == (dict(leases.by_subnet) if history else {})

    play(act)


@pytest.mark.parametrize(
    ("ttl_s", "grace_s"), [(5, SILENCE_S), (39, SILENCE_S), (40, GRACE_S), (24 * 3600, GRACE_S)]
)
def test_short_leases_have_a_longer_grace_period(ttl_s: float, grace_s: float) -> None:
    """The owner of a lease with a short TTL needs up to 20 seconds to detect that the store does not
    respond.
    """
    vanished: list[tuple[Lease, ...]] = []

    async def act(story: Story) -> None:
        story.see(ONE)
        story.see()
        await story.clock.advance(grace_s - 0.1)
        vanished.append(story.grace.vanished)
        await story.clock.advance(0.3)
        vanished.append(story.grace.vanished)

    play(act, renewal_margin_s=ttl_s / 2)

    assert vanished == [(ONE,), ()]


def test_a_wide_subnet_ends_the_grace_period_of_its_parts() -> None:
    """The subnet may have any number of parts, and other leases may have disappeared."""
    halves = [Lease(subnet=half, attributes=ONE.attributes) for half in ONE.subnet.subnets()]

    async def act(story: Story) -> None:
        story.see(*halves, TWO)
        story.see()
        story.see(ONE)
        assert story.grace.vanished == (TWO,)
        assert dict(story.grace.counted) == {ONE.subnet: ONE, TWO.subnet: TWO}

    play(act)


def calls_to_lose_and_regain(count: int) -> int:
    """Return the function calls of one turn in which this number of disappeared leases returns."""
    there, none = LeaseSet.of(map(lease, range(count))), LeaseSet()
    grace = LeaseGrace(FakeClock(), lambda: None, renewal_margin_s=3600)
    grace.update(there)
    grace.update(none)
    calls = 0

    def count_calls(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count_calls)
    try:
        grace.update(there)
    finally:
        sys.setprofile(None)
    return calls


def test_the_work_for_a_mass_loss_grows_in_proportion_to_the_leases() -> None:
    """Four times as many leases need about four times the calls.

    If each lease needed a search through all other leases, four times as many leases would need sixteen times
    the calls.
    """
    assert calls_to_lose_and_regain(1_000) < 6 * calls_to_lose_and_regain(250)
