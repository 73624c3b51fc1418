"""A reconciler that runs on kernels and a clock in memory."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network

from doubles.fake_clock import FakeClock
from doubles.fake_kernel import FakeKernel
from pyflannel.engine.batch_report import Journal
from pyflannel.engine.reconciler import Reconciler
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.item import Item, Key
from pyflannel.model.link import Link, Vxlan
from pyflannel.model.route import Neighbour
from pyflannel.model.state import Changed, Operation, Refusal, Remove, Replace, Replaced, State
from pyflannel.plan.diff import diff
from pyflannel.plan.ownership import ours
from pyflannel.ports import Announce, ChangeChannel

LINK = Link(name="flannel0", kind="tun", mtu=1472)


PLAN = State.of(LINK)


class Bench:
    """A running reconciler and its surroundings."""

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
        """Replace the plan."""
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
    async with bench.clock.running(bench.reconciler.run()):
        yield bench


VXLAN = Link(
    name="flannel.1",
    kind="vxlan",
    mtu=1450,
    mac="0e:00:00:00:00:01",
    vxlan=Vxlan(vni=1, port=8472, parent="", local=None),
)


NEIGHBOUR = Neighbour(link=VXLAN.name, address=IPv4Address("10.100.16.0"), mac="0e:00:00:00:00:02")


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
    """A kernel that counts its scans, and that can change during a scan."""

    looks = 0
    meanwhile = staticmethod(lambda: None)

    async def snapshot(self, desired: State) -> State:
        self.looks += 1
        state = await super().snapshot(desired)
        self.meanwhile()
        await asyncio.sleep(0)
        return state


class SlowToRead(FakeKernel):
    """A kernel that returns no snapshot before a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def snapshot(self, desired: State) -> State:
        state = await super().snapshot(desired)
        await self.may_end.wait()
        return state


class Silent(FakeKernel):
    """A kernel that announces no change."""

    def changes(self) -> ChangeChannel:
        async def nothing(announce: Announce) -> None:
            await asyncio.Event().wait()

        return ChangeChannel(nothing)


class Slow(FakeKernel):
    """A kernel that performs no operation before a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        await self.may_go_on.wait()
        return await super().apply(operations)
