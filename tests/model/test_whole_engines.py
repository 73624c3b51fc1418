"""Simulated weeks of complete engines: the daemon's supervisor with doubles of store, kernel and clock."""

import asyncio
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import pytest
from msgspec.structs import replace

from doubles.planning import plan_of
from doubles.simulated_time import SimulatedLoop
from lease_model.engine_faults import FAULTS, simulate_with_faults
from lease_model.engines import (
    AUDIT_S,
    SUBNET_FILE,
    UNDERLAY,
    EngineHost,
    Engines,
    Make,
    Setting,
    foreign,
)
from lease_model.rules import Violation
from pyflannel.engine import config_in_force, supervisor
from pyflannel.engine.condition import Inputs
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.planner import Planner
from pyflannel.engine.reconciler import Reconciler
from pyflannel.engine.store_followers import ConfigFollower, read_config
from pyflannel.engine.work import Work
from pyflannel.engine.world import HostOptions, PlanOptions, World
from pyflannel.model.host import Bridge, DefaultRoute, Interface, InterfaceAddress, Interfaces, RouteScope
from pyflannel.model.item import Key
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Event, Held, Listed, Report, WatchLost
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpAddress
from pyflannel.model.state import Operation, Refusal, State
from pyflannel.model.store_record import Conflict, Delete, Put, Record, Written
from pyflannel.plan.diff import diff
from pyflannel.plan.generations import Generation
from pyflannel.plan.lease.state import LeaseState
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.plan.peers import PeerChange
from pyflannel.plan.underlay import UnderlayOptions, choose
from pyflannel.ports import Announce, ChangeChannel, Store
from pyflannel.wire.lease_record import CONFIG

DAY_S = 24 * 3600.0
FILTER = FilterOptions(masquerades=True, accepts_forwarded=True)


def configs(subnets: int) -> tuple[str, ...]:
    """Return network configs with this number of subnets, one for each backend with peers."""
    text = '{{"Network":"10.100.0.0/16","SubnetMax":"10.100.{}.0","Backend":{{"Type":"{}"}}}}'
    return tuple(text.format(subnets, backend) for backend in ("udp", "vxlan", "host-gw"))


def interfaces_of(address: IPv4Address) -> Interfaces:
    """Return the interfaces of a host: the one interface that all hosts share."""
    held = IPv4Interface((address, UNDERLAY.prefixlen))
    eth0 = Interface(
        name="eth0",
        index=2,
        mtu=1500,
        addresses=(InterfaceAddress(address=held),),
        on_link=(held.network,),
    )
    return Interfaces(interfaces=(eth0,), default_routes=(DefaultRoute(link="eth0"),))


class Surroundings:
    """The ports other than store, kernel and clock: the interfaces, and a memory."""

    def __init__(self, setting: Setting) -> None:
        self._memory = setting.memory
        self._address = setting.address
        self._moved = setting.moved

    async def load(self) -> bytes | None:
        return self._memory[-1] if self._memory else None

    async def save(self, parts: Iterable[bytes]) -> bool:
        self._memory[:] = [b"".join(parts)]
        return True

    async def observe(self, scope: RouteScope) -> Interfaces:
        return interfaces_of(self._address())

    async def route_to(self, address: IPv4Address) -> None:
        return None

    async def announce(self, interface: Interface, addresses: Iterable[IpAddress]) -> None:
        """Announce nothing: there is no link."""

    def changes(self) -> ChangeChannel:
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        while True:
            await self._moved.wait()
            self._moved.clear()
            announce()


class NoBridges:
    async def observe(self) -> tuple[Bridge, ...]:
        return ()

    def changes(self) -> ChangeChannel:
        return ChangeChannel(lambda announce: asyncio.Event().wait())


class Engine(supervisor.Supervisor):
    """The supervisor of a simulated host."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        surroundings = Surroundings(setting)
        world = World(
            store=setting.store,
            store_log=StoreLog(setting.clock),
            targets=(setting.kernel,),
            interfaces=surroundings,
            bridges=NoBridges(),
            clock=setting.clock,
            memory=surroundings,
            notify=lambda text: None,
            draw=setting.draw,
            reidentify=setting.reidentify,
        )
        options = HostOptions(
            identity=setting.identity,
            underlay=UnderlayOptions(),
            plan=PlanOptions(subnet_file=SUBNET_FILE, packet_filter=FILTER),
            subnet_env=setting.subnet_env,
            audit_s=AUDIT_S,
            look_s=AUDIT_S,
            fast_path="off",
        )
        super().__init__(world, options)

    @property
    def state(self) -> LeaseState | None:
        return None if self._keeper is None else self._keeper.state

    @property
    def previous(self) -> tuple[Generation, ...]:
        return self.condition.inputs.previous

    @property
    def known(self) -> LeaseSet:
        return LeaseSet() if self._keeper is None else self._keeper.leases

    def _report(self, report: Report) -> None:
        super()._report(report)
        self._setting.report(report)


def plan(host: EngineHost, held: Held, truth: LeaseSet, config: str) -> State:
    """Return the plan of a host, from the store and the backends that it has not given up yet."""
    read, backend = read_config(config, is_assigned=False)
    inputs = Inputs(
        config=read,
        backend=backend,
        underlay=choose(UnderlayOptions(), interfaces_of(host.address)),
        lease=held.lease,
        leases=truth.by_subnet,
        owner=host.identity.owner,
        previous=host.previous,
    )
    return plan_of(inputs, PlanOptions(subnet_file=SUBNET_FILE, packet_filter=FILTER))


def wrong_kernels(engines: Engines) -> Iterator[Violation]:
    """Yield the hosts whose kernels differ from the plan and the initial objects."""
    truth = engines.leases()
    for host in engines.hosts:
        if host.state is None or host.state.held is None:
            continue  # the daemon is stopped, or no subnet is available
        wanted = plan(host, host.state.held, truth, engines.config) | foreign(host.address)
        if host.kernel.state != wanted:
            some = next(diff(wanted, host.kernel.state))
            yield Violation("kernel equals plan", f"{host.name}: {some}")


def endless_changes(engines: Engines) -> Iterator[Violation]:
    """Yield the hosts that keep a previous backend although all hosts run with the newest."""
    for host in engines.hosts:
        if host.previous:
            yield Violation("a change of the backend ends", f"{host.name}: {host.previous[0].backend.way}")


async def simulate(
    make: Make, *, hosts: int, days: int, faults: int, seed: int, kinds: Sequence[str]
) -> Engines:
    """Simulate this number of hosts for this time, with this number of faults a day.

    Settle every other day.
    """
    engines = Engines(make, hosts, seed, configs(hosts + hosts // 5))
    await engines.start()
    for _ in range(days // 2):
        await simulate_with_faults(engines, 2 * DAY_S, faults=kinds, count=2 * faults)
        if not engines.broken:
            await engines.rest()
            engines.blame(wrong_kernels(engines))
            await engines.settle()
            engines.blame(wrong_kernels(engines))
            engines.blame(endless_changes(engines))
        if engines.broken:
            break
    await engines.end()
    return engines


def results_of(
    make: Make = Engine, *, hosts: int, days: int, faults: int, seed: int, kinds: Sequence[str] = FAULTS
) -> Engines:
    """Return the results of these hosts."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(simulate(make, hosts=hosts, days=days, faults=faults, seed=seed, kinds=kinds))


@pytest.fixture(autouse=True)
def _without_logs() -> Iterator[None]:
    """Discard the warnings of weeks."""
    log = logging.getLogger("pyflannel")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    yield
    log.setLevel(level)


@pytest.mark.timeout(3600)
def test_no_rule_is_broken_in_weeks_of_whole_engines(long_run: bool) -> None:
    """No rule is broken. After each settling, every kernel equals the plan."""
    for seed in range(1, 21 if long_run else 2):
        engines = results_of(hosts=10, days=28 if long_run else 14, faults=20, seed=seed)
        assert not engines.broken, f"seed {seed}: {engines.broken[0]}"


@pytest.mark.timeout(3600)
def test_no_rule_is_broken_in_weeks_of_a_hundred_whole_engines(
    long_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not long_run:
        pytest.skip("needs --long")

    engines = results_of(hosts=100, days=14, faults=10, seed=1)

    assert not engines.broken, engines.broken[0]
    with capsys.disabled():
        print(f"\n{len(engines.hosts)} whole engines, 14 days: {engines.counts}", end="")


def test_equal_seeds_give_equal_results() -> None:
    """A finding of a seed can be reproduced."""
    first, again, other = (results_of(hosts=4, days=2, faults=40, seed=seed).outcome() for seed in (1, 1, 2))

    assert first == again
    assert first != other


Broken = list[tuple[float, Violation]]


async def restarted(news: str | None, *, is_booted: bool) -> tuple[IPv4Network, Lease, Broken]:
    """Return a host's subnet, its lease after a restart with another config, and the broken rules."""
    engines = Engines(Engine, 2, 1, configs(4))
    await engines.start()
    host = engines.hosts[0]
    assert host.runs_on is not None
    before = host.runs_on.subnet
    await (host.boot() if is_booted else host.crash())
    value = None if news is None else news.encode()
    engines.store.change(
        Delete(key=CONFIG, expected=None)
        if value is None
        else Put(key=CONFIG, value=value, ttl_s=None, expected=None)
    )
    host.start_in(0.0)
    await asyncio.sleep(120)
    engines.judge()
    state = host.state
    assert state is not None
    assert state.held is not None
    await engines.end()
    return before, state.held.lease, engines.broken


def run_restarted(news: str | None, *, is_booted: bool = False) -> tuple[IPv4Network, Lease, Broken]:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(restarted(news, is_booted=is_booted))


OTHER_NETWORK = '{"Network":"10.200.0.0/16"}'


@pytest.mark.parametrize("news", [OTHER_NETWORK, "no JSON", None])
def test_a_restart_keeps_the_subnet_after_any_change_of_the_config(news: str | None) -> None:
    """Containers use the subnet. The lease is written again, in the store with another config."""
    before, lease, broken = run_restarted(news)

    assert lease.subnet == before
    assert lease.revision > 0
    assert not broken


def test_a_boot_acquires_a_subnet_of_the_config_in_the_store() -> None:
    """After a boot, no container uses the old subnet."""
    _, lease, _ = run_restarted(OTHER_NETWORK, is_booted=True)

    assert lease.subnet.subnet_of(IPv4Network("10.200.0.0/16"))


class DeafKeeper(LeaseKeeper):
    """Treats a closed watch as open."""

    def _advance(self, event: Event, tasks: asyncio.TaskGroup) -> None:
        if not isinstance(event, WatchLost) or event.is_compacted:
            super()._advance(event, tasks)


class HastyKeeper(LeaseKeeper):
    """Treats a compaction as an empty list."""

    def _advance(self, event: Event, tasks: asyncio.TaskGroup) -> None:
        if isinstance(event, WatchLost) and event.is_compacted:
            event = Listed(leases=(), claims=(), unreadable=(), revision=self.state.revision)
        super()._advance(event, tasks)


class CarelessKeeper(LeaseKeeper):
    """Writes without a condition."""

    def __init__(self, *, store: Store, **others: Any) -> None:
        super().__init__(store=Unconditional(store), **others)


class Unconditional:
    def __init__(self, store: Store) -> None:
        self._store = store
        self.get, self.list, self.watch = store.get, store.list, store.watch

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        return await self._store.write(replace(operation, expected=None))


class ResignedWork(Work):
    """Never retries before the pause ends."""

    def hasten(self, key: Key, pause_s: float) -> None:
        pass


class ResignedReconciler(Reconciler):
    """Never retries a refused operation."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._work = ResignedWork()

    def _is_hopeless(self, operation: Operation) -> bool:
        mark = self._work.get(operation.subject.key)
        return mark is not None and mark.refusal is not None

    def _retry_due_s(self, refusal: Refusal, cost_s: float) -> float:
        return math.inf


class TrustingReconciler(Reconciler):
    """Reads the kernel only after notifications."""

    @property
    def _audit_due_s(self) -> float:
        return math.inf if self._has_applied else super()._audit_due_s


class ForgetfulPlanner(Planner):
    """Keeps peers in the plan whose leases were removed."""

    def _update_peers(self, inputs: Inputs) -> list[PeerChange]:
        return [change for change in super()._update_peers(inputs) if change.new is not None]


class StubbornFollower(ConfigFollower):
    """Reads the network config only once."""

    def _read(self, record: Record | None) -> None:
        if not hasattr(self, "first"):
            self.first = record
            super()._read(record)


def amnesiac(setting: Setting) -> Engine:
    """Return an engine that does not read the subnet.env of its previous run."""
    return Engine(replace(setting, subnet_env=None))


FOREIGN_WRITE = "no write to foreign keys"
RENUMBERED = "a running host's subnet changes only on an order"
UNKNOWN = "every peer's lease is known"
UNEQUAL = "kernel equals plan"


@pytest.mark.parametrize(
    ("defect", "rule", "kinds"),
    [
        (DeafKeeper, UNKNOWN, ("watch cut", "boot")),
        (HastyKeeper, UNKNOWN, ("compaction",)),
        (CarelessKeeper, FOREIGN_WRITE, ("power cut",)),
        (ResignedReconciler, UNEQUAL, ("kernel refuses",)),
        (TrustingReconciler, UNEQUAL, ("kernel damaged silently",)),
        (ForgetfulPlanner, UNEQUAL, ("leaves",)),
        (StubbornFollower, UNEQUAL, ("config changed",)),
        (amnesiac, RENUMBERED, ("crash",)),
    ],
)
@pytest.mark.timeout(3600)
def test_the_simulation_finds_seeded_defects(
    monkeypatch: pytest.MonkeyPatch, long_run: bool, defect: Any, rule: str, kinds: Sequence[str]
) -> None:
    """Each defect is found within days, with the faults that cause it, or with all faults by one of several
    seeds.
    """
    make: Make = Engine
    if isinstance(defect, type):
        used_by = config_in_force if defect is StubbornFollower else supervisor
        monkeypatch.setattr(used_by, defect.__base__.__name__, defect)
    else:
        make = defect
    days, kinds = (28, FAULTS) if long_run else (6, kinds)

    lived = (results_of(make, hosts=8, days=days, faults=20, seed=seed, kinds=kinds) for seed in range(1, 11))

    assert any(rule in {violation.rule for _, violation in engines.broken} for engines in lived)
