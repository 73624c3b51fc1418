"""The reconciler on a kernel and a clock in memory: plans, changes and damage."""

import asyncio
import logging
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

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
    running,
    subject,
)
from pyflannel.model.host import HostFile
from pyflannel.model.link import Address, Link, Vxlan
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, Route
from pyflannel.model.state import Add, Remove, Replace, State


def test_no_object_is_changed_before_there_is_a_plan() -> None:
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


def test_damage_is_repaired_immediately_and_logged(caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_host_is_not_clean_before_its_repair_has_ended() -> None:
    async def check() -> None:
        kernel = Slow()
        async with running(Bench(kernel, PLAN)) as bench:
            kernel.may_go_on.clear()
            kernel.damage(Remove(LINK))
            await bench.clock.settle()
            assert not bench.is_healed
            assert not bench.reconciler.is_clean

            kernel.may_go_on.set()
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.is_clean

    asyncio.run(check())


@pytest.mark.parametrize(
    "changed",
    [
        replace(VXLAN, mac="0e:00:00:00:00:03"),
        replace(VXLAN, vxlan=Vxlan(vni=1, port=4789, parent="", local=None)),
    ],
)
@pytest.mark.parametrize("refusals", [0, 1])
def test_objects_dropped_by_a_planned_link_change_are_not_repairs(changed: Link, refusals: int) -> None:
    """The plan of the neighbour is unchanged. The neighbour is added again with the link, even after a
    refusal.
    """

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


def test_a_renamed_vxlan_device_is_replaced_by_one_batch() -> None:
    """No operation is refused, and the objects on the device are restored with it."""

    async def check() -> None:
        async with running(Bench(FakeKernel(), State.of(VXLAN, NEIGHBOUR))) as bench:
            batches = len(bench.kernel.batches)
            bench.kernel.damage(Remove(VXLAN), Add(replace(VXLAN, name="stray")))
            await bench.clock.settle()

            assert bench.is_healed
            assert len(bench.kernel.batches) == batches + 1
            assert not list(bench.reconciler.refused())

    asyncio.run(check())


@pytest.mark.parametrize("length", [16, 32])
def test_the_address_of_a_link_is_replaced_by_one_batch(length: int) -> None:
    """Objects that the kernel drops with the old address are restored in the batch, without repairs."""

    def plan(subnet: str) -> State:
        address = Address(link=LINK.name, address=IPv4Interface((subnet, length)))
        connected = Route(
            destination=IPv4Network("10.100.0.0/16"),
            link=LINK.name,
            source=address.address.ip,
            protocol=PROTOCOL_KERNEL,
            scope=SCOPE_LINK,
        )
        route = Route(destination=IPv4Network("10.101.0.0/24"), link=LINK.name)
        return State.of(LINK, address, connected, route)

    async def check() -> None:
        kernel = Silent()
        async with running(Bench(kernel, plan("10.100.15.0"))) as bench:
            batches = len(kernel.batches)
            bench.replace(plan("10.100.16.0"))
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.is_clean
            assert len(kernel.batches) == batches + 1
            assert not list(bench.reconciler.refused())
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_foreign_objects_are_not_changed() -> None:
    async def check() -> None:
        foreign = Link(name="eth0", kind="", mtu=1500, alias="")
        async with running(Bench(FakeKernel(State.of(foreign)), PLAN)) as bench:
            bench.kernel.damage(Add(replace(foreign, name="eth1")))
            await bench.clock.settle()

            assert foreign in bench.kernel.state
            assert replace(foreign, name="eth1") in bench.kernel.state

    asyncio.run(check())


def test_a_file_waits_for_the_device_that_it_describes() -> None:
    """A program that reads subnet.env may start containers immediately."""

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
            assert bench.reconciler.counts.repairs == 0  # nothing existed before

    asyncio.run(check())


def test_repairs_and_changes_are_distinguished_for_changed_and_new_plans() -> None:
    """The planner changes single peers in the plan in force. A whole new plan is another object."""

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


def test_a_planned_change_by_a_pass_is_not_a_repair() -> None:
    """The change was in the plan, and not yet applied, when the pass began to compare."""

    async def check() -> None:
        plan = State.of(LINK, FORWARDER)
        async with running(Bench(Silent(), plan)) as bench:
            bench.reconciler.look()
            bench.change(Add(PEER))
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_a_change_waits_for_the_objects_of_the_host() -> None:
    """Objects of a peer are applied separately only after a pass has completed everything."""

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
    """For example, the backend and a peer change together: objects for the peer exist only after a pass."""

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


def test_the_device_of_another_daemon_is_not_changed_and_is_logged(caplog) -> None:
    """Two networks on one host have the same VNI. Other objects are applied, and the host is not ready."""

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
            assert caplog.text.count("--run-dir=/run/blue owns this link") == 1

            kernel.damage(Remove(theirs))
            await bench.clock.advance(2)

            assert bench.is_healed
            assert bench.reconciler.is_clean
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())


def test_a_later_change_of_a_peer_replaces_one_that_is_being_applied() -> None:
    """The later change arrives during the first batch and a scan. The later change is applied next, and is no
    repair.
    """

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


def test_the_time_from_a_change_of_peers_to_the_kernel_is_measured() -> None:
    """The time starts at the first change that is not applied yet, and a refused object makes the time
    longer.
    """

    async def check() -> None:
        kernel = Slow()
        async with running(Bench(kernel, State.of(LINK, FORWARDER))) as bench:
            counts = bench.reconciler.counts
            kernel.may_go_on.clear()
            bench.change(Add(PEER))
            await bench.clock.advance(0.2)
            assert counts.peer_durations.count == 0
            kernel.may_go_on.set()
            await bench.clock.settle()
            assert (counts.peer_durations.count, round(counts.peer_durations.total_s, 3)) == (1, 0.2)
            assert counts.peer_durations.up_to[4:6] == (0, 1)  # more than 0.1 s, at most 0.25 s

            bench.change(Remove(PEER))
            await bench.clock.settle()
            assert counts.peer_durations.count == 2
            await bench.clock.advance(3600)  # audits change no peer
            assert counts.peer_durations.count == 2

    asyncio.run(check())


def test_an_operation_continues_when_another_program_creates_its_required_object() -> None:
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


def test_objects_restored_after_a_planned_link_change_are_not_repairs() -> None:
    """The kernel drops the objects when the link is created again."""

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


def test_a_plan_that_is_replaced_during_a_batch_is_applied_as_a_whole() -> None:
    """If the old address were removed before the new address is added, the kernel would drop the
    neighbour.
    """
    old, new = (Address(link=VXLAN.name, address=IPv4Interface(f"10.100.{n}.0/32")) for n in (15, 16))

    async def check() -> None:
        kernel = Slow()
        kernel.may_go_on.clear()
        async with running(Bench(kernel, State.of(VXLAN, old))) as bench:
            await bench.clock.settle()
            bench.replace(State.of(VXLAN, new))
            bench.change(Add(NEIGHBOUR))
            kernel.may_go_on.set()
            await bench.clock.settle()

            assert bench.is_healed
            assert bench.reconciler.counts.repairs == 0

    asyncio.run(check())
