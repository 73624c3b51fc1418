"""The reconciler on a kernel and a clock in memory."""

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_kernel import FakeKernel
from pyflannel.engine.batch_report import Journal
from pyflannel.engine.planner import Changed, Replaced
from pyflannel.engine.reconciler import Reconciler
from pyflannel.errors import TargetError
from pyflannel.model.fast_path import BpfProgram, Role, Tunnel
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item, Key
from pyflannel.model.link import Address, Link, Vxlan
from pyflannel.model.route import Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.plan.diff import diff
from pyflannel.plan.ownership import ours
from pyflannel.ports import ChangeChannel

LINK = Link(name="flannel0", kind="tun", mtu=1472)
PLAN = State.of(LINK)
TUNNEL = Tunnel(
    device=LINK.name,
    underlay="eth0",
    address=IPv4Address("10.10.10.101"),
    subnet=IPv4Network("10.100.15.0/24"),
    port=8285,
)


class Bench:
    """A reconciler that runs, and what it works on."""

    def __init__(self, kernel: FakeKernel, plan: State | None) -> None:
        self.kernel = kernel
        self.plan = plan
        self.clock = FakeClock()
        self.journal = Journal(self.clock)
        self.judge: Callable[[tuple[Refusal, ...]], tuple[Refusal, ...]] = lambda refused: refused
        self.heard: Callable[[], object] = lambda: None
        self.reconciler = Reconciler(
            targets=[kernel],
            clock=self.clock,
            journal=self.journal,
            judge=lambda refused, settled: self.judge(tuple(refused)),
            progressed=lambda: self.heard(),
        )
        if plan is not None:
            self.reconciler.follow(Replaced(plan))

    @property
    def passes(self) -> int:
        return self.reconciler.counts.passes

    def replace(self, plan: State) -> None:
        """Let another plan be in force."""
        self.plan = plan
        self.reconciler.follow(Replaced(plan))

    def change(self, *operations: Operation) -> None:
        """Change the plan in place, as the planner does."""
        assert self.plan is not None
        previous: dict[Key, Item | None] = {}
        for operation in operations:
            item = operation.subject
            previous[item.key] = self.plan.by_key.get(item.key)
            if isinstance(operation, Remove):
                self.plan.by_key.discard(item.key)
            else:
                self.plan.by_key.put(item)
        self.reconciler.follow(Changed(previous))

    @property
    def is_healed(self) -> bool:
        assert self.plan is not None
        return not list(diff(self.plan, ours(self.kernel.state, self.plan)))


def subject(operation: Operation) -> object:
    return operation.new if isinstance(operation, Replace) else operation.item


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    task = asyncio.ensure_future(bench.reconciler.run())
    try:
        await bench.clock.settle()
        yield bench
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


def test_nothing_is_touched_before_there_is_a_plan() -> None:
    async def check() -> None:
        stray = Link(name="flannel0", kind="tun", mtu=9)
        async with running(Bench(FakeKernel(State.of(stray)), None)) as bench:
            await bench.clock.advance(60)

            assert bench.kernel.state == State.of(stray)
            assert bench.passes == 0

    asyncio.run(check())


def test_the_plan_is_applied_and_a_changed_plan_too() -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            assert bench.is_healed
            assert bench.reconciler.is_clean

            bench.replace(State.of(replace(LINK, mtu=1300)))
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_damage_is_repaired_at_once_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            bench.kernel.damage(Replace(LINK, replace(LINK, is_up=False)))
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 1
            assert bench.reconciler.counts.last_repair == "link flannel0: not up"

    with caplog.at_level(logging.WARNING):
        asyncio.run(check())
    assert "Repaired link flannel0: not up" in caplog.text


def test_damage_that_nobody_announces_is_found_by_the_audit() -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            bench.kernel.state = State.EMPTY
            await bench.clock.settle()
            assert not bench.is_healed

            await bench.clock.advance(10)

            assert bench.is_healed

    asyncio.run(check())


def test_what_is_refused_is_said_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: True)
        async with running(Bench(kernel, PLAN)) as bench:
            await bench.clock.advance(5)
            assert not bench.reconciler.is_clean
            assert 4 < len(kernel.batches) < 15

            kernel.refuse = lambda operation: False
            await bench.clock.advance(1)

            assert bench.is_healed
            assert bench.reconciler.is_clean

    with caplog.at_level(logging.ERROR):
        asyncio.run(check())
    assert caplog.text.count("refused: the test asked for this") == 1


def test_a_refusal_for_which_there_is_another_plan_is_neither_said_nor_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Yet nothing is clean before the pass that follows it."""
    program = BpfProgram(link=LINK.name, role=Role.ENCAPSULATE, tunnel=TUNNEL)

    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: subject(operation) == program)
        bench = Bench(kernel, State.of(LINK, program))
        seen: list[tuple[bool, tuple[Refusal, ...]]] = []

        def judge(refused: tuple[Refusal, ...]) -> tuple[Refusal, ...]:
            if refused:
                bench.replace(PLAN)
            return ()

        bench.judge = judge
        bench.heard = lambda: seen.append((bench.reconciler.is_clean, tuple(bench.reconciler.refused())))
        async with running(bench):
            await bench.clock.advance(1)

            assert seen[0] == (False, ())
            assert seen[-1] == (True, ())
            assert bench.is_healed

    with caplog.at_level(logging.ERROR):
        asyncio.run(check())
    assert caplog.records == []


def test_one_cause_of_several_refusals_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        plan = State.of(LINK, HostFile(path="/run/a", text="x\n"), HostFile(path="/run/b", text="x\n"))
        kernel = FakeKernel(refuse=lambda operation: isinstance(subject(operation), HostFile))
        async with running(Bench(kernel, plan)) as bench:
            await bench.clock.advance(5)

    with caplog.at_level(logging.ERROR):
        asyncio.run(check())
    assert [record.message.partition(" refused:")[0] for record in caplog.records] == [
        "file /run/a: missing; file /run/b: missing;"
    ]


def test_what_was_refused_is_no_repair_when_it_succeeds() -> None:
    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: True)
        async with running(Bench(kernel, PLAN)) as bench:
            kernel.refuse = lambda operation: False
            await bench.clock.advance(1)

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 0

            kernel.damage(Remove(LINK))
            await bench.clock.settle()

            assert bench.reconciler.counts.repairs == 1

    asyncio.run(check())


def test_a_repair_that_was_refused_at_first_is_one_when_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    """As when somebody has made a link of the same name in between."""

    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            bench.kernel.refuse = lambda operation: True
            bench.kernel.damage(Remove(LINK))
            await bench.clock.settle()
            assert bench.reconciler.counts.repairs == 0

            bench.kernel.refuse = lambda operation: False
            await bench.clock.advance(1)

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 1
            assert [entry.event for entry in bench.journal.entries()] == ["planned", "refused", "repaired"]

    with caplog.at_level(logging.WARNING):
        asyncio.run(check())
    assert "Repaired link flannel0: missing" in caplog.text


def test_a_refused_link_is_the_one_cause_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """What hangs on it fails for want of it, and would only hide what to do."""
    address = Address(link=LINK.name, address=IPv4Interface("10.100.15.0/16"))
    program = BpfProgram(link="eth0", role=Role.DECAPSULATE, tunnel=TUNNEL)

    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: operation in (Add(LINK), Add(program)))
        async with running(Bench(kernel, State.of(LINK, address, program))) as bench:
            assert [one.operation for one in bench.reconciler.refused()] == [Add(LINK)]
            assert list(bench.reconciler.delayed()) == []

    with caplog.at_level(logging.ERROR):
        asyncio.run(check())
    assert [record.getMessage().partition(" refused:")[0] for record in caplog.records] == [
        "link flannel0: missing;"
    ]


VXLAN = Link(
    name="flannel.1",
    kind="vxlan",
    mtu=1450,
    mac="0e:00:00:00:00:01",
    vxlan=Vxlan(vni=1, port=8472, parent="eth0", local=None),
)
NEIGHBOUR = Neighbour(link=VXLAN.name, address=IPv4Address("10.100.16.0"), mac="0e:00:00:00:00:02")


@pytest.mark.parametrize(
    "changed",
    [
        replace(VXLAN, mac="0e:00:00:00:00:03"),
        replace(VXLAN, vxlan=Vxlan(vni=1, port=4789, parent="eth0", local=None)),
    ],
)
@pytest.mark.parametrize("refusals", [0, 1])
def test_objects_that_a_planned_change_of_a_link_drops_are_no_repairs(changed: Link, refusals: int) -> None:
    """The plan of the neighbour is as before. It comes back with the link, also if that was refused once."""

    async def check() -> None:
        kernel, answers = Silent(), iter([True] * refusals)
        async with running(Bench(kernel, State.of(VXLAN, NEIGHBOUR))) as bench:
            kernel.refuse = lambda operation: subject(operation) == changed and next(answers, False)
            bench.replace(State.of(changed, NEIGHBOUR))
            await bench.clock.advance(0.1)

            assert bench.is_healed
            assert bench.reconciler.is_clean
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_objects_written_during_a_look_survive_the_repair_of_their_link() -> None:
    """The look knows nothing of the neighbour, which the kernel drops with the MAC address of the link."""

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


def test_a_fight_over_an_object_is_damped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            for _ in range(100):
                bench.kernel.damage(Remove(LINK))
                await bench.clock.advance(0.1)

            assert bench.reconciler.counts.repairs < 20

            await bench.clock.advance(60)  # the other gave up

            assert bench.is_healed

    with caplog.at_level(logging.ERROR):
        asyncio.run(check())
    assert "Delayed the next repair: another program keeps changing this object" in caplog.text


DOWN = Replace(LINK, replace(LINK, is_up=False))


async def fight(bench: Bench) -> None:
    """Set the link down so often that its repair waits."""
    while not any(bench.reconciler.delayed()):
        bench.kernel.damage(DOWN)
        await bench.clock.settle()


def test_a_host_with_a_repair_that_waits_is_not_clean() -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            await fight(bench)
            assert not bench.reconciler.is_clean

            await bench.clock.advance(2)

            assert bench.is_healed
            assert bench.reconciler.is_clean

    asyncio.run(check())


def test_a_changed_plan_waits_for_no_fight() -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            await fight(bench)
            repairs = bench.reconciler.counts.repairs

            bench.replace(State.of(replace(LINK, mtu=1300)))
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == repairs

    asyncio.run(check())


def test_what_hangs_on_an_object_that_is_fought_over_waits_with_it() -> None:
    """It could only be refused."""
    address = Address(link=LINK.name, address=IPv4Interface("10.100.15.0/16"))
    forwarder = Forwarder(
        link=LINK.name,
        tunnel_address=IPv4Address("10.100.15.0"),
        subnet=IPv4Network("10.100.15.0/24"),
        listen_address=IPv4Address("10.10.10.101"),
        port=8285,
        mtu=1472,
    )
    peer = ForwarderPeer(
        link=LINK.name, subnet=IPv4Network("10.100.16.0/24"), address=IPv4Address("10.10.10.102"), port=8285
    )

    async def check() -> None:
        async with running(Bench(FakeKernel(), State.of(LINK, address, forwarder, peer))) as bench:
            await fight(bench)
            batches = len(bench.kernel.batches)
            bench.kernel.damage(Remove(address), Remove(forwarder), Remove(peer))
            await bench.clock.settle()

            assert len(bench.kernel.batches) == batches
            assert {*map(subject, bench.reconciler.delayed())} == {LINK, address, forwarder, peer}

            await bench.clock.advance(2)

            assert bench.is_healed

    asyncio.run(check())


def test_foreign_objects_stay() -> None:
    async def check() -> None:
        foreign = Link(name="eth0", kind="", mtu=1500, alias="")
        async with running(Bench(FakeKernel(State.of(foreign)), PLAN)) as bench:
            bench.kernel.damage(Add(replace(foreign, name="eth1")))
            await bench.clock.settle()

            assert foreign in bench.kernel.state
            assert replace(foreign, name="eth1") in bench.kernel.state

    asyncio.run(check())


def test_a_file_waits_for_the_device_that_it_speaks_of() -> None:
    """Whoever reads subnet.env may start containers at once."""

    async def check() -> None:
        file = HostFile(path="/run/flannel/subnet.env", text="x\n")
        kernel = FakeKernel(refuse=lambda operation: operation == Add(LINK))
        async with running(Bench(kernel, State.of(LINK, file))) as bench:
            await bench.clock.advance(3)
            assert file not in kernel.state
            assert not bench.reconciler.is_clean

            kernel.refuse = lambda operation: False
            await bench.clock.advance(1)

            assert file in kernel.state
            assert bench.reconciler.is_clean
            assert bench.reconciler.counts.repairs == 0  # nothing had stood before

    asyncio.run(check())


PEER = ForwarderPeer(
    link="flannel0", subnet=IPv4Network("10.100.16.0/24"), address=IPv4Address("10.10.10.1"), port=8285
)
FORWARDER = Forwarder(
    link="flannel0",
    tunnel_address=IPv4Address("10.100.15.0"),
    subnet=IPv4Network("10.100.15.0/24"),
    listen_address=IPv4Address("10.10.10.2"),
    port=8285,
    mtu=1472,
)


class LookedAt(FakeKernel):
    """A kernel that counts the looks at it, and in which something may happen during one."""

    looks = 0
    meanwhile = staticmethod(lambda: None)

    async def snapshot(self, desired: State) -> State:
        self.looks += 1
        state = await super().snapshot(desired)
        self.meanwhile()
        await asyncio.sleep(0)
        return state


class Silent(FakeKernel):
    """A kernel that announces nothing."""

    def changes(self) -> ChangeChannel:
        return ChangeChannel(lambda announce: asyncio.Event().wait())


def test_a_change_of_a_peer_takes_no_look() -> None:
    async def check() -> None:
        kernel = LookedAt()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            looks = kernel.looks
            bench.change(Add(PEER))
            await bench.clock.settle()
            batch = kernel.batches[-1]

            assert bench.is_healed
            assert batch == [Add(PEER)]
            assert kernel.looks - looks <= 1  # the double announces our own changes too
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_what_changed_during_a_look_is_no_damage() -> None:
    """The look may have been at what was before; it is not counted as somebody's doing."""

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


class Slow(FakeKernel):
    """A kernel that performs nothing before it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        await self.may_go_on.wait()
        return await super().apply(operations)


def test_a_look_that_began_during_a_change_finds_no_damage() -> None:
    """It may have been before the change took effect, though it ended after."""

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


def test_a_change_that_is_refused_is_tried_again_by_passes(caplog) -> None:
    async def check() -> None:
        kernel = Silent()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            kernel.refuse = lambda operation: subject(operation) == PEER
            bench.change(Add(PEER))
            await bench.clock.settle()
            assert [refusal.operation for refusal in bench.reconciler.refused()] == [Add(PEER)]

            kernel.refuse = lambda operation: False
            await bench.clock.advance(2)

            assert bench.is_healed
            assert bench.reconciler.is_clean
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_a_change_that_is_refused_once_is_no_repair() -> None:
    async def check() -> None:
        kernel, refusals = Silent(), iter([True])
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            kernel.refuse = lambda operation: next(refusals, False)
            passes = bench.passes
            bench.change(Add(PEER))
            await bench.clock.advance(0.2)

            assert bench.is_healed
            assert len(kernel.batches) == 3  # the plan, the change, and the change again
            assert bench.passes == passes
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_a_repair_is_told_from_a_change_whether_the_plan_is_changed_or_exchanged() -> None:
    """The planner changes single peers in the plan that it gave; what it plans anew is another."""

    async def check(*, is_exchanged: bool) -> None:
        plan = State.of(LINK, FORWARDER)
        async with running(Bench(Silent(), plan)) as bench:
            if is_exchanged:
                bench.replace(State.collect(plan))
            bench.change(Add(PEER))
            await bench.clock.settle()
            assert bench.is_healed
            bench.kernel.damage(Remove(PEER))
            await bench.clock.advance(10)
            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 1

            bench.change(Remove(PEER))
            await bench.clock.settle()
            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 1
            bench.kernel.damage(Add(PEER))
            await bench.clock.advance(10)
            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 2

    asyncio.run(check(is_exchanged=False))
    asyncio.run(check(is_exchanged=True))


def test_a_change_that_a_pass_makes_is_no_repair() -> None:
    """It was in the plan, and not yet applied, when the pass began to compare."""

    async def check() -> None:
        plan = State.of(LINK, FORWARDER)
        async with running(Bench(Silent(), plan)) as bench:
            bench.reconciler.look()
            bench.change(Add(PEER))
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_what_came_and_went_between_two_looks_is_not_remembered() -> None:
    """Tens of thousands of peers may, and their keys would be the most of a daemon's memory."""

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
            assert after - before < 50_000  # octets

    asyncio.run(check())


def test_a_change_waits_for_the_host_s_own_part() -> None:
    """Nothing of a peer is applied on its own before a pass has left nothing undone."""

    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: subject(operation) == LINK)
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            bench.change(Add(PEER))
            kernel.refuse = lambda operation: False
            await bench.clock.advance(2)

            assert bench.is_healed
            assert [Add(PEER)] not in kernel.batches

    asyncio.run(check())


def test_a_change_that_follows_another_plan_waits_for_its_pass() -> None:
    """As when the backend has changed, and with it a peer: what the peer needs is not there before a pass."""

    async def check() -> None:
        kernel = Silent()
        async with running(Bench(kernel, State.EMPTY)) as bench:
            bench.replace(State.of(LINK, FORWARDER))
            bench.change(Add(PEER))
            await bench.clock.settle()

            assert bench.is_healed
            assert kernel.batches == [[Add(LINK), Add(FORWARDER), Add(PEER)]]
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_another_daemon_s_device_is_left_to_it_and_said(caplog) -> None:
    """Two networks with one VNI on one host: no fight, the rest stands, and the host is not ready."""

    async def check() -> None:
        theirs = replace(LINK, name="flannel.1", kind="vxlan", alias="pyflannel /run/blue")
        wanted = replace(theirs, alias="pyflannel")
        route = Route(destination=IPv4Network("10.100.16.0/24"), link="flannel.1")
        file = HostFile(path="/run/flannel/subnet.env", text="x")
        kernel = FakeKernel(State.of(theirs))
        async with running(Bench(kernel, State.of(wanted, route, LINK, file))) as bench:
            assert kernel.state == State.of(theirs, LINK)
            assert not bench.reconciler.is_clean
            assert [r.operation for r in bench.reconciler.refused()] == [Add(wanted)]
            assert caplog.text.count("--run-dir=/run/blue has this link") == 1

            kernel.damage(Remove(theirs))
            await bench.clock.advance(2)

            assert bench.is_healed
            assert bench.reconciler.is_clean
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_audits_of_many_objects_are_further_apart(monkeypatch) -> None:
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


def test_the_journal_says_what_was_planned_repaired_and_refused() -> None:
    async def check() -> None:
        kernel = FakeKernel()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            kernel.damage(Replace(LINK, replace(LINK, mtu=1300)))
            await bench.clock.settle()
            kernel.refuse = lambda operation: subject(operation) == PEER
            bench.replace(State.of(LINK, FORWARDER, PEER))
            await bench.clock.settle()

            said = [(entry.event, entry.found) for entry in bench.journal.entries()]
            assert said == [
                ("planned", "link flannel0: missing"),
                ("planned", "forwarder of flannel0: missing"),
                ("repaired", "link flannel0: mtu 1300, wanted 1472"),
                ("refused", "peer 10.100.16.0/24 of flannel0: missing: the test asked for this"),
            ]

    asyncio.run(check())


def test_a_later_change_of_a_peer_wins_over_one_that_is_being_applied() -> None:
    """It comes while the first is applied and a look is under way, and is applied next, as no repair."""

    async def check() -> None:
        kernel = Slow()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            kernel.may_go_on.clear()
            bench.change(Add(PEER))
            await bench.clock.settle()
            kernel.damage()
            moved = replace(PEER, address=IPv4Address("10.10.10.9"))
            bench.change(Replace(PEER, moved))
            kernel.may_go_on.set()
            await bench.clock.settle()

            assert moved in kernel.state
            assert bench.reconciler.is_clean
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_a_permanent_refusal_costs_no_look_and_delays_nothing_else() -> None:
    """As where /proc/sys is read-only. It is tried again by each audit, and reported once."""

    class ReadOnly(FakeKernel):
        async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
            return [replace(one, is_permanent=True) for one in await super().apply(operations)]

    async def check() -> None:
        kernel = ReadOnly(refuse=lambda operation: isinstance(subject(operation), HostFile))
        file = HostFile(path="/proc/sys/x", text="1\n")
        async with running(Bench(kernel, State.of(LINK, FORWARDER, file))) as bench:
            passes, batches = bench.passes, len(kernel.batches)
            await bench.clock.advance(600)
            assert bench.passes - passes <= 60
            assert len(kernel.batches) - batches <= 60

            bench.change(Add(PEER))
            await bench.clock.settle()

            assert PEER in kernel.state
            assert [one.operation for one in bench.reconciler.refused()] == [Add(file)]

    asyncio.run(check())


class Part(FakeKernel):
    """A target for some kinds, which may be silent."""

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
        return None  # what it requires is in another target


BLACKHOLE = Route(destination=IPv4Network("10.100.15.0/24"), link="", kind="blackhole")
LINKS_AND_FILES = tuple(kind for kind in FakeKernel.kinds if kind not in (Forwarder, ForwarderPeer))


def test_a_silent_target_delays_no_repair_in_another() -> None:
    """A forwarder that hangs answers no look. A link is repaired all the same, and at once."""

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


FILE = HostFile(path="/run/flannel/subnet.env", text="x\n")


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_target_that_is_silent_from_the_start_delays_no_other(is_readable: bool) -> None:
    """What does not need its objects is applied. The rest waits and is not refused; so does subnet.env."""

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
    """It came after the read that succeeds had begun, which says nothing of it."""

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
            await bench.clock.advance(0.2)  # it is read again
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


class LosesAnswers(Slow):
    """A kernel whose answers are lost: an operation takes effect, and is refused all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.loses_answers = False

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        refusals = await super().apply(operations)
        if not self.loses_answers:
            return refusals
        return [Refusal(operation=operation, cause="no answer") for operation in operations]

    def changes(self) -> ChangeChannel:
        return ChangeChannel(lambda announce: asyncio.Event().wait())


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_refused_operation_may_have_taken_effect(is_slow: bool) -> None:
    """A later change of the object, even during the attempt, leaves no trace of it and is no repair."""

    async def check() -> None:
        kernel = LosesAnswers()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            kernel.loses_answers = True
            if is_slow:
                kernel.may_go_on.clear()
            bench.change(Add(PEER))
            await bench.clock.settle()
            bench.change(Remove(PEER))
            kernel.may_go_on.set()
            await bench.clock.settle()
            kernel.loses_answers = False
            await bench.clock.advance(0.2)

            assert bench.is_healed
            assert bench.reconciler.is_clean
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_an_event_ends_the_pause_before_a_retry() -> None:
    """The cause of a refusal is gone when the kernel announces a change: nothing waits for the pause then."""

    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: True)
        async with running(Bench(kernel, PLAN)) as bench:
            await bench.clock.advance(30.2)  # the pauses are at their longest
            kernel.refuse = lambda operation: False
            kernel.damage()
            await bench.clock.advance(0.06)

            assert bench.is_healed

    asyncio.run(check())


def test_an_event_soon_after_an_attempt_brings_the_next_one_forward() -> None:
    """The attempt itself may have caused the event, so it is repeated soon, not at once."""

    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: True)
        async with running(Bench(kernel, PLAN)) as bench:
            await bench.clock.advance(30.2)  # the pauses are at their longest
            attempts = len(kernel.batches)
            while len(kernel.batches) == attempts:
                await bench.clock.advance(0.01)
            kernel.refuse = lambda operation: False
            kernel.damage()
            await bench.clock.advance(0.1)

            assert bench.is_healed

    asyncio.run(check())


def test_attempts_that_cause_events_are_made_less_and_less_often() -> None:
    """Each of them is announced to the daemon as a change."""

    class Echoing(FakeKernel):
        async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
            refused = await super().apply(operations)
            self.damage()
            return refused

    async def check() -> None:
        kernel = Echoing(refuse=lambda operation: True)
        async with running(Bench(kernel, PLAN)) as bench:
            await bench.clock.advance(10)
            batches = len(kernel.batches)
            await bench.clock.advance(10)

            assert batches < 20
            assert len(kernel.batches) - batches <= 11

    asyncio.run(check())


def two_targets(plan: State) -> tuple[Bench, Part, Part]:
    """A reconciler of links and of a forwarder, each a target of its own."""
    links, forwarder = Part(*LINKS_AND_FILES), Part(Forwarder, ForwarderPeer)
    bench = Bench(links, None)
    bench.reconciler = Reconciler(targets=[links, forwarder], clock=bench.clock)
    bench.replace(plan)
    return bench, links, forwarder


def test_a_target_that_stays_unreadable_for_an_hour_ends_nothing() -> None:
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


def test_a_silent_target_delays_no_repair_under_a_stream_of_events() -> None:
    """Each event asks for a look. None of them may wait for the silent target anew."""

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
    """It is named after its time for an answer, and the rest of the plan is applied."""

    async def check() -> None:
        bench, links, forwarder = two_targets(State.of(LINK, FORWARDER))
        forwarder.answers.clear()
        async with running(bench):
            await bench.clock.advance(20)

            assert LINK in links.state
            assert "no answer within" in str(bench.reconciler.error)
            assert not bench.reconciler.is_clean

    asyncio.run(check())


def test_a_target_that_hangs_while_it_applies_stops_the_engine_for_its_time_only() -> None:
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


def test_a_change_during_the_first_look_is_applied_after_it() -> None:
    """The first look knows nothing of it, and no audit is due for ten seconds."""

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


def test_a_late_answer_takes_nothing_from_what_a_later_look_found() -> None:
    """Each answer has the generation of its own question."""

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


def test_what_waits_for_an_object_that_somebody_else_makes_goes_on_at_once() -> None:
    async def check() -> None:
        kernel = LookedAt(refuse=lambda operation: operation == Add(LINK))
        async with running(Bench(kernel, State.of(LINK))) as bench:
            await bench.clock.advance(5)
            kernel.meanwhile = lambda: bench.change(Add(FORWARDER))
            kernel.damage(Add(LINK))
            await bench.clock.settle()
            kernel.meanwhile = lambda: None
            await bench.clock.settle()

            assert FORWARDER in kernel.state
            assert bench.reconciler.is_clean

    asyncio.run(check())


def test_changes_that_cannot_be_heard_cost_a_look_at_each_audit(caplog: pytest.LogCaptureFixture) -> None:
    """As where other programs hold all inotify instances. It is logged once."""

    class Deaf(FakeKernel):
        def changes(self) -> ChangeChannel:
            raise TargetError("no inotify instance is left", hint="Raise fs.inotify.max_user_instances.")

    async def check() -> None:
        async with running(Bench(Deaf(), PLAN)) as bench:
            await bench.clock.advance(600)
            assert bench.passes <= 63

    asyncio.run(check())
    assert caplog.text.count("Cannot listen to changes") == 1


def test_objects_that_return_with_a_link_that_the_plan_changed_are_no_repairs() -> None:
    """The kernel drops them when the link is made again."""

    async def check() -> None:
        link = Link(name="flannel.1", kind="vxlan", mtu=1450)
        again = replace(link, kind="tun")
        address = Address(link="flannel.1", address=IPv4Interface("10.100.15.0/32"))
        async with running(Bench(FakeKernel(), State.of(link, address))) as bench:
            bench.replace(State.of(again, address))
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())
