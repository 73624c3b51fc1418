"""Visits every reachable world of a scenario once, nearest first."""

from array import array
from collections import deque

from msgspec import Struct
from msgspec.structs import replace

from lease_model import rules, store
from lease_model.canonical import Canon
from lease_model.happening import apply
from lease_model.moves import Circumstances, Move, moves
from lease_model.rules import Violation
from lease_model.settling import settle
from lease_model.world import Protocol, World

REAL = Protocol(transact=store.transact)
"""The real protocol on a correct store."""


class Scenario(Struct, frozen=True, kw_only=True):
    """The start of a check and the possible events.

    Attributes:
        folds_subnets: worlds that differ only in the numbers of subnets are one state. `folds_subnets` must
            be False if order or overlap of subnets has an effect.
    """

    name: str
    world: World
    circumstances: Circumstances
    folds_subnets: bool = True

    @property
    def bounds(self) -> str:
        """The bounds, in one line."""
        world, network = self.world, self.world.network
        assert network.subnet_min is not None
        assert network.subnet_max is not None
        size = 1 << (32 - network.subnet_length)
        subnets = (int(network.subnet_max) - int(network.subnet_min)) // size + 1
        faults = ", ".join(sorted(self.circumstances.faults)) or "none"
        return (
            f"{len(world.hosts)} hosts, {subnets} subnets, {len(world.store.entries)} leases at first,"
            f" time moves {world.ticks} times, {world.faults} faults of: {faults}"
        )


class Counterexample(Struct, frozen=True):
    """The violation of a rule: the moves from the scenario's first world. The last move breaks the rule.

    If `at_rest`, the rule is broken after the world has settled.
    """

    scenario: Scenario
    moves: tuple[Move, ...]
    violation: Violation
    at_rest: bool


class Exploration(Struct, frozen=True, kw_only=True):
    """The visited states, and the first counterexample, which is one of the shortest."""

    scenario: Scenario
    states: int
    transitions: int
    settled: int
    is_complete: bool
    counterexample: Counterexample | None = None

    @property
    def text(self) -> str:
        """The counts and bounds, in one line."""
        extent = "all" if self.is_complete else "the nearest"
        return (
            f"{self.scenario.name}: {extent} {self.states:,} states, {self.transitions:,} transitions,"
            f" {self.settled:,} followed to rest; {self.scenario.bounds}"
        )


def explore(
    scenario: Scenario, protocol: Protocol = REAL, *, most_states: int = 1_000_000, settle_every: int = 20
) -> Exploration:
    """Visit all reachable worlds of `scenario`, but at most `most_states`.

    Each `settle_every`th of this number of states is followed until it settles.
    """
    return _Search(scenario, protocol, most_states, settle_every).run()


class _Search:
    """One exploration. The origin of a state is stored as two numbers, to print the path to it."""

    def __init__(self, scenario: Scenario, protocol: Protocol, most_states: int, settle_every: int) -> None:
        self.scenario = scenario
        self.protocol = protocol
        self.most_states = most_states
        self.settle_every = settle_every
        self.canon = Canon(folds_subnets=scenario.folds_subnets)
        self.visited: set[int] = set()
        self.parents = array("l")
        self.ways: list[Move] = []
        self.way_of: dict[Move, int] = {}
        self.came_by = array("l")
        self.transitions = 0
        self.settled = 0
        self.found: Counterexample | None = None

    def run(self) -> Exploration:
        frontier: deque[tuple[int, World]] = deque()
        self._visit(self.scenario.world, -1, Move(what="begin"), frontier)
        while frontier and self.found is None and len(self.parents) < self.most_states:
            place, world = frontier.popleft()
            for move in moves(world, self.scenario.circumstances):
                self._follow(place, world, move, frontier)
                if self.found is not None:
                    break
        return Exploration(
            scenario=self.scenario,
            states=len(self.parents),
            transitions=self.transitions,
            settled=self.settled,
            is_complete=not frontier,
            counterexample=self.found,
        )

    def _follow(self, place: int, world: World, move: Move, frontier: deque[tuple[int, World]]) -> None:
        outcome = apply(world, move, self.protocol, self.scenario.circumstances)
        self._reach(place, move, outcome.world, outcome.violations, frontier)
        for drawn in range(1, outcome.choices):
            other = replace(move, drawn=drawn)
            outcome = apply(world, other, self.protocol, self.scenario.circumstances)
            self._reach(place, other, outcome.world, outcome.violations, frontier)

    def _reach(
        self,
        place: int,
        move: Move,
        world: World,
        violations: tuple[Violation, ...],
        frontier: deque[tuple[int, World]],
    ) -> None:
        self.transitions += 1
        for violation in violations:
            self._report(place, move, violation, at_rest=False)
        self._visit(world, place, move, frontier)

    def _visit(self, world: World, parent: int, move: Move, frontier: deque[tuple[int, World]]) -> None:
        key = self.canon.key(world)
        if key in self.visited:
            return
        self.visited.add(key)
        place = len(self.parents)
        self.parents.append(parent)
        self.came_by.append(self._way(move))
        for violation in rules.of_world(world):
            self._report(parent, move, violation, at_rest=False)
        if place % self.settle_every == 0 and self.found is None:
            self.settled += 1
            for violation in settle(world, self.protocol, self.scenario.circumstances).violations:
                self._report(parent, move, violation, at_rest=True)
        frontier.append((place, world))

    def _way(self, move: Move) -> int:
        if move not in self.way_of:
            self.way_of[move] = len(self.ways)
            self.ways.append(move)
        return self.way_of[move]

    def _report(self, place: int, move: Move, violation: Violation, *, at_rest: bool) -> None:
        if self.found is not None:
            return
        way = [move] if place >= 0 else []
        while place > 0:
            way.append(self.ways[self.came_by[place]])
            place = self.parents[place]
        self.found = Counterexample(self.scenario, tuple(reversed(way)), violation, at_rest)
