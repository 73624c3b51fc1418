"""The effects of each move: the real step processes the event, and the store performs the requests."""

import math

from msgspec import Struct
from msgspec.structs import replace

from lease_model import rules
from lease_model.moves import (
    FAULTS,
    HOUR_S,
    STEPS_S,
    Circumstances,
    Move,
    moved_address,
    next_deadline,
)
from lease_model.rules import Violation
from lease_model.store import (
    delete,
    put_lease,
    put_rubbish,
    revision_of_change,
)
from lease_model.world import HostState, Protocol, Request, StoreState, World
from pyflannel.model.lease import Claim, Lease
from pyflannel.model.lease_protocol import (
    Acquired,
    Check,
    Contested,
    DeleteClaim,
    DeleteLease,
    Event,
    Failed,
    Held,
    List,
    Listed,
    Ordered,
    PutClaim,
    PutLease,
    Reidentify,
    Renewed,
    Seen,
    SharedAddress,
    Started,
    Taken,
    Wake,
    Wanted,
    Watch,
    WatchLost,
    Woke,
)
from pyflannel.model.network_config import IpNetwork, NetworkConfig
from pyflannel.plan.lease.state import LeaseState, Listing


class Outcome(Struct, frozen=True, kw_only=True):
    """The result of a move. `choices` is the number of subnets that the host could have chosen."""

    world: World
    violations: tuple[Violation, ...] = ()
    choices: int = 1


def apply(world: World, move: Move, protocol: Protocol, circumstances: Circumstances) -> Outcome:
    """Return the world after a move."""
    if move.host >= 0:
        return _Happening(world, move, protocol).to_host()
    if move.subnet is not None:
        return Outcome(world=_to_key(world, move, move.subnet))
    match move.what:
        case "time passes" | "slow":
            return Outcome(world=_later(world, is_slow=move.what == "slow"))
        case "compaction":
            store = replace(world.store, compacted=world.store.revision)
            return Outcome(world=replace(world, store=store, faults=world.faults - 1))
        case "data lost" | "data lost, grown":
            return _emptied(world, protocol, has_grown=move.what == "data lost, grown")
        case "config":
            assert circumstances.other_network is not None
            return Outcome(world=_configured(world, circumstances.other_network))
        case _:
            raise AssertionError(f"no such move: {move}")


def _emptied(world: World, protocol: Protocol, *, has_grown: bool) -> Outcome:
    """Let the store lose its data. If the store has grown since, its revision exceeds all revisions that
    hosts know.

    The config is the first key that is written again. Every host learns that its watch was closed before any
    other event: a write in transit while the store loses its data is not modelled.
    """
    revision = world.store.revision + 1 if has_grown else 2
    store = StoreState(revision=revision, config_revision=revision)
    world = replace(world, store=store, faults=world.faults - 1)
    violations: list[Violation] = []
    for place, host in enumerate(world.hosts):
        if host.watch is not None:
            happening = _Happening(world, Move(what="watch cut", host=place), protocol)
            happening.cut()
            outcome = happening.outcome()
            world = outcome.world
            violations += outcome.violations
    return Outcome(world=world, violations=tuple(violations))


def _configured(world: World, network: NetworkConfig) -> World:
    """Write another network config. A complete watch sees that no lease changed."""
    revision = world.store.revision + 1
    hosts = tuple(
        replace(host, watch=revision) if host.watch == world.store.revision else host for host in world.hosts
    )
    store = replace(world.store, revision=revision, config_revision=revision)
    return replace(world, network=network, store=store, hosts=hosts, faults=world.faults - 1)


def _later(world: World, *, is_slow: bool) -> World:
    at = next_deadline(world)
    assert at is not None
    hosts = world.hosts
    if is_slow:
        hosts = tuple(replace(host, is_excused=True) for host in hosts)
    hosts = tuple(replace(host, orphan=None) if host.orphan is not None else host for host in hosts)
    return replace(
        world, now=at, hosts=hosts, ticks=max(0, world.ticks - 1), faults=world.faults - (1 if is_slow else 0)
    )


def _to_key(world: World, move: Move, subnet: IpNetwork) -> World:
    store = world.store
    is_claim = move.what == "claim expires"
    entry = next(
        entry
        for entry in store.entries
        if entry.value.subnet == subnet and isinstance(entry.value, Claim) == is_claim
    )
    match move.what:
        case "lease expires" | "claim expires":
            return _pruned(replace(world, store=delete(store, entry)))
        case "deleted manually":
            store = delete(store, entry)
        case "invalid value":
            store = put_rubbish(store, subnet, entry.writer)
        case "reserved manually" | "old renews":
            if not isinstance(entry.value, Lease):
                return replace(world, faults=world.faults - 1)
            ttl_s = None if move.what == "reserved manually" else 24 * HOUR_S
            store = put_lease(store, entry.value, ttl_s, world.now, entry.writer)
        case _:
            raise AssertionError(f"no such move: {move}")
    return replace(world, store=store, faults=world.faults - 1)


class _Happening:
    """One move of one host while it is computed."""

    def __init__(self, world: World, move: Move, protocol: Protocol) -> None:
        self.world = world
        self.move = move
        self.protocol = protocol
        self.host = world.hosts[move.host]
        self.store = world.store
        self.violations: list[Violation] = []
        self.choices = 1

    def to_host(self) -> Outcome:
        if self.move.what in FAULTS:
            self.world = replace(self.world, faults=self.world.faults - 1)
            self.host = replace(self.host, is_excused=True)
            self._fault()
        else:
            self._ordinary()
        return self.outcome()

    def outcome(self) -> Outcome:
        hosts = list(self.world.hosts)
        hosts[self.move.host] = self.host
        world = replace(self.world, hosts=tuple(hosts), store=self.store)
        return Outcome(world=_pruned(world), violations=tuple(self.violations), choices=self.choices)

    def cut(self) -> None:
        """Report to the host that its watch ended."""
        self.host = replace(self.host, watch=None)
        self._take(WatchLost("cut"))

    def _ordinary(self) -> None:
        host = self.host
        match self.move.what:
            case "start":
                self._start()
            case "request" if host.is_unreachable:
                self._answered(_failure(host.requests[0], "the store is unreachable"))
            case "request":
                self._answered(self._transact(host.requests[0]))
            case "late request":
                assert host.orphan is not None
                self._transact(host.orphan)
                self.host = replace(self.host, orphan=None)
            case "answer":
                self.host = replace(host, answers=host.answers[1:])
                self._take(host.answers[0])
            case "watch":
                self._see()
            case "wake":
                assert host.wake_at is not None
                self.host = replace(host, wake_at=None)
                self._take(Woke(), not_before=host.wake_at)
            case "store back":
                self.host = replace(host, is_unreachable=False)
            case "config seen":
                self._order(_with_config(host.wanted, self.world))
            case _:
                raise AssertionError(f"no such move: {self.move}")

    def _fault(self) -> None:
        host = self.host
        match self.move.what:
            case "crash":
                self._crash()
            case "lost answer":
                self._transact(host.requests[0])
                self._answered(_failure(host.requests[0], "the answer was lost"))
            case "failed request":
                self._answered(_failure(host.requests[0], "it never arrived"))
            case "watch cut":
                self.cut()
            case "store away":
                self.host = replace(host, is_unreachable=True)
            case "address":
                attributes = replace(host.wanted.attributes, public_ip=moved_address(host))
                self._order(replace(host.wanted, attributes=attributes))
            case "reinstall":
                attributes = replace(host.wanted.attributes, owner=f"{host.wanted.owner}+")
                self.host = replace(
                    host, wanted=replace(host.wanted, attributes=attributes), memory=None, is_excused=True
                )
            case "clock steps +25 h" | "clock steps -2 h":
                self.host = replace(host, skew_s=STEPS_S[self.move.what])
            case _:
                raise AssertionError(f"no such move: {self.move}")

    def _start(self) -> None:
        host = self.host
        memory = host.memory
        previous = memory.ipv4.subnet if memory is not None else None
        wanted = replace(_with_config(host.wanted, self.world), previous=previous)
        # Without a reachable store, a daemon starts with its last known state.
        held = Held(lease=memory) if memory is not None and host.is_unreachable else None
        state = LeaseState(wanted=wanted, held=held, phase=Listing())
        self.host = replace(host, wanted=wanted, state=state)
        self._take(Started())

    def _crash(self) -> None:
        host = self.host
        head = host.requests[0] if host.requests else None
        self.host = HostState(
            name=host.name,
            wanted=host.wanted,
            memory=host.memory,
            orphan=None if isinstance(head, List | Check) else head,
            is_unreachable=host.is_unreachable,
            skew_s=host.skew_s,
            is_excused=True,
            is_warned=host.is_warned,
        )

    def _order(self, wanted: Wanted) -> None:
        self.host = replace(self.host, wanted=wanted)
        self._take(Ordered(wanted))

    def _see(self) -> None:
        host = self.host
        assert host.watch is not None
        if host.is_unreachable:
            self.host = replace(host, watch=None)
            self._take(WatchLost("the store is unreachable"))
            return
        if not self.store.compacted <= host.watch <= self.store.revision:
            self.host = replace(host, watch=None)
            self._take(WatchLost("compacted", is_compacted=True))
            return
        changes = tuple(change for change in self.store.history if revision_of_change(change) > host.watch)
        self.host = replace(host, watch=self.store.revision, is_open=True)
        self._take(Seen(changes, self.store.revision))

    def _answered(self, answer: Event) -> None:
        host = self.host
        self.host = replace(host, requests=host.requests[1:], answers=(*host.answers, answer))

    def _transact(self, request: Request) -> Event:
        before = self.store
        self.store, answer = self.protocol.transact(before, request, self.world.now, self.host.name)
        if self.store is not before:
            self.violations += rules.of_write(before, self.store, request, self.host, self.world)
            if isinstance(request, PutClaim):
                self._excuse(request.claim.subnet)
        return answer

    def _excuse(self, subnet: IpNetwork) -> None:
        """Record that a claim was written. Afterwards, the owner of the subnet must answer unless a fault
        prevents the answer.
        """
        self.world = replace(
            self.world,
            hosts=tuple(
                replace(host, is_excused=host.state is None or host.is_unreachable)
                if host.subnet == subnet and host is not self.world.hosts[self.move.host]
                else host
                for host in self.world.hosts
            ),
        )

    def _take(self, event: Event, not_before: float = -math.inf) -> None:
        """Let the protocol handle an event, and perform its decisions."""
        before = self.host
        assert before.state is not None
        leases = self.protocol.known_leases(before.leases, event, before.state)
        now = max(self.world.now + before.skew_s, not_before)  # the sum is rounded
        state, actions = self.protocol.step(before.state, event, now, self._draw)
        host = replace(before, state=state, wanted=state.wanted, leases=leases)
        for action in actions:
            match action:
                case List() | Check() | PutLease() | DeleteLease() | PutClaim() | DeleteClaim():
                    host = replace(host, requests=(*host.requests, action))
                case Watch(after):
                    host = replace(host, watch=after, is_open=False)
                case Wake(at):
                    host = replace(host, wake_at=at)
                case Reidentify():
                    host = replace(host, answers=(*host.answers, Ordered(_restart(host))))
                case Acquired(held) | Renewed(held):
                    host = replace(host, memory=held.lease)
                case SharedAddress() | Contested() | Taken():
                    host = replace(host, is_warned=True)
                case _:
                    pass
        self.host = host
        self.violations += rules.of_step(before, event, host, actions, self.store)
        self.violations += rules.of_reports(host, actions, self.world)

    def _draw(self, n: int) -> int:
        """Choose a subnet as the move requires. Pauses are as short as possible."""
        if n > _MOST_SUBNETS:
            return 0
        self.choices = n
        return min(self.move.drawn, n - 1)


_MOST_SUBNETS = 8
"""Maximum number of subnets. The protocol uses the same function with larger numbers to choose a pause."""


def _with_config(wanted: Wanted, world: World) -> Wanted:
    return replace(wanted, network=world.network, config_revision=world.store.config_revision)


def _failure(request: Request, cause: str) -> Failed:
    return Failed(None if isinstance(request, List) else request, cause)


def _restart(host: HostState) -> Wanted:
    return replace(host.wanted, attributes=replace(host.wanted.attributes, owner=f"{host.wanted.owner}'"))


def _pruned(world: World) -> World:
    """Remove the history that no host will request any more."""
    oldest = world.store.revision
    for host in world.hosts:
        if host.state is None:
            continue
        if host.watch is not None:
            oldest = min(oldest, host.watch)
        elif host.state.revision:
            oldest = min(oldest, host.state.revision)  # a later watch may start at this revision
        for answer in host.answers:
            if isinstance(answer, Listed):
                oldest = min(oldest, answer.revision)
    history = world.store.history
    if not history or revision_of_change(history[0]) > oldest:
        return world
    kept = tuple(change for change in history if revision_of_change(change) > oldest)
    return replace(world, store=replace(world.store, history=kept))
