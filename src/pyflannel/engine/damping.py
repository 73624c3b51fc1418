"""Damping: when another agent keeps undoing a repair, the pauses between repairs grow."""

from collections.abc import Hashable

FIGHT_REPAIRS = 6
"""So many repairs of one object …"""

FIGHT_WINDOW_S = 10.0
"""… within this time are a fight."""

PAUSE_MAX_S = 30.0


class Damping:
    """Counts the repairs of each object, and says which must wait.

    The first pause is a second; it doubles while the fight goes on, and is forgotten after a window of peace.
    """

    def __init__(self) -> None:
        self._repairs: dict[Hashable, list[float]] = {}
        self._pauses: dict[Hashable, tuple[float, float]] = {}

    def repaired(self, key: Hashable, now: float) -> float | None:
        """Note a repair; return the pause that begins now, when this object is being fought over."""
        times = [at for at in self._repairs.get(key, ()) if now - at < FIGHT_WINDOW_S]
        self._repairs[key] = [*times, now]
        if len(times) + 1 < FIGHT_REPAIRS and key not in self._pauses:
            return None
        until, length = self._pauses.get(key, (0.0, 0.5))
        if key in self._pauses and now - until > FIGHT_WINDOW_S:
            del self._pauses[key]
            return None
        length = min(2 * length, PAUSE_MAX_S)
        self._pauses[key] = (now + length, length)
        return length

    def forget(self, now: float) -> None:
        """Forget the objects that were left in peace for a window: ten thousand may be repaired at once."""
        self._repairs = {
            key: times for key, times in self._repairs.items() if now - times[-1] < FIGHT_WINDOW_S
        }
        self._pauses = {key: pause for key, pause in self._pauses.items() if now - pause[0] <= FIGHT_WINDOW_S}

    @property
    def remembered(self) -> int:
        """How many objects it knows of."""
        return len(self._repairs.keys() | self._pauses.keys())

    def waits_until(self, key: Hashable, now: float) -> float | None:
        """Return until when this object must not be repaired, or None when it may be now."""
        until, _ = self._pauses.get(key, (0.0, 0.0))
        return until if until > now else None
