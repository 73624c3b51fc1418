"""Lets all outstanding events happen after the last fault."""

from msgspec import Struct
from msgspec.structs import replace

from lease_model import rules
from lease_model.happening import apply
from lease_model.moves import Circumstances, Move, moves
from lease_model.rules import Violation
from lease_model.world import Protocol, World

BOUND_S = 60.0
"""Maximum time in seconds after the last fault until every host has its lease, if possible."""

_MOVES_MAX = 3000
_NONE = Circumstances(faults=frozenset())
_TURNS = {
    turn: place
    for place, turn in enumerate(
        (
            "store back",
            "start",
            "config seen",
            "late request",
            "request",
            "answer",
            "watch",
            "lease expires",
            "claim expires",
            "wake",
            "time passes",
        )
    )
}


class Rest(Struct, frozen=True):
    """The settled state of a world, the violation of a rule before or in it, and the moves to it."""

    world: World
    violations: tuple[Violation, ...]
    moves: tuple[Move, ...]


def settle(world: World, protocol: Protocol, circumstances: Circumstances) -> Rest:
    """Let a world settle without further faults, and check it."""
    world = replace(world, faults=0, ticks=_MOVES_MAX)
    slow_s = max((-host.skew_s for host in world.hosts), default=0.0)  # a clock that was set back
    end = world.now + BOUND_S + max(slow_s, 0.0)
    way: list[Move] = []
    for _ in range(_MOVES_MAX):
        move = min(moves(world, _NONE), key=_turn, default=None)
        if move is None:
            break
        outcome = apply(world, move, protocol, circumstances)
        if outcome.world.now > end:
            break
        way.append(move)
        world = outcome.world
        if outcome.violations:
            return Rest(world, outcome.violations, tuple(way))
    else:
        return Rest(world, (Violation("the world settles", "it does not settle"),), tuple(way))
    return Rest(world, tuple(rules.of_rest(world)), tuple(way))


def _turn(move: Move) -> tuple[int, int]:
    return _TURNS[move.what], move.host
