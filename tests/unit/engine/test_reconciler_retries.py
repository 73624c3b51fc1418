"""The reconciler on a kernel and a clock in memory: refusals, retries and fights."""

import asyncio
import logging
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from msgspec.structs import replace

from doubles.fake_kernel import FakeKernel
from doubles.reconciler_bench import FORWARDER, LINK, PEER, PLAN, Bench, Silent, Slow, running, subject
from pyflannel.model.fast_path import BpfProgram, Role, Tunnel
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.link import Address
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace, State
from pyflannel.ports import ChangeChannel

TUNNEL = Tunnel(
    device=LINK.name,
    underlay="eth0",
    address=IPv4Address("10.10.10.101"),
    subnet=IPv4Network("10.100.15.0/24"),
    port=8285,
    mtu=1472,
)


def test_a_refusal_is_logged_once_and_retried(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_refusal_with_an_alternative_plan_is_neither_logged_nor_awaited(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The host is not clean before the next pass."""
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


def test_a_refused_change_is_not_a_repair_when_it_succeeds() -> None:
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


def test_a_refused_repair_counts_as_a_repair_when_it_succeeds(caplog: pytest.LogCaptureFixture) -> None:
    """Another program may have created a link of the same name."""

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


def test_only_the_refused_link_is_logged_as_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    """Objects on the link also fail. Log lines about these objects would hide the remedy."""
    address = Address(link=LINK.name, address=IPv4Interface("10.100.15.0/32"))
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


def test_repairs_that_another_program_undoes_are_delayed_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            for _ in range(100):
                bench.kernel.damage(Remove(LINK))
                await bench.clock.advance(0.1)

            assert bench.reconciler.counts.repairs < 20

            await bench.clock.advance(60)  # the other program stopped

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


def test_a_host_with_a_delayed_repair_is_not_clean() -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            await fight(bench)
            assert not bench.reconciler.is_clean

            await bench.clock.advance(2)

            assert bench.is_healed
            assert bench.reconciler.is_clean

    asyncio.run(check())


def test_a_changed_plan_is_not_delayed_by_a_delayed_repair() -> None:
    async def check() -> None:
        async with running(Bench(FakeKernel(), PLAN)) as bench:
            await fight(bench)
            repairs = bench.reconciler.counts.repairs

            bench.replace(State.of(replace(LINK, mtu=1300)))
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == repairs

    asyncio.run(check())


def test_objects_that_require_an_object_with_a_delayed_repair_wait_with_it() -> None:
    """The kernel would refuse an object whose required object is absent."""
    address = Address(link=LINK.name, address=IPv4Interface("10.100.15.0/32"))
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


def test_a_refused_change_is_retried_by_passes(caplog) -> None:
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


def test_a_change_that_was_refused_once_is_not_a_repair() -> None:
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


def test_the_journal_records_planned_repaired_and_refused_objects() -> None:
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


def test_a_permanent_refusal_causes_no_scan_and_delays_no_other_object() -> None:
    """/proc/sys may be read-only, for example. Each audit tries the change again. The log has one line."""

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


class LosesAnswers(Slow):
    """A kernel whose answers are lost: an operation takes effect although it is refused."""

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
    """A later change of the object, even during the attempt, replaces it completely and is no repair."""

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
    """The pause ends because the announced change may have removed the cause of the refusal."""

    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: True)
        async with running(Bench(kernel, PLAN)) as bench:
            await bench.clock.advance(30.2)  # the pauses have reached their maximum
            kernel.refuse = lambda operation: False
            kernel.damage()
            await bench.clock.advance(0.06)

            assert bench.is_healed

    asyncio.run(check())


def test_an_event_soon_after_an_attempt_brings_the_next_one_forward() -> None:
    """The attempt itself may have caused the event, so it is repeated soon, not immediately."""

    async def check() -> None:
        kernel = FakeKernel(refuse=lambda operation: True)
        async with running(Bench(kernel, PLAN)) as bench:
            await bench.clock.advance(30.2)  # the pauses have reached their maximum
            attempts = len(kernel.batches)
            while len(kernel.batches) == attempts:
                await bench.clock.advance(0.01)
            kernel.refuse = lambda operation: False
            kernel.damage()
            await bench.clock.advance(0.1)

            assert bench.is_healed

    asyncio.run(check())


def test_attempts_that_cause_events_become_less_frequent() -> None:
    """The kernel announces each attempt to the daemon as a change."""

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
