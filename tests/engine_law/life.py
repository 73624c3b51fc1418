"""One host with a history of events: its inputs, its targets, and the engine."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import assert_never

from msgspec.structs import replace

from doubles.planning import SUBNET_FILE, Planning
from doubles.simulated_time import SimulatedClock
from doubles.strategies import damaged
from engine_law.host import (
    FOREIGN,
    UNDERLAY_OBJECTS,
    FakeHost,
    Part,
    Trouble,
    is_at,
    underlay_created,
    underlay_removed,
)
from engine_law.leases import LeaseRecords
from engine_law.steps import (
    BRIDGES,
    CONFIGS,
    OWNERS,
    UNDERLAYS,
    AddStray,
    Allow,
    AllowReads,
    Announce,
    Answer,
    BreakChannel,
    Change,
    Configure,
    CreateUnderlay,
    Damage,
    FailReads,
    GoOn,
    Harm,
    History,
    ListLeases,
    LoseWatch,
    MoveUnderlay,
    OwnLease,
    Refuse,
    Reidentify,
    RemoveUnderlay,
    RenameLink,
    SetBridges,
    SetPeer,
    Silence,
    SpoilPeer,
    Stall,
    Step,
    SwitchFastPath,
    own_lease,
    peer_ipv6_subnet,
    peer_lease,
    peer_subnet,
)
from pyflannel.engine.batch_report import Journal
from pyflannel.engine.condition import Inputs
from pyflannel.engine.list_watch import REOPEN_MIN_S
from pyflannel.engine.pacing import RETRY_MIN_S, longest_pause_s
from pyflannel.engine.planner import Planner
from pyflannel.engine.reconciler import AUDIT_S, Reconciler
from pyflannel.engine.targets import LATE_S
from pyflannel.engine.world import PlanOptions
from pyflannel.model.forwarder import ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item, Key
from pyflannel.model.lease_protocol import Unreadable
from pyflannel.model.link import Link
from pyflannel.model.route import Neighbour, Route
from pyflannel.model.state import Add, Blocked, Changed, Operation, Remove, Replace, Replaced, State
from pyflannel.model.status import Event
from pyflannel.plan.backends import backend_of
from pyflannel.plan.diff import diff
from pyflannel.plan.ownership import ours
from pyflannel.plan.packet_filter import FilterOptions

OPTIONS = PlanOptions(
    subnet_file=SUBNET_FILE,
    packet_filter=FilterOptions(masquerades=True, accepts_forwarded=True, guard="strict"),
)

SOON_S = LATE_S + 4 * RETRY_MIN_S + 0.05
"""Maximum time in seconds until the host is correct after the announced end of the last trouble."""

_POLL_S = 0.02

_STRAYS: tuple[Item, ...] = (
    Route(destination=IPv4Network("10.100.99.0/24"), link="eth0", gateway=IPv4Address("192.168.50.9")),
    Neighbour(link="flannel.1", address=IPv4Address("10.100.99.0"), mac="0e:00:00:00:00:99"),
    ForwarderPeer(
        link="flannel0", subnet=IPv4Network("10.100.99.0/24"), address=IPv4Address("192.0.2.9"), port=8285
    ),
    Link(name="flannel.9", kind="dummy", mtu=1500),
)


class Witness(Journal):
    """A journal that keeps every repair.

    Attributes:
        repaired: the objects, in the order of their repairs.
    """

    def __init__(self, clock: SimulatedClock) -> None:
        super().__init__(clock)
        self.repaired: list[Item] = []

    def note(self, event: Event, operations: Sequence[Operation], cause: str = "") -> None:
        """Record the operations of a batch."""
        super().note(event, operations, cause)
        if event == "repaired":
            self.repaired += [operation.subject for operation in operations]


class Life:
    """One host.

    Attributes:
        wanted: the latest inputs with a plan; None before the first.
        repairs: the repairs in the log, one line each.
        witness: the engine's journal.
        clean_writes: operations of the engine while it reported the host as planned.
    """

    def __init__(self, history: History) -> None:
        self.history = history
        self.clock = SimulatedClock()
        self.host = FakeHost(self.clock)
        for part in self.host.parts:
            part.hears_itself = history.hears_itself
        self.repairs: list[str] = []
        self.clean_writes = 0
        self._has_fought = False
        self.wanted: Inputs | None = None
        self._changes = self._replacements = self._breaks = 0
        self._has_silent_changes = self._has_untold_ends = False
        self._replaced_at = -math.inf
        self._planned_for: Inputs | None = None
        self._fresh_plan = State.EMPTY
        self._leases = LeaseRecords()
        config = CONFIGS[history.config]
        inputs = Inputs(config=config, backend=backend_of(config), underlay=UNDERLAYS[0], owner=OWNERS[0])
        self.planning = Planning(inputs, OPTIONS)
        self.witness = Witness(self.clock)
        self.reconciler = Reconciler(targets=self.host.parts, clock=self.clock, journal=self.witness)
        for part in self.host.parts:
            part.writing = self._note_write
        if history.has_lease:
            self.change(OwnLease(0))

    # Steps.

    async def perform(self) -> None:
        """Perform the steps."""
        for step, pause_s in self.history.steps:
            self.take(step)
            if pause_s is not None:
                await asyncio.sleep(pause_s)

    def take(self, step: Step) -> None:
        """Perform one step."""
        parts = self.host.parts
        match step:
            case (
                Configure()
                | MoveUnderlay()
                | OwnLease()
                | Reidentify()
                | SetPeer()
                | SpoilPeer()
                | SetBridges()
                | SwitchFastPath()
            ):
                self.change(step)
            case Damage() | AddStray() | RenameLink():
                self.damage(step)
            case RemoveUnderlay():
                self._befall(*underlay_removed())
            case CreateUnderlay():
                self._befall(*underlay_created())
            case Refuse(part, nth, is_permanent, takes_effect):
                self._end_trouble(parts[part])
                plan = [*(self.planning.plan or State.EMPTY).of_kinds(parts[part].kinds)]
                key = None if nth is None or not plan else plan[nth % len(plan)].key
                parts[part].trouble = Trouble(key, is_permanent, takes_effect)
            case Allow(part):
                self._end_trouble(parts[part])
            case Silence(part):
                parts[part].may_look.clear()
            case Answer(part):
                parts[part].may_look.set()
            case Stall(part):
                parts[part].may_apply.clear()
            case GoOn(part):
                self._go_on(parts[part])
            case FailReads(part):
                parts[part].is_readable = False
            case AllowReads(part):
                parts[part].is_readable = True
            case BreakChannel(part):
                self._breaks += 1
                parts[part].break_channel()
            case Announce(part):
                parts[part].announce()
            case LoseWatch():
                self._leases.lose_watch()
            case ListLeases():
                self._list_leases()
            case _:
                assert_never(step)

    def change(self, change: Change) -> None:
        """Change the inputs."""
        inputs = self.planning.inputs
        match change:
            case Configure(number):
                config = CONFIGS[number]
                self._plan(config=config, backend=backend_of(config))
            case MoveUnderlay(number):
                self._plan(underlay=UNDERLAYS[number])
            case OwnLease(number):
                assert inputs.underlay is not None
                self._plan(lease=own_lease(number, inputs.owner, inputs.underlay))
            case Reidentify(number):
                self._plan(owner=OWNERS[number])
            case SetPeer(slot, variant):
                assert inputs.backend is not None
                if variant is None:
                    self._leases.delete(peer_subnet(slot), peer_ipv6_subnet(slot))
                else:
                    revision = self._leases.revision + 1
                    self._leases.write(peer_lease(slot, variant, inputs.backend.lease_type, revision))
                self._plan(leases=self._leases.known.by_subnet)
            case SpoilPeer(slot):
                key = peer_subnet(slot), self._leases.revision + 1, peer_ipv6_subnet(slot)
                self._leases.write(Unreadable(*key))
                self._plan(leases=self._leases.known.by_subnet)
            case SetBridges(number):
                self._plan(bridges=BRIDGES[number])
            case SwitchFastPath(is_on):
                self._plan(has_fast_path=is_on)

    def _plan(self, **changes: object) -> None:
        result = self.planning.take(**changes)
        if not isinstance(result, Blocked):
            self.wanted = replace(self.planning.inputs, leases=self._leases.expected)
        self._changes += isinstance(result, Changed)
        if isinstance(result, Replaced):
            self._replacements += 1
            self._replaced_at = self.clock.now()
        self.reconciler.follow(result)

    def _list_leases(self) -> None:
        self._leases.list()
        self._plan(leases=self._leases.known.by_subnet)

    def damage(self, step: Harm) -> None:
        """Damage the host, or do nothing if the object of the step does not exist."""
        self._has_silent_changes |= not step.is_announced
        foreign = {item.key for item in (*FOREIGN, *UNDERLAY_OBJECTS)}
        made = [item for item in self.host.kernel.state if item.key not in foreign]
        links = [item for item in made if isinstance(item, Link)]
        match step:
            case Damage(nth, how, is_announced) if made:
                self._befall(_harm(made[nth % len(made)], how), is_announced=is_announced)
            case AddStray(which, is_announced):
                self._befall(Add(_STRAYS[which]), is_announced=is_announced)
            case RenameLink(nth, is_announced) if links:
                name = links[nth % len(links)].name
                self.host.rename(name, f"{name}-old", is_announced=is_announced)
            case _:
                pass

    def _befall(self, *operations: Operation, is_announced: bool = True) -> None:
        self.host.befall(*operations, is_announced=is_announced)

    def _end_trouble(self, part: Part) -> None:
        """End the refusals of a target."""
        trouble, part.trouble = part.trouble, None
        if trouble is not None:
            self._has_silent_changes |= trouble.is_permanent
            self._tell_end(part)

    def _go_on(self, part: Part) -> None:
        """Let a target perform its batch. If the engine has stopped waiting for the target, the engine may
        retry.
        """
        if not part.may_apply.is_set():
            self._tell_end(part)
        part.may_apply.set()

    def _tell_end(self, part: Part) -> None:
        if self.history.is_announced:
            part.announce()
        # Announcements of a target because of a refused attempt do not count for the next attempt.
        self._has_untold_ends |= not self.history.is_announced or part.hears_itself

    def end_troubles(self, *, silent: Part | None = None) -> None:
        """End every trouble, except that of a target that remains silent."""
        if not self.host.kernel.state.by_key.get(UNDERLAY_OBJECTS[0].key):
            self._befall(*underlay_created())
        self._list_leases()
        for part in self.host.parts:
            self._end_trouble(part)
            self._go_on(part)
            if part is silent:
                part.may_look.clear()
            else:
                part.may_look.set()
                part.is_readable = True

    # The planned and the actual state.

    @property
    def plan(self) -> State:
        """The plan for the inputs, computed from the beginning."""
        if self._planned_for is not self.wanted:
            self._planned_for = self.wanted
            self._fresh_plan = State.EMPTY if self.wanted is None else _fresh_plan(self.wanted)
        return self._fresh_plan

    def differences(self, silent: Part | None = None) -> list[Operation]:
        """Return the differences of the host from the plan.

        The objects of a silent target are ignored, and so are objects that depend on one of them.
        """
        plan = self.plan
        if self.wanted is None:
            return []
        wrong = list(diff(plan, ours(self.host.kernel.state, plan)))
        if silent is None:
            return wrong
        excused = {one.subject.key for one in wrong if type(one.subject) in silent.kinds}
        if silent.seen_at <= self._replaced_at:
            excused |= {item.key for item in plan.of_kinds(silent.kinds)}
        has_host_part = any(kind.IS_HOST_PART for kind in silent.kinds)
        while True:
            more = {
                one.subject.key
                for one in wrong
                if one.subject.key not in excused
                and (_depends(one.subject, excused) or (isinstance(one.subject, HostFile) and has_host_part))
            }
            if not more:
                return [one for one in wrong if one.subject.key not in excused]
            excused |= more

    async def until(self, is_right: Callable[[], bool], seconds: float) -> bool:
        """Return whether a condition becomes true within this number of seconds."""
        end = self.clock.now() + seconds
        await asyncio.sleep(_POLL_S)
        while not is_right():
            if self.clock.now() >= end:
                return False
            await asyncio.sleep(_POLL_S if end - self.clock.now() < 1 else 5 * _POLL_S)
        return True

    @property
    def looks(self) -> list[int]:
        """Number of reads of each target."""
        return [part.looks for part in self.host.parts]

    @property
    def causes_of_looks(self) -> int:
        """Number of events that request a scan of all targets."""
        parts = self.host.parts
        # After a refusal, only a scan shows the operations that a change of the object requires.
        uncertain = 2 * self._changes if any(part.refusals for part in parts) else 0
        announced = sum(part.announcements + part.failures for part in parts)
        return announced + self._replacements + 2 * self._breaks + uncertain

    def _note_write(self) -> None:
        self.clean_writes += self.reconciler.is_clean

    @property
    def undamaged_repairs(self) -> list[str]:
        """The objects with more repairs than damages. Damage to a required object counts for this object and
        for the object that requires it.
        """
        repairs = Counter(item.key for item in self.witness.repaired)
        items = {item.key: item for item in self.witness.repaired}
        return [items[key].title for key, count in repairs.items() if count > self.host.damage_to(items[key])]

    def read_log_line(self, line: str) -> None:
        """Process a line of the log."""
        if line.startswith("Repaired "):
            self.repairs.append(line.removeprefix("Repaired "))
        self._has_fought |= line.startswith("Delayed the next repair")

    @property
    def patience_s(self) -> float:
        """Maximum time in seconds until the host must be correct."""
        longest_s = longest_pause_s(max(part.longest_batch_s for part in self.host.parts))
        pause_s = 0.0
        if any(part.failures for part in self.host.parts):
            pause_s = longest_pause_s(0)
        if self._has_untold_ends:
            pause_s = max(pause_s, min(longest_s, AUDIT_S))
        if self._breaks:
            pause_s += 2 * REOPEN_MIN_S  # the channel may fail once more
        if self._has_silent_changes:
            pause_s = max(pause_s, AUDIT_S)
        if self._has_fought:
            pause_s = max(pause_s, longest_s)
        return SOON_S + pause_s


def _fresh_plan(inputs: Inputs) -> State:
    """Return the plan for these inputs, computed from the beginning.

    Without an IPv6 address, a host with a plan continues with IPv4; a host that starts waits for the address.
    """
    planner = Planner(OPTIONS)
    if inputs.underlay is not None and inputs.underlay.ipv6_address is None:
        planner.update(replace(inputs, underlay=UNDERLAYS[0]))
    planner.update(inputs)
    assert planner.plan is not None
    return planner.plan


def _harm(item: Item, how: int) -> Operation:
    others = damaged(item)
    if how == 0 or not others:
        return Remove(item)
    return Replace(item, others[how % len(others)])


def _depends(item: Item, keys: Collection[Key]) -> bool:
    return any(is_at(key, required) for key in keys for required in item.requires)
