"""Which programs stood at a hook when it was looked at last: the kernel announces none that goes."""

from collections.abc import Iterable

from pyflannel.kernel.bpf.hooks import Hooks
from pyflannel.kernel.network.link_index import link_index
from pyflannel.model.bpf_program import Direction

Place = tuple[str, Direction]
"""A hook: of which link, by name, and for which packets."""

_Look = tuple[int, tuple[int, ...]]
"""The link's index, and the programs; nobody's where there is no link."""

_NOTHING: _Look = (0, ())


class HookWatch:
    """Remembers hooks, and tells whether somebody else changed one since."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._seen: dict[Place, _Look] = {}

    async def remember(self, places: Iterable[Place]) -> None:
        """Watch these hooks, as they are now, and no others."""
        self._seen = {place: await self._look(place) for place in places}

    async def note(self, place: Place) -> None:
        """Take a change of our own for granted."""
        self._seen[place] = await self._look(place)

    async def has_changed(self) -> bool:
        """Return whether a hook differs from the last look; asked again, it does not."""
        before = self._seen
        await self.remember(before)
        return self._seen != before

    async def _look(self, place: Place) -> _Look:
        link, direction = place
        try:
            index = link_index(link)
            return index, await self._hooks.programs(index, direction)
        except OSError:
            return _NOTHING
