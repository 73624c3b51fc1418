"""Simulated weeks of many hosts with random faults: one random path through the explorer's moves."""

import heapq
from collections import Counter
from random import Random

from msgspec import Struct
from msgspec.structs import replace

from lease_model import rules
from lease_model.explorer import REAL
from lease_model.happening import apply
from lease_model.moves import HOUR_S, Circumstances, Move, can_see
from lease_model.rules import Violation
from lease_model.world import HostState, Protocol, World
from pyflannel.model.lease import Claim
from pyflannel.model.lease_protocol import Check, Event, List
from pyflannel.plan.lease.state import Draw, LeaseState, Step

_LATENCY_S = 3.0
"""Maximum time in seconds of a request, a response or a watch."""

_AWAY_S = 2 * HOUR_S
_CLAIM_ENDS = "claim expires"
_CIRCUMSTANCES = Circumstances(faults=frozenset())
_ALWAYS = 1_000_000_000


class Broken(Struct, frozen=True):
    """A violation of a rule in a simulation, with its time and its move."""

    at: float
    move: Move
    violation: Violation


class Simulation:
    """Hosts in simulated time, one event after the other. Equal seeds give equal results.

    `broken` is the list of violations, and `counts` the number of moves by kind.
    """

    def __init__(self, world: World, seed: int, protocol: Protocol = REAL) -> None:
        self.world = replace(world, faults=_ALWAYS, ticks=_ALWAYS)
        self.broken: list[Broken] = []
        self.counts: Counter[str] = Counter()
        self._random = Random(seed)
        self._protocol = replace(protocol, step=self._step)
        self._step_of = protocol.step
        self._events: list[tuple[float, int, Move]] = []
        self._serial = 0
        self._under_way: set[tuple[str, int]] = set()
        self._away: dict[int, int] = {}
        self._next: dict[int, str] = {}  # the result of a host's next request
        for place in range(len(world.hosts)):
            self._later(Move(what="start", host=place), self._random.random() * 60)

    def run(self, seconds: float, *, faults: int) -> None:
        """Simulate this time, with this number of faults at random times."""
        begin, end = self.world.now, self.world.now + seconds
        for _ in range(faults):
            self._later(Move(what="fault"), self._random.random() * seconds)
        while self._events and self._events[0][0] <= end and not self.broken:
            at, _, move = heapq.heappop(self._events)
            if at > self.world.now:
                self.world = replace(self.world, now=at)
            if move.what == "fault":
                self._fault()
            else:
                self._happen(move)
        self.world = replace(self.world, now=max(begin, end))

    def _step(self, state: LeaseState, event: Event, now: float, draw: Draw) -> Step:
        """Perform the real step. The step may choose among all subnets."""
        return self._step_of(state, event, now, self._random.randrange)

    def _later(self, move: Move, delay_s: float) -> None:
        self._serial += 1
        heapq.heappush(self._events, (self.world.now + delay_s, self._serial, move))

    def _happen(self, move: Move) -> None:
        self._under_way.discard((move.what, move.host))
        if not self._is_possible(move):
            return
        before = self.world.store
        if move.what == "request" and not self.world.hosts[move.host].is_unreachable:
            move = replace(move, what=self._next.pop(move.host, move.what))
            if move.what == "lost answer" and isinstance(
                self.world.hosts[move.host].requests[0], List | Check
            ):
                move = replace(move, what="failed request")
        outcome = apply(self.world, move, self._protocol, _CIRCUMSTANCES)
        self.counts[move.what] += 1
        self.broken += [Broken(self.world.now, move, violation) for violation in outcome.violations]
        self.world = outcome.world
        if move.host >= 0:
            self._expect(move.host)
        if self.world.store.revision != before.revision:
            self._expect_changes()

    def _is_possible(self, move: Move) -> bool:
        """Return whether a planned event is still possible after the other events of the host."""
        if move.host < 0:
            return self._is_at_key(move)
        host = self.world.hosts[move.host]
        match move.what:
            case "start":
                return host.state is None
            case "store back":
                self._away[move.host] = self._away.get(move.host, 0) - 1
                return host.is_unreachable and self._away[move.host] <= 0
            case "late request":
                return host.orphan is not None
            case "request" | "lost answer" | "failed request":
                return host.state is not None and bool(host.requests)
            case "answer":
                return host.state is not None and bool(host.answers)
            case "watch":
                return host.state is not None and can_see(self.world, host)
            case "wake":
                return host.wake_at is not None and host.wake_at - host.skew_s <= self.world.now
            case "watch cut":
                return host.state is not None and host.watch is not None
            case _:
                return host.state is not None

    def _is_at_key(self, move: Move) -> bool:
        """Return whether the entry of a planned expiry or deletion exists and is due."""
        for entry in self.world.store.entries:
            if entry.value.subnet == move.subnet and isinstance(entry.value, Claim) == (
                move.what == _CLAIM_ENDS
            ):
                is_due = entry.expires_at is not None and entry.expires_at <= self.world.now
                return is_due or move.what == "deleted manually"
        return False

    def _expect(self, place: int) -> None:
        """Schedule the events for which a host waits."""
        host = self.world.hosts[place]
        if host.orphan is not None:
            self._once(Move(what="late request", host=place), self._latency())
        if host.state is None:
            return
        if host.requests:
            self._once(Move(what="request", host=place), self._latency())
        if host.answers:
            self._once(Move(what="answer", host=place), self._latency())
        if can_see(self.world, host):
            self._once(Move(what="watch", host=place), self._latency())
        if host.wake_at is not None:
            # Without its store, a host retries every few seconds, for hours. Most of these attempts are
            # skipped.
            least_s = _AWAY_S if host.is_unreachable else 0.0
            self._later(Move(what="wake", host=place), max(least_s, _until(host, self.world.now)))

    def _expect_changes(self) -> None:
        for place, host in enumerate(self.world.hosts):
            if host.state is not None and can_see(self.world, host):
                self._once(Move(what="watch", host=place), self._latency())
        newest = self.world.store.entries[-1] if self.world.store.entries else None
        if newest is not None and newest.expires_at is not None:
            what = _CLAIM_ENDS if isinstance(newest.value, Claim) else "lease expires"
            delay_s = newest.expires_at - self.world.now + 0.001
            self._later(Move(what=what, subnet=newest.value.subnet), delay_s)

    def _once(self, move: Move, delay_s: float) -> None:
        if (move.what, move.host) not in self._under_way:
            self._under_way.add((move.what, move.host))
            self._later(move, delay_s)

    def _latency(self) -> float:
        return self._random.random() ** 3 * _LATENCY_S

    # Faults.

    def _fault(self) -> None:
        place = self._random.randrange(len(self.world.hosts))
        match self._random.choice(_FAULTS):
            case "compaction":
                store = replace(self.world.store, compacted=self.world.store.revision)
                self.world = replace(self.world, store=store)
                self._expect_changes()
            case "deleted manually":
                leases = [e for e in self.world.store.entries if not isinstance(e.value, Claim)]
                if leases:
                    subnet = self._random.choice(leases).value.subnet
                    self._happen(Move(what="deleted manually", subnet=subnet))
            case "store away":
                self._go_away(place, self._duration())
            case "store away from all":
                duration_s = self._duration()
                for everyone in range(len(self.world.hosts)):
                    self._go_away(everyone, duration_s)
            case "crash":
                self._happen(Move(what="crash", host=place))
                self._once(Move(what="start", host=place), self._duration())
            case "lost answer" | "failed request" as what:
                self._next[place] = what
            case fault:
                self._happen(Move(what=fault, host=place))
        self.counts["faults"] += 1

    def _go_away(self, place: int, duration_s: float) -> None:
        if self.world.hosts[place].state is None:
            return
        self._away[place] = self._away.get(place, 0) + 1
        self._later(Move(what="store back", host=place), duration_s)
        if not self.world.hosts[place].is_unreachable:
            self._happen(Move(what="store away", host=place))

    def _duration(self) -> float:
        """Return a random duration: usually seconds or minutes, sometimes longer than the TTL of a lease."""
        return float(self._random.choice((1.0, 30.0, 600.0, HOUR_S, 30 * HOUR_S))) * (
            0.5 + self._random.random()
        )

    # The end.

    def settle(self) -> None:
        """End every failure, start every host, and let the world settle."""
        self._away.clear()
        for place, host in enumerate(self.world.hosts):
            if host.is_unreachable:
                self.world = _with(self.world, place, replace(host, is_unreachable=False))
            if host.state is None:
                self._later(Move(what="start", host=place), 0.0)
            self._expect(place)
        self.run(600, faults=0)
        self.broken += [Broken(self.world.now, Move(what="rest"), v) for v in rules.of_rest(self.world)]


_FAULTS = (
    "crash",
    "crash",
    "lost answer",
    "failed request",
    "watch cut",
    "compaction",
    "store away",
    "store away from all",
    "deleted manually",
    "clock steps +25 h",
)


def _with(world: World, place: int, host: HostState) -> World:
    hosts = list(world.hosts)
    hosts[place] = host
    return replace(world, hosts=tuple(hosts))


def _until(host: HostState, now: float) -> float:
    assert host.wake_at is not None
    return max(0.0, host.wake_at - host.skew_s - now) + 0.001
