"""Simulated weeks of a hundred hosts with random faults, one move at a time."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Network

import pytest

from doubles.fake_kernel import FakeKernel
from doubles.planning import SUBNET_FILE, pass_operations, plan_of
from lease_model.scenarios import host, network, scenario
from lease_model.simulation import Simulation
from lease_model.store import put_lease, transact
from lease_model.world import Protocol, Request, StoreState, World
from pyflannel.engine.condition import Inputs
from pyflannel.engine.world import PlanOptions
from pyflannel.model.host import Underlay
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Event, PutLease, Wrote
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.state import State
from pyflannel.plan.backend.udp import UdpBackend
from pyflannel.plan.packet_filter import FilterOptions

NETWORK = network(last=250)
RANGE = IPv4Network("10.100.0.0/16")
DAY_S = 24 * 3600.0


def plan(own: Lease, leases: LeaseSet) -> State:
    """Return the plan of a host, from the daemon's planner."""
    address = own.attributes.public_ip
    underlay = Underlay(link="eth0", address=address, mtu=1500, public_ip=address)
    inputs = Inputs(
        config=NETWORK,
        backend=UdpBackend(network=RANGE),
        underlay=underlay,
        lease=own,
        leases=leases.by_subnet,
    )
    options = FilterOptions(masquerades=True, is_fully_random=True, accepts_forwarded=True)
    return plan_of(inputs, PlanOptions(subnet_file=SUBNET_FILE, packet_filter=options))


async def one_pass(kernel: FakeKernel, desired: State) -> None:
    await kernel.apply(pass_operations(desired, await kernel.snapshot(desired)))


def check_kernels(world: World, kernels: Sequence[FakeKernel]) -> None:
    """Let every host make one pass from its knowledge. After that, the kernel of each host must match the
    store.
    """
    values = [entry.value for entry in world.store.entries]
    truth = LeaseSet.of(value for value in values if isinstance(value, Lease))
    for one, kernel in zip(world.hosts, kernels, strict=True):
        assert one.memory is not None
        asyncio.run(one_pass(kernel, plan(one.memory, one.leases)))
        assert kernel.state == plan(one.memory, truth), one.name


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1])
def test_no_rule_is_broken_in_weeks_of_a_hundred_hosts(
    seed: int, long_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """No rule is broken. After each week and a settling, every kernel equals the plan."""
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


def test_equal_seeds_give_equal_results() -> None:
    """A finding of a seed can be reproduced."""
    hosts = tuple(host(number) for number in range(1, 6))

    def simulate(seed: int) -> World:
        simulation = Simulation(scenario("five hosts", hosts, last=250).world, seed)
        simulation.run(DAY_S, faults=20)
        return simulation.world

    assert simulate(1) == simulate(1)
    assert simulate(1) != simulate(2)


def test_the_simulation_finds_a_creation_without_a_compare() -> None:
    """Fifty hosts that start within a minute choose among sixty subnets."""

    def careless(store: StoreState, request: Request, now: float, writer: str) -> tuple[StoreState, Event]:
        if isinstance(request, PutLease) and request.expected == 0:
            store = put_lease(store, request.lease, request.ttl_s, now, writer)
            return store, Wrote(request, store.revision)
        return transact(store, request, now, writer)

    hosts = tuple(host(number) for number in range(1, 51))
    simulation = Simulation(scenario("a start", hosts, last=60).world, 1, Protocol(transact=careless))

    simulation.run(3600, faults=0)

    assert simulation.broken[0].violation.rule == "no write to foreign keys"
