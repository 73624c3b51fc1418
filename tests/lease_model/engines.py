"""Complete engines in simulated time: daemons with doubles of store, kernel and clock.

This module does not know the daemon. A test provides a function that creates one.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from random import Random
from typing import Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from doubles.fake_kernel import FakeKernel
from doubles.fake_store import FakeStore
from doubles.simulated_time import SimulatedClock
from lease_model import rules
from lease_model.ledger import Ledger
from lease_model.line import Line
from lease_model.rules import Violation
from lease_model.world import HostState, StoreState, World
from pyflannel.errors import WireError
from pyflannel.model.host import HostFile
from pyflannel.model.lease import Claim, Identity, Lease, LeaseAttributes
from pyflannel.model.lease_protocol import (
    Acquired,
    DeleteLease,
    Held,
    List,
    Lost,
    PutLease,
    Renewed,
    Report,
    SharedAddress,
    Taken,
    Wanted,
    Woke,
)
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.link import Address, Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, Route
from pyflannel.model.state import Add, Operation, Refusal, Remove, State
from pyflannel.model.store_record import Put
from pyflannel.plan.generations import Generation
from pyflannel.plan.lease.state import LeaseState
from pyflannel.wire.lease_record import CONFIG
from pyflannel.wire.network_config_json import parse_network_config
from pyflannel.wire.subnet_env import previous_subnet

HOUR_S = 3600.0
AUDIT_S = 4 * HOUR_S
"""Pause in seconds after which a daemon reads the kernel without a notification."""

SETTLES_S = AUDIT_S + 600.0
"""The audit finds unannounced damage within this time in seconds. All other work is done earlier."""

UNDERLAY = IPv4Network("192.168.48.0/20")
"""The network of the addresses of all hosts."""

START_S = 3.0
"""Time in seconds within which all hosts start, for example after a power failure."""

SUBNET_FILE = "/run/flannel/subnet.env"
_FOREIGN_ROUTE = Route(destination=IPv4Network("172.20.0.0/16"), link="eth0", protocol=3)


def foreign(address: IPv4Address) -> State:
    """Return the foreign objects of a host with this address."""
    connected = Route(
        destination=UNDERLAY, link="eth0", source=address, protocol=PROTOCOL_KERNEL, scope=SCOPE_LINK
    )
    link = Link(name="eth0", kind="", mtu=1500, alias="")
    return State.of(link, _held(address), connected, _FOREIGN_ROUTE)


def _held(address: IPv4Address) -> Address:
    return Address(link="eth0", address=IPv4Interface((address, UNDERLAY.prefixlen)))


_FIRST_ADDRESS = UNDERLAY.network_address
_HOSTS_MAX = 256


class Daemon(Protocol):
    """The interface of a simulated daemon."""

    @property
    def state(self) -> LeaseState | None:
        """The state of the daemon in the lease protocol; None before its start."""

    @property
    def known(self) -> LeaseSet:
        """The leases that the daemon knows."""

    @property
    def previous(self) -> tuple[Generation, ...]:
        """The earlier configs by which the daemon still receives packets."""

    async def run(self) -> None:
        """Run until cancelled."""


class Setting(Struct, kw_only=True):
    """The surroundings of a daemon on its host.

    Attributes:
        address: current address of the host.
        moved: set after a change of the address.
        memory: stores the state that the daemon saves.
        subnet_env: content of SUBNET_FILE from the previous run.
        reidentify: creates another identity.
        report: called with each report of the lease protocol, after the daemon itself.
    """

    store: Line
    kernel: FakeKernel
    clock: SimulatedClock
    address: Callable[[], IPv4Address]
    moved: asyncio.Event
    identity: Identity
    draw: Callable[[int], int]
    reidentify: Callable[[], Identity]
    report: Callable[[Report], None]
    subnet_env: str | None = None
    memory: list[bytes] = field(default_factory=list)


Make = Callable[[Setting], Daemon]


class SlowKernel(FakeKernel):
    """A slow kernel: a read may return old data, and a batch may end half-way.

    Attributes:
        batch_count: number of started batches. The batches themselves are not kept, because weeks would need
            much memory.
    """

    def __init__(self, state: State, random: Random) -> None:
        super().__init__(state)
        self.batch_count = 0
        self._random = random

    async def snapshot(self, desired: State) -> State:
        """Return the state at an earlier moment."""
        state = await super().snapshot(desired)
        await asyncio.sleep(self._random.random() * 0.02)
        return state

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in two parts."""
        self.batch_count += 1
        middle = self._random.randrange(len(operations) + 1)
        first = await super().apply(operations[:middle])
        await asyncio.sleep(self._random.random() * 0.02)
        second = await super().apply(operations[middle:])
        self.batches.clear()
        return [*first, *second]


class EngineHost:
    """One host: the parts that outlive its daemon, and the daemon."""

    def __init__(self, number: int, world: "Engines") -> None:
        self.name = f"host{number}"
        self.random = Random(f"{world.seed}/{number}")
        self.address = _FIRST_ADDRESS + number
        self.identity = Identity(owner=f"id{number}")
        self.kernel = SlowKernel(foreign(self.address), self.random)
        self.clock = SimulatedClock()
        self.runs_on: Lease | None = None
        self._world = world
        self._client = world.store.client()
        self._memory: list[bytes] = []
        self._moved = asyncio.Event()
        self._held: Held | None = None
        self._daemon: Daemon | None = None
        self._task: asyncio.Task[None] | None = None
        self._start: asyncio.TimerHandle | None = None
        self.line = Line(self._client, world.ledger, self.name, self.random, self._wrote)

    @property
    def is_running(self) -> bool:
        """True if a daemon runs."""
        return self._task is not None

    @property
    def client(self) -> FakeStore:
        """The host's client of the store, with its faults."""
        return self._client

    @property
    def state(self) -> LeaseState | None:
        """The state of the host's daemon in the lease protocol."""
        return None if self._daemon is None else self._daemon.state

    @property
    def previous(self) -> tuple[Generation, ...]:
        """The earlier configs by which the host's daemon still receives packets."""
        return () if self._daemon is None else self._daemon.previous

    @property
    def subnet_env(self) -> str | None:
        """The text of subnet.env."""
        files = (item for item in self.kernel.state if isinstance(item, HostFile))
        return next((file.text for file in files if file.path == SUBNET_FILE), None)

    def start_in(self, seconds: float) -> None:
        """Start the daemon after this time in seconds, unless a daemon runs."""
        if self._start is not None:
            self._start.cancel()
        self._start = asyncio.get_running_loop().call_later(seconds, self._begin)

    def end_faults(self) -> None:
        """End all faults of store and kernel. A stopped daemon remains stopped."""
        self.line.come_back()
        self.kernel.refuse, self.kernel.is_readable = _refuse_nothing, True
        if self._start is not None:
            self._start.cancel()

    def _begin(self) -> None:
        if self._task is not None:
            return
        setting = Setting(
            store=self.line,
            kernel=self.kernel,
            clock=self.clock,
            address=lambda: self.address,
            moved=self._moved,
            identity=self.identity,
            draw=self.random.randrange,
            reidentify=self._reidentify,
            report=self._record_report,
            subnet_env=self.subnet_env,
            memory=self._memory,
        )
        self._held = None
        self._daemon = self._world.make(setting)
        self._task = asyncio.get_running_loop().create_task(self._daemon.run(), name=self.name)
        self._task.add_done_callback(self._ended)

    async def crash(self) -> None:
        """Let the daemon end at any point. The host continues."""
        if self._task is None:
            return
        task, self._task = self._task, None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._daemon = None
        if not self._knows_its_subnet():
            self.runs_on = None  # no container runs, because none could start

    async def boot(self) -> None:
        """Let the host lose everything that is not on a disk, including its containers."""
        await self.crash()
        self.kernel.state, self.runs_on = foreign(self.address), None

    def move(self) -> None:
        """Give the host another, unused address."""
        offset = int(self.address) - int(_FIRST_ADDRESS) + _HOSTS_MAX
        before, self.address = self.address, _FIRST_ADDRESS + offset % UNDERLAY.num_addresses
        self.kernel.damage(Remove(_held(before)), Add(_held(self.address)), Add(_FOREIGN_ROUTE))
        self._moved.set()

    def as_state(self, store: StoreState, network: NetworkConfig) -> HostState:
        """Return the host in the form of the rules."""
        state = self.state
        watch = store.revision if state is not None and _has_seen_all(state, store) else None
        attributes = LeaseAttributes(public_ip=self.address, owner=self.identity.owner)
        return HostState(
            name=self.name,
            wanted=state.wanted if state is not None else Wanted(network=network, attributes=attributes),
            state=state,
            memory=self.runs_on,
            leases=LeaseSet() if self._daemon is None else self._daemon.known,
            requests=(List(),) if self.line.calls else (),
            watch=watch,
        )

    def _reidentify(self) -> Identity:
        self.identity = replace(self.identity, owner=f"{self.identity.owner}'")
        return self.identity

    def _knows_its_subnet(self) -> bool:
        try:
            subnet = previous_subnet(self.subnet_env or "")
        except WireError:
            return False
        return self.runs_on is not None and self.runs_on.subnet == subnet

    def _wrote(self, before: StoreState, after: StoreState, write: PutLease | DeleteLease) -> None:
        world = self._world
        host = self.as_state(before, world.network)
        world.blame(rules.of_write(before, after, write, host, world.as_world(before)))

    def _record_report(self, report: Report) -> None:
        if not isinstance(report, Acquired | Renewed | Lost | Taken | SharedAddress):
            return
        world, state = self._world, self.state
        assert state is not None
        store = world.ledger.state()
        after = self.as_state(store, world.network)
        before = replace(after, state=replace(state, held=self._held))
        world.blame(rules.of_step(before, Woke(), after, (report,), store))
        world.blame(rules.of_reports(after, (report,), world.as_world(store)))
        if isinstance(report, Acquired | Renewed):
            world.blame(self._begins(report.held.lease, store))
            self._held, self.runs_on = report.held, report.held.lease

    def _begins(self, lease: Lease, store: StoreState) -> Iterator[Violation]:
        """Check that a restarted daemon keeps the subnet of its containers, unless another host holds it."""
        was = self.runs_on
        if was is None or was.subnet == lease.subnet:
            return
        others = (e for e in store.entries if e.writer != self.name and not isinstance(e.value, Claim))
        if not any(entry.value.subnet.overlaps(was.subnet) for entry in others):
            text = f"{self.name} ran on {was.subnet}, which is free, and runs on {lease.subnet} now"
            yield Violation("a running host's subnet changes only on an order", text)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled():
            text = f"{self.name}: {task.exception()!r}"
            self._world.blame([Violation("a daemon runs until it is ended", text)])


class Engines:
    """Hosts in simulated time. Equal seeds give equal results. The engines need a SimulatedLoop.

    Attributes:
        configs: the network configs; the first config is used first.
        config: the current config, or the config that will be written again.
        broken: the violations, each with its time in seconds.
        counts: number of faults by kind.
    """

    def __init__(self, make: Make, hosts: int, seed: int, configs: Sequence[str]) -> None:
        self.make = make
        self.seed = seed
        self.configs = configs
        self.config = configs[0]
        self.broken: list[tuple[float, Violation]] = []
        self.counts: Counter[str] = Counter()
        self.store = FakeStore(SimulatedClock())
        self.ledger = Ledger(self.store)
        self.random = Random(seed)
        self.hosts = [EngineHost(number, self) for number in range(1, hosts + 1)]

    async def start(self) -> None:
        """Write the network config, and start every host within a few seconds."""
        self.configure(self.config)
        for host in self.hosts:
            host.start_in(self.random.random() * START_S)
        await asyncio.sleep(60)

    def configure(self, config: str) -> None:
        """Write another network config."""
        self.config = config
        self.store.change(Put(key=CONFIG, value=config.encode(), ttl_s=None, expected=None))

    @property
    def network(self) -> NetworkConfig:
        """The network config."""
        return parse_network_config(self.config)

    def blame(self, violations: "Iterator[Violation] | Sequence[Violation]") -> None:
        """Record a violation."""
        now = asyncio.get_running_loop().time()
        self.broken += [(now, violation) for violation in violations]

    def as_world(self, store: StoreState) -> World:
        """Return the world in the form of the rules."""
        hosts = tuple(host.as_state(store, self.network) for host in self.hosts)
        return World(hosts=hosts, store=store, network=self.network)

    def judge(self) -> None:
        """Check whether any host has a wrong belief about its lease."""
        self.blame(rules.of_world(self.as_world(self.ledger.state())))

    async def rest(self) -> None:
        """End every fault, but keep stopped daemons stopped, and let the world settle."""
        standing = {record.key: record.value for record in self.store.listing().records}
        if standing.get(CONFIG) != self.config.encode():
            self.configure(self.config)  # a write of the config causes a pass on every host
        for host in self.hosts:
            host.end_faults()
        await asyncio.sleep(SETTLES_S)

    async def settle(self) -> None:
        """Start every host, let the world settle, and check it."""
        for host in self.hosts:
            host.start_in(0.0)
        await asyncio.sleep(SETTLES_S)
        self.blame(rules.of_rest(self.as_world(self.ledger.state())))

    def leases(self) -> LeaseSet:
        """Return the leases in the store."""
        values = (entry.value for entry in self.ledger.state().entries)
        return LeaseSet.of(value for value in values if isinstance(value, Lease))

    def outcome(self) -> tuple[object, ...]:
        """Return the results, which a test compares with the results of other engines."""
        kernels = tuple(host.kernel.state for host in self.hosts)
        batches = tuple(host.kernel.batch_count for host in self.hosts)
        return self.store.listing(), kernels, batches, self.counts

    async def end(self) -> None:
        """End every daemon."""
        for host in self.hosts:
            await host.crash()


def _refuse_nothing(operation: Operation) -> bool:
    return False


def _has_seen_all(state: LeaseState, store: StoreState) -> bool:
    return state.is_watching and state.revision == store.revision
