"""Who is fought over, and what is forgotten."""

from pyflannel.engine.damping import FIGHT_REPAIRS, FIGHT_WINDOW_S, Damping


def test_objects_that_were_left_in_peace_are_forgotten() -> None:
    """Each of ten thousand routes may be repaired once in the daemon's life."""
    damping = Damping()
    for number in range(100):
        damping.repaired(number, 0.0)
    damping.repaired("late", 1.0)
    assert damping.remembered == 101

    damping.forget(FIGHT_WINDOW_S)

    assert damping.remembered == 1


def test_a_fight_is_remembered_until_a_window_after_its_pause() -> None:
    damping = Damping()
    pauses = [damping.repaired("route", 0.1 * number) for number in range(FIGHT_REPAIRS)]
    assert pauses[:-1] == [None] * (FIGHT_REPAIRS - 1)
    first = pauses[-1]
    assert first is not None
    until = damping.waits_until("route", 1.0)
    assert until is not None

    damping.forget(until + FIGHT_WINDOW_S)
    assert damping.repaired("route", until + FIGHT_WINDOW_S) == 2 * first

    damping.forget(until + first + 3 * FIGHT_WINDOW_S)
    assert damping.remembered == 0
