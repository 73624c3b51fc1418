"""The model checker: equal states are one state, and all moves end."""

from msgspec.structs import replace

from lease_model.canonical import Canon
from lease_model.explorer import REAL
from lease_model.happening import apply
from lease_model.moves import Move
from lease_model.scenarios import host, scenario
from lease_model.settling import settle
from lease_model.world import World

TWO = scenario("two hosts", (host(1), host(2)))


def after(*moves: Move) -> World:
    world = TWO.world
    for move in moves:
        world = apply(world, move, REAL, TWO.circumstances).world
    return world


def acquire(place: int, drawn: int = 0) -> tuple[Move, ...]:
    return (
        Move(what="start", host=place),
        Move(what="request", host=place),
        Move(what="answer", host=place, drawn=drawn),
        Move(what="request", host=place),
        Move(what="answer", host=place),
    )


def test_symmetric_hosts_are_one_state() -> None:
    """Two worlds are one state if they differ only in which of two equal hosts has the lease."""
    canon = Canon()

    assert canon.key(after(*acquire(0))) == canon.key(after(*acquire(1)))


def test_the_names_of_subnets_have_no_effect() -> None:
    """The names have an effect only if the scenario distinguishes subnets."""
    first, second = after(*acquire(0)), after(*acquire(0, drawn=1))

    folding, exact = Canon(), Canon(folds_subnets=False)

    assert folding.key(first) == folding.key(second)
    assert exact.key(first) != exact.key(second)


def test_states_with_the_same_order_of_revisions_and_the_same_remaining_times_are_equal() -> None:
    """A store with more changes at a later time is the same state."""
    canon = Canon()
    store = replace(TWO.world.store, revision=77, compacted=0, config_revision=77)
    later = replace(TWO.world, now=5000.0, store=store)

    assert canon.key(later) == canon.key(TWO.world)


def test_a_difference_is_another_state() -> None:
    """The difference is an additional lease, a pending answer, or one fault fewer."""
    canon = Canon()
    worlds = [
        TWO.world,
        replace(TWO.world, faults=1),
        after(*acquire(0)[:2]),
        after(*acquire(0)[:4]),
        after(*acquire(0)),
        after(*acquire(0), *acquire(1)),
    ]

    assert len({canon.key(world) for world in worlds}) == len(worlds)


def test_a_world_without_faults_settles_and_is_checked() -> None:
    """Both hosts have a lease and know each other's lease."""
    rest = settle(after(*acquire(0)), REAL, TWO.circumstances)

    assert rest.violations == ()
    assert len(rest.world.store.entries) == 2
