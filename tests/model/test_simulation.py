"""Weeks of a hundred hosts with faults by chance; and some hosts' whole engines for a day."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from random import Random

import pytest

from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.planner import Planner
from pyflannel.engine.reconciler import Reconciler
from pyflannel.model.host import Underlay
from pyflannel.model.lease import Identity, Lease, LeaseAttributes
from pyflannel.model.lease_protocol import Acquired, Event, Held, PutLease, Renewed, Report, Wanted, Wrote
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.operation import Remove
from pyflannel.model.state import State
from pyflannel.plan.backend.udp import UdpBackend
from pyflannel.plan.diff import diff
from pyflannel.plan.order import order
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.testing.fake_clock import FakeClock
from pyflannel.testing.fake_kernel import FakeKernel
from pyflannel.testing.fake_store import FakeStore
from pyflannel.testing.lease_model.scenarios import host, network, scenario
from pyflannel.testing.lease_model.simulation import Simulation
from pyflannel.testing.lease_model.store import put_lease, transact
from pyflannel.testing.lease_model.world import Protocol, Request, StoreState, World

NETWORK = network(last=250)
RANGE = IPv4Network("10.100.0.0/16")
DAY_S = 24 * 3600.0


def planner_of(address: IPv4Address) -> Planner:
    planner = Planner(
        subnet_file="/run/flannel/subnet.env",
        packet_filter=FilterOptions(masquerades=True, is_fully_random=True, accepts_forwarded=True),
        device="flannel0",
        mark="pyflannel",
    )
    planner.config, planner.backend = NETWORK, UdpBackend(network=RANGE)
    planner.underlay = Underlay(link="eth0", address=address, mtu=1500, public_ip=address)
    return planner


def plan(own: Lease, leases: LeaseSet) -> State:
    """Return what a host should have, as the daemon's planner makes it."""
    planner = planner_of(own.attributes.public_ip)
    planner.held, planner.leases = Held(lease=own), leases
    planner.update()
    desired = planner.desired()
    assert desired is not None
    return desired


async def one_pass(kernel: FakeKernel, desired: State) -> None:
    await kernel.apply(order(diff(desired, await kernel.snapshot(desired))))


def check_kernels(world: World, kernels: Sequence[FakeKernel]) -> None:
    """Let every host make one pass from what it knows; then its kernel has what the store says."""
    values = [entry.value for entry in world.store.entries]
    truth = LeaseSet.of(value for value in values if isinstance(value, Lease))
    for one, kernel in zip(world.hosts, kernels, strict=True):
        assert one.memory is not None
        asyncio.run(one_pass(kernel, plan(one.memory, one.leases)))
        assert kernel.state == plan(one.memory, truth), one.name


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1])
def test_weeks_of_a_hundred_hosts(seed: int, long_run: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """No rule is broken; each week, when the dust has settled, every kernel equals the plan."""
    hosts = tuple(host(number) for number in range(1, 101))
    simulation = Simulation(scenario("a hundred hosts", hosts, last=250).world, seed)
    kernels = [FakeKernel() for _ in hosts]
    for _ in range(8 if long_run else 2):
        simulation.run(7 * DAY_S, faults=60)
        simulation.settle()
        assert not simulation.broken, simulation.broken[0]
        check_kernels(simulation.world, kernels)
    with capsys.disabled():
        days, moves = simulation.world.now / DAY_S, simulation.counts.total()
        print(
            f"\n{len(hosts)} hosts, {days:.0f} days, {moves:,} moves, seed {seed}: {simulation.counts}",
            end="",
        )


def test_equal_seeds_give_equal_lives() -> None:
    """What a seed finds can be looked at again."""
    hosts = tuple(host(number) for number in range(1, 6))

    def live(seed: int) -> World:
        simulation = Simulation(scenario("five hosts", hosts, last=250).world, seed)
        simulation.run(DAY_S, faults=20)
        return simulation.world

    assert live(1) == live(1)
    assert live(1) != live(2)


class Engine:
    """The keeper, the planner and the reconciler of one host, on doubles of the store and the kernel."""

    def __init__(self, number: int, store: FakeStore, clock: FakeClock, random: Random, ttl_s: int) -> None:
        address = IPv4Address(f"192.168.50.{number}")
        self.store = store.client()
        self.kernel = FakeKernel()
        self.planner = planner_of(address)
        self.reconciler = Reconciler(
            target=self.kernel, clock=clock, desired=self.planner.desired, audit_s=ttl_s / 6
        )
        attributes = LeaseAttributes(public_ip=address, owner=Identity(owner=f"id{number}"))
        self.keeper = LeaseKeeper(
            store=self.store,
            clock=clock,
            draw=random.randrange,
            wanted=Wanted(network=NETWORK, attributes=attributes, ttl_s=ttl_s, renew_margin_s=600),
            held=None,
            report=self.hear,
            leases_changed=self.know,
            reidentify=lambda attributes: replace(attributes, owner=Identity(owner=f"id{number}-anew")),
        )

    def hear(self, report: Report) -> None:
        if isinstance(report, Acquired | Renewed):
            self.planner.held = report.held
            self.replan()

    def know(self, leases: LeaseSet) -> None:
        self.planner.leases = leases
        self.replan()

    def replan(self) -> None:
        changes = self.planner.update()
        if changes is None:
            self.reconciler.wake()
        else:
            self.reconciler.change(changes)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.keeper.run())
            tasks.create_task(self.reconciler.run())


def fault(engines: Sequence[Engine], random: Random) -> None:
    """Let one thing go wrong with one host's store or kernel."""
    engine = random.choice(engines)
    match random.randrange(5):
        case 0:
            engine.store.cut_watches()
        case 1:
            engine.store.compact()
        case 2:
            engine.store.lose_next_answer()
        case 3:
            engine.store.is_away = not engine.store.is_away
        case _:
            items = list(engine.kernel.state)
            if items:
                engine.kernel.damage(Remove(random.choice(items)))


async def live(seed: int, hosts: int, faults: int, ttl_s: int) -> list[Engine]:
    """Let so many hosts live with so many faults, up to a third of a lease's time apart."""
    random, clock = Random(seed), FakeClock()
    store = FakeStore(clock)
    engines = [Engine(number, store, clock, random, ttl_s) for number in range(1, hosts + 1)]
    running = [asyncio.ensure_future(engine.run()) for engine in engines]
    try:
        for _ in range(faults):
            await clock.advance(random.random() * ttl_s / 3)
            fault(engines, random)
        for engine in engines:
            engine.store.is_away = False
        await clock.advance(60)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return engines


def check_engines(engines: Sequence[Engine]) -> None:
    """Each host has a lease of its own, and in its kernel what follows from all of them."""
    held = [engine.keeper.state.held for engine in engines]
    leases = [one.lease for one in held if one is not None]
    assert len({lease.subnet for lease in leases}) == len(engines)
    truth = LeaseSet.of(replace(lease, revision=0) for lease in leases)
    for engine, own in zip(engines, leases, strict=True):
        assert engine.kernel.state == plan(own, truth)


def test_hours_of_whole_engines(long_run: bool) -> None:
    """The same keeper, planner and reconciler as the daemon's: all lease, all known, all programmed."""
    for seed in range(10 if long_run else 1):
        check_engines(asyncio.run(live(seed, hosts=6, faults=24, ttl_s=3600)))


@pytest.mark.timeout(3600)
def test_hours_of_a_hundred_whole_engines(long_run: bool) -> None:
    if not long_run:
        pytest.skip("needs --long")

    check_engines(asyncio.run(live(1, hosts=100, faults=24, ttl_s=3600)))


def test_the_simulation_finds_a_creation_without_a_compare() -> None:
    """Fifty hosts that start within a minute draw among sixty subnets."""

    def careless(store: StoreState, request: Request, now: float, writer: str) -> tuple[StoreState, Event]:
        if isinstance(request, PutLease) and request.expected == 0:
            store = put_lease(store, request.lease, request.ttl_s, now, writer)
            return store, Wrote(request, store.revision)
        return transact(store, request, now, writer)

    hosts = tuple(host(number) for number in range(1, 51))
    simulation = Simulation(scenario("a start", hosts, last=60).world, 1, Protocol(transact=careless))

    simulation.run(3600, faults=0)

    assert simulation.broken[0].violation.rule == "no write to what is not ours"
