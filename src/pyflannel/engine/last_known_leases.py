"""Keeps the leases over a restart, for a host that starts while its store is away."""

import asyncio
import logging
from collections.abc import Callable

from pyflannel.engine.pacing import one_by_one
from pyflannel.errors import WireError
from pyflannel.model.lease import LastKnown, Lease
from pyflannel.ports import Clock, Memory
from pyflannel.wire.last_known_json import format_last_known, kept_lease, parse_last_known

log = logging.getLogger(__name__)

SAVE_PAUSE_S = 1.0
"""Shortest time between two writes, so that a thousand hosts joining cost a few."""

SAVED_PER_S = 1000
"""So many leases may be written for each second of patience: some 15 µs each are a hundredth of a core."""


class LastKnownLeases:
    """Saves what `current` gives, soon after each change; loads what was saved last.

    Soon: at once up to a thousand leases, and the later the more there are.
    """

    def __init__(self, *, memory: Memory, clock: Clock, current: Callable[[], LastKnown | None]) -> None:
        self._memory = memory
        self._clock = clock
        self._current = current
        self._changed = asyncio.Event()
        self._saved: LastKnown | None = None

    def changed(self) -> None:
        """Save soon."""
        self._changed.set()

    async def run(self) -> None:
        """Save until cancelled, and then what is not saved yet; nothing is written while nothing differs."""
        try:
            while True:
                await self._changed.wait()
                await self._clock.sleep(self._patience_s())
                self._changed.clear()
                if await self._save():
                    await self._clock.sleep(SAVE_PAUSE_S)
        finally:
            await self._save()

    def _patience_s(self) -> int:
        known = self._current()
        return 0 if known is None else len(known.leases) // SAVED_PER_S

    async def _save(self) -> bool:
        known = self._current()
        if known is None:
            return False
        if self._saved is not None and _says_the_same(known, self._saved):
            self._saved = known
            return False
        await self._memory.save(format_last_known(known))
        self._saved = known
        return True

    async def load(self) -> LastKnown | None:
        """Return what was saved last, or None. A file that cannot be read is logged, and counts as none."""
        text = await self._memory.load()
        if text is None:
            return None
        try:
            kept = parse_last_known(text)
        except WireError as error:
            log.warning("%s", error.in_full)
            return None
        leases = await one_by_one(kept_lease, kept.records)
        return LastKnown(
            config=kept.config, own=kept.own, leases=tuple(lease for lease in leases if lease is not None)
        )


def _says_the_same(known: LastKnown, other: LastKnown) -> bool:
    """Return whether both are kept as one text: a renewal makes no difference to it."""
    return (
        known.config == other.config
        and len(known.leases) == len(other.leases)
        and _is_kept_as(known.own, other.own)
        and all(map(_is_kept_as, known.leases, other.leases))
    )


def _is_kept_as(lease: Lease, other: Lease) -> bool:
    return lease is other or (
        lease.subnet == other.subnet
        and lease.ipv6_subnet == other.ipv6_subnet
        and lease.attributes == other.attributes
    )
