"""The reconciler in memory: scans, and targets that are slow, silent or unreadable."""

import asyncio
import gc
import tracemalloc
from collections.abc import Sequence
from ipaddress import IPv4Network

import pytest
from msgspec.structs import replace

from doubles.fake_kernel import FakeKernel
from doubles.reconciler_bench import (
    FORWARDER,
    LINK,
    NEIGHBOUR,
    PEER,
    PLAN,
    VXLAN,
    Bench,
    LookedAt,
    Silent,
    Slow,
    SlowToRead,
    running,
)
from pyflannel.engine.reconciler import AUDIT_S, Reconciler
from pyflannel.engine.targets import LATE_S
from pyflannel.errors import TargetError
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link
from pyflannel.model.route import Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.model.tunnel_guard import GuardPeer, GuardTable
from pyflannel.ports import ChangeChannel


def test_unannounced_damage_is_found_by_the_audit() -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            bench.kernel.state = State.EMPTY
            await bench.clock.settle()
            assert not bench.is_healed

            await bench.clock.advance(10)

            assert bench.is_healed

    asyncio.run(check())


def test_objects_written_during_a_scan_survive_the_repair_of_their_link() -> None:
    """The scan does not contain the neighbour, which the kernel drops with the MAC address of the link."""

    async def check() -> None:
        kernel = LookedAt()
        async with running(Bench(kernel, State.of(VXLAN))) as bench:
            kernel.meanwhile = lambda: bench.change(Add(NEIGHBOUR))
            kernel.damage(Replace(VXLAN, replace(VXLAN, mac="0e:99:00:00:00:01")))
            await bench.clock.settle()
            kernel.meanwhile = lambda: None
            await bench.clock.advance(0.3)

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 1

    asyncio.run(check())


def test_a_change_of_a_peer_needs_no_scan() -> None:
    async def check() -> None:
        kernel = LookedAt()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            looks = kernel.looks
            bench.change(Add(PEER))
            await bench.clock.settle()
            batch = kernel.batches[-1]

            assert bench.is_healed
            assert batch == [Add(PEER)]
            assert kernel.looks - looks <= 1  # the double also announces changes by pyflannel
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_a_change_during_a_scan_is_not_damage() -> None:
    """The scan may show the state before the change. A change during a scan does not count as damage."""

    async def check() -> None:
        kernel = LookedAt()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:

            def join() -> None:
                kernel.meanwhile = lambda: None
                bench.change(Add(PEER))

            kernel.meanwhile = join
            bench.reconciler.look()
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


NETWORK_ROUTE = Route(destination=IPv4Network("10.100.0.0/16"), link="flannel0")
OTHER_LINK = replace(LINK, name="flannel-wg")
BEFORE, AFTER = replace(NETWORK_ROUTE, link=OTHER_LINK.name), NETWORK_ROUTE
"""The route of the network before and after a change of the backend."""


@pytest.mark.parametrize("is_replaced", [False, True], ids=["changed", "replaced"])
def test_a_route_waits_for_a_peer_that_joins_during_the_scan(is_replaced: bool) -> None:
    """The new route attracts packets for the peer. The packets need the entry of the peer."""

    async def check() -> None:
        kernel = SlowToRead()
        async with running(Bench(kernel, State.of(LINK, OTHER_LINK, FORWARDER, BEFORE))) as bench:
            kernel.may_end.clear()
            bench.replace(State.of(LINK, OTHER_LINK, FORWARDER, AFTER))
            await bench.clock.settle()
            if is_replaced:
                bench.replace(State.of(LINK, OTHER_LINK, FORWARDER, AFTER, PEER))
            else:
                bench.change(Add(PEER))
            await bench.clock.settle()
            kernel.may_end.set()
            await bench.clock.settle()

            assert bench.is_healed
            assert [one for batch in kernel.batches for one in batch][-2:] == [
                Add(PEER),
                Replace(BEFORE, AFTER),
            ]
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_a_route_stays_until_a_scan_permits_the_new_route() -> None:
    """The packets of the removed route need the added route."""
    old = Route(destination=IPv4Network("10.100.16.0/24"), link=OTHER_LINK.name)

    async def check() -> None:
        kernel = SlowToRead()
        async with running(Bench(kernel, State.of(LINK, OTHER_LINK, FORWARDER, old))) as bench:
            kernel.may_end.clear()
            bench.replace(State.of(LINK, OTHER_LINK, FORWARDER, old, AFTER))
            await bench.clock.settle()
            bench.change(Remove(old))
            await bench.clock.settle()
            assert old in kernel.state
            kernel.may_end.set()
            await bench.clock.settle()

            assert bench.is_healed
            assert [one for batch in kernel.batches for one in batch][-2:] == [Add(AFTER), Remove(old)]

    asyncio.run(check())


def test_a_silent_target_delays_a_change_only_for_a_moment() -> None:
    async def check() -> None:
        kernel = SlowToRead()
        async with running(Bench(kernel, State.of(LINK, OTHER_LINK, FORWARDER, BEFORE))) as bench:
            kernel.may_end.clear()
            bench.replace(State.of(LINK, OTHER_LINK, FORWARDER, AFTER))
            await bench.clock.settle()
            bench.change(Add(PEER))
            await bench.clock.advance(2 * LATE_S)

            assert PEER in kernel.state

    asyncio.run(check())


def test_plans_that_follow_each_other_during_scans_are_applied() -> None:
    """Each scan is older than the newest plan. The host still applies the plans."""

    async def check() -> None:
        kernel = LookedAt()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            metrics = iter(range(1, 1000))

            def again() -> None:
                metric = next(metrics, None)
                if metric is not None:
                    route = replace(NETWORK_ROUTE, metric=metric)
                    bench.replace(State.of(LINK, FORWARDER, PEER, route))

            kernel.meanwhile = again
            bench.replace(State.of(LINK, FORWARDER, PEER, NETWORK_ROUTE))
            for _ in range(200):
                await asyncio.sleep(0)

            assert next(metrics, None) is not None, "there is no further plan"
            assert PEER in kernel.state
            kernel.meanwhile = lambda: None

    asyncio.run(check())


def test_a_scan_that_began_during_a_change_finds_no_damage() -> None:
    """The scan may show the state before the change, even if the scan ended later."""

    async def check() -> None:
        kernel = Slow()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            kernel.may_go_on.clear()
            bench.change(Add(PEER))
            await bench.clock.settle()
            kernel.damage()
            await bench.clock.settle()
            kernel.may_go_on.set()
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_an_object_that_was_added_and_removed_between_two_scans_is_not_remembered() -> None:
    """With tens of thousands of peers, the keys of removed objects would use most of a daemon's memory."""

    class Forgetful(Silent):
        async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
            refused = await super().apply(operations)
            self.batches.clear()
            return refused

    async def check() -> None:
        plan = State.of(LINK, FORWARDER)
        async with running(Bench(Forgetful(), plan)) as bench:

            async def come_and_go(first: int) -> int:
                for start in range(first, first + 1000, 100):
                    subnets = [IPv4Network((0x0B000000 + (n << 8), 24)) for n in range(start, start + 100)]
                    peers = [replace(PEER, subnet=subnet) for subnet in subnets]
                    bench.change(*map(Add, peers))
                    await bench.clock.settle()
                    assert bench.is_healed
                    bench.change(*map(Remove, peers))
                    await bench.clock.settle()
                    assert bench.is_healed
                gc.collect()
                return tracemalloc.get_traced_memory()[0]

            tracemalloc.start()
            try:
                before = await come_and_go(0)  # the journal is full then
                after = await come_and_go(1000)
            finally:
                tracemalloc.stop()
            assert after - before < 50_000  # bytes

    asyncio.run(check())


def test_audits_of_many_objects_are_less_frequent(monkeypatch) -> None:
    monkeypatch.setattr("pyflannel.engine.reconciler.AUDITED_PER_S", 10)

    async def check() -> None:
        many = [
            replace(PEER, subnet=IPv4Network((0x0A640000 + (number << 4), 28))) for number in range(1, 200)
        ]
        async with running(Bench(FakeKernel(), State.of(LINK, FORWARDER, *many))) as bench:
            await bench.clock.advance(10)
            passes = bench.passes
            await bench.clock.advance(10)
            assert bench.passes == passes
            few = State.of(LINK, FORWARDER)
            bench.replace(few)
            await bench.clock.settle()
            assert few == bench.kernel.state
            passes = bench.passes
            await bench.clock.advance(10)
            assert bench.passes == passes + 1

    asyncio.run(check())


class Part(FakeKernel):
    """A target for some kinds that may be silent."""

    def __init__(self, *kinds: type[Item]) -> None:
        super().__init__()
        self.kinds = kinds
        self.answers = asyncio.Event()
        self.answers.set()
        self.looks = 0

    async def snapshot(self, desired: State) -> State:
        self.looks += 1
        await self.answers.wait()
        return await super().snapshot(desired)

    def _missing(self, item: Item) -> str | None:
        return None  # the required object is in another target


BLACKHOLE = Route(destination=IPv4Network("10.100.15.0/24"), link="", kind="blackhole")


LINKS_AND_FILES = tuple(kind for kind in FakeKernel.kinds if kind not in (Forwarder, ForwarderPeer))


def test_a_silent_target_does_not_delay_repairs_in_another() -> None:
    """A hanging forwarder answers no scan. A link is repaired immediately nevertheless."""

    async def check() -> None:
        links, forwarder = Part(*LINKS_AND_FILES), Part(Forwarder, ForwarderPeer)
        bench = Bench(links, None)
        bench.reconciler = Reconciler(targets=[links, forwarder], clock=bench.clock)
        bench.replace(State.of(LINK, FORWARDER, PEER))
        async with running(bench):
            assert bench.reconciler.is_clean
            forwarder.answers.clear()
            links.damage(Remove(LINK))
            await bench.clock.advance(0.3)

            assert LINK in links.state
            assert bench.reconciler.counts.repairs_by_kind["link"] == 1

            forwarder.damage(Remove(PEER))
            forwarder.answers.set()
            await bench.clock.settle()

            assert PEER in forwarder.state

    asyncio.run(check())


GUARD = GuardTable(device="flannel0")


def test_a_change_of_the_host_requires_no_scan_of_the_tunnel_guard() -> None:
    """The guard has thousands of entries, and no change of another object changes them."""

    async def check() -> None:
        links, guard = Part(Link), Part(GuardTable, GuardPeer)
        bench = Bench(links, None)
        bench.reconciler = Reconciler(targets=[links, guard], clock=bench.clock)
        bench.replace(State.of(LINK, GUARD))
        async with running(bench):
            before = (links.looks, guard.looks)
            links.damage(Remove(LINK))
            await bench.clock.settle()
            after_link = (links.looks, guard.looks)

            assert LINK in links.state
            assert after_link == (before[0] + 1, before[1])

            guard.damage(Remove(GUARD))
            await bench.clock.settle()

            assert GUARD in guard.state
            assert (links.looks, guard.looks) == (after_link[0], after_link[1] + 1)

            await bench.clock.advance(AUDIT_S)

            assert (links.looks, guard.looks) == (after_link[0] + 1, after_link[1] + 2)

    asyncio.run(check())


FILE = HostFile(path="/run/flannel/subnet.env", text="x\n")


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_target_that_is_silent_from_the_start_does_not_delay_other_targets(is_readable: bool) -> None:
    """Objects that do not need the silent target are applied. The other objects and subnet.env wait and are
    not refused.
    """

    async def check() -> None:
        for silent, others, blocked in (
            (Part(Forwarder, ForwarderPeer), Part(*LINKS_AND_FILES), FILE),
            (Part(Link, Address), Part(Forwarder, ForwarderPeer, HostFile, Route), FORWARDER),
        ):
            bench = Bench(others, None)
            bench.reconciler = Reconciler(targets=[silent, others], clock=bench.clock)
            plan = State.of(LINK, FORWARDER, PEER, BLACKHOLE, FILE)
            bench.replace(plan)
            silent.answers.clear()
            if not is_readable:
                silent.is_readable = False
                silent.answers.set()
            async with running(bench):
                await bench.clock.advance(0.3)

                assert BLACKHOLE in others.state
                assert blocked not in others.state
                assert list(bench.reconciler.refused()) == []
                assert not bench.reconciler.is_clean

                silent.is_readable = True
                silent.answers.set()
                await bench.clock.advance(1)

                assert {*silent.state, *others.state} == {*plan}
                assert bench.reconciler.is_clean
                assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_a_change_that_waits_for_an_unreadable_target_is_applied_when_it_can_be_read() -> None:
    """The change arrived after the start of the successful scan, which does not contain it."""

    async def check() -> None:
        links, forwarder = Part(*LINKS_AND_FILES), Part(Forwarder, ForwarderPeer)
        bench = Bench(links, None)
        bench.reconciler = Reconciler(targets=[links, forwarder], clock=bench.clock)
        bench.replace(State.of(LINK, FORWARDER))
        async with running(bench):
            forwarder.is_readable = False
            forwarder.damage()
            await bench.clock.settle()
            forwarder.answers.clear()
            await bench.clock.advance(0.2)  # the target is read again
            bench.change(Add(PEER))
            await bench.clock.settle()
            assert PEER not in forwarder.state

            forwarder.is_readable = True
            forwarder.answers.set()
            await bench.clock.settle()

            assert PEER in forwarder.state
            assert bench.reconciler.is_clean

    asyncio.run(check())


def test_a_target_that_cannot_be_read_is_tried_again_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        links, forwarder = Part(*LINKS_AND_FILES), Part(Forwarder, ForwarderPeer)
        bench = Bench(links, None)
        bench.reconciler = Reconciler(targets=[links, forwarder], clock=bench.clock)
        bench.replace(State.of(LINK, FORWARDER))
        async with running(bench):
            forwarder.is_readable = False
            forwarder.damage(Remove(FORWARDER))
            await bench.clock.settle()
            looks, attempts = links.looks, forwarder.looks
            await bench.clock.advance(8)
            assert links.looks == looks
            assert forwarder.looks - attempts >= 7
            assert bench.reconciler.error == "the test asked for this"
            assert not bench.reconciler.is_clean

            forwarder.is_readable = True
            await bench.clock.advance(1)

            assert FORWARDER in forwarder.state
            assert bench.reconciler.is_clean

    asyncio.run(check())
    assert caplog.text.count("Could not read the current state of the host") == 1


def two_targets(plan: State) -> tuple[Bench, Part, Part]:
    """A reconciler with separate targets for links and for a forwarder."""
    links, forwarder = Part(*LINKS_AND_FILES), Part(Forwarder, ForwarderPeer)
    bench = Bench(links, None)
    bench.reconciler = Reconciler(targets=[links, forwarder], clock=bench.clock)
    bench.replace(plan)
    return bench, links, forwarder


def test_a_target_that_is_unreadable_for_an_hour_stops_nothing() -> None:
    async def check() -> None:
        bench, _, forwarder = two_targets(State.of(LINK, FORWARDER))
        forwarder.is_readable = False
        async with running(bench):
            await bench.clock.advance(3600)
            assert bench.reconciler.error == "the test asked for this"

            forwarder.is_readable = True
            await bench.clock.advance(2)

            assert bench.reconciler.is_clean

    asyncio.run(check())


def test_a_refused_object_is_retried_when_the_object_that_it_needs_is_built() -> None:
    """While links cannot be read, the reconciler does not know that the link of the forwarder is missing."""

    class Forwarders(Part):
        def _perform(self, operation: Operation) -> str | None:
            return super()._perform(operation) if LINK in links.state else "no link flannel0"

    links, forwarder = Part(*LINKS_AND_FILES), Forwarders(Forwarder, ForwarderPeer)

    async def check() -> None:
        bench = Bench(links, None)
        bench.reconciler = Reconciler(targets=[links, forwarder], clock=bench.clock)
        bench.replace(State.of(LINK, FORWARDER))
        async with running(bench):
            links.is_readable = False
            links.damage(Remove(LINK))
            await bench.clock.settle()
            forwarder.state = State.EMPTY
            bench.reconciler.look()
            await bench.clock.advance(3)
            assert [one.operation for one in bench.reconciler.refused()] == [Add(FORWARDER)]

            links.is_readable = True
            while LINK not in links.state:
                await bench.clock.advance(0.01)
            await bench.clock.settle()

            assert FORWARDER in forwarder.state

    asyncio.run(check())


def test_a_silent_target_does_not_delay_repairs_during_many_events() -> None:
    """Each event requests a scan. No scan may wait for the silent target again."""

    async def check() -> None:
        bench, links, forwarder = two_targets(State.of(LINK, FORWARDER))
        async with running(bench):
            forwarder.answers.clear()
            links.damage(Remove(LINK))
            for _ in range(10):
                await bench.clock.advance(0.1)
                links.damage()

            assert LINK in links.state

    asyncio.run(check())


def test_a_host_starts_although_a_target_is_silent() -> None:
    """The silent target is logged after its deadline, and the rest of the plan is applied."""

    async def check() -> None:
        bench, links, forwarder = two_targets(State.of(LINK, FORWARDER))
        forwarder.answers.clear()
        async with running(bench):
            await bench.clock.advance(20)

            assert LINK in links.state
            assert "no answer within" in str(bench.reconciler.error)
            assert not bench.reconciler.is_clean

    asyncio.run(check())


def test_a_target_that_hangs_in_apply_stops_the_engine_only_until_its_deadline() -> None:
    class Hanging(Part):
        hangs = False

        async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
            if self.hangs:
                await asyncio.Event().wait()
            return await super().apply(operations)

    async def check() -> None:
        links, forwarder = Part(*LINKS_AND_FILES), Hanging(Forwarder, ForwarderPeer)
        bench = Bench(links, None)
        bench.reconciler = Reconciler(targets=[links, forwarder], clock=bench.clock)
        bench.replace(State.of(LINK, FORWARDER))
        async with running(bench):
            forwarder.hangs = True
            bench.change(Add(PEER))
            await bench.clock.settle()
            links.damage(Remove(LINK))
            await bench.clock.advance(20)

            assert LINK in links.state
            assert [one.operation for one in bench.reconciler.refused()] == [Add(PEER)]

            forwarder.hangs = False
            await bench.clock.advance(70)

            assert PEER in forwarder.state
            assert bench.reconciler.is_clean

    asyncio.run(check())


def test_a_change_during_the_first_scan_is_applied_after_the_scan() -> None:
    """The first scan does not contain the change, and no audit is due for ten seconds."""

    async def check() -> None:
        kernel = LookedAt()
        bench = Bench(kernel, State.of(LINK, FORWARDER))

        def join() -> None:
            kernel.meanwhile = lambda: None
            bench.change(Add(PEER))

        kernel.meanwhile = join
        async with running(bench):
            assert PEER in kernel.state
            assert bench.reconciler.is_clean

    asyncio.run(check())


def test_a_late_answer_does_not_override_a_later_scan() -> None:
    """Each answer has the generation of its own request."""

    async def check() -> None:
        bench, links, forwarder = two_targets(State.of(LINK, FORWARDER))
        async with running(bench):
            forwarder.answers.clear()
            bench.reconciler.look()
            await bench.clock.advance(0.3)
            moved = replace(LINK, mtu=1300)
            bench.replace(State.of(moved, FORWARDER))
            links.answers.clear()
            await bench.clock.settle()
            links.answers.set()
            forwarder.answers.set()
            await bench.clock.settle()

            assert moved in links.state
            assert bench.reconciler.is_clean

    asyncio.run(check())


def test_without_notifications_each_audit_reads_the_host(caplog: pytest.LogCaptureFixture) -> None:
    """Other programs may use all inotify instances. The log has one line about this."""

    class Deaf(FakeKernel):
        def changes(self) -> ChangeChannel:
            raise TargetError("no inotify instance is left", hint="Raise fs.inotify.max_user_instances.")

    async def check() -> None:
        async with running(Bench(Deaf(), PLAN)) as bench:
            await bench.clock.advance(600)
            assert bench.passes <= 63

    asyncio.run(check())
    assert caplog.text.count("Not receiving change notifications") == 1
