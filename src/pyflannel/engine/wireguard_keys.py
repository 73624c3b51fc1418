"""The WireGuard key of this host. The key file is followed while the backend needs it, and the key is rotated
without packet loss.

A rotation changes the key of the device first and the lease second. Between these two changes, packets to
peers wait in the device, and packets from peers arrive by the sessions of the old key. When a peer sees the
new key in the lease, it moves the subnet to that key and begins a handshake. In the reverse order, a fast
peer would drop the packets that this host still sends with the old key.
"""

import asyncio
import logging
from collections.abc import Callable

from msgspec.structs import replace

from pyflannel.engine.pacing import pause
from pyflannel.errors import NotReadyError, TargetError
from pyflannel.model.wireguard import UNKNOWN, WireguardFacts
from pyflannel.ports import Clock, WireguardSource

log = logging.getLogger(__name__)

LOOK_S = 10.0
"""Pause in seconds between two checks of the key file."""

TROUBLED_LOOK_S = 1.0
"""Pause in seconds between two checks while WireGuard cannot be used."""

STEP_S = 10.0
"""Deadline in seconds for each step of a rotation."""


class WireguardKeys:
    """Calls `found` with the key and implementation of WireGuard, and again when these change, while
    `is_wanted` is set.
    """

    def __init__(
        self, source: WireguardSource | None, clock: Clock, found: Callable[[WireguardFacts], None]
    ) -> None:
        self._source = source
        self._clock = clock
        self._found = found
        self._facts = UNKNOWN
        self._turn = asyncio.Lock()
        self._progress = asyncio.Event()
        self.is_wanted = asyncio.Event()
        self.is_usable = asyncio.Event()

    async def run(self) -> None:
        """Follow until cancelled."""
        await self.is_wanted.wait()
        if self._source is None:
            raise TargetError("this host has no WireGuard", hint="Choose another Backend.Type.")
        while True:
            async with self._turn:
                await self._look(self._source)
            pause_s = TROUBLED_LOOK_S if self._facts.problem else LOOK_S
            await self._clock.sleep(pause_s)

    async def _look(self, source: WireguardSource) -> None:
        try:
            facts = await source.observe()
        except TargetError as error:
            facts = replace(self._facts, problem=error.in_full)
        if facts.problem and facts.problem != self._facts.problem:
            log.error("WireGuard cannot be used on this host: %s", facts.problem)
        self._tell(facts)

    def _tell(self, facts: WireguardFacts) -> None:
        if facts == self._facts:
            return
        self._facts = facts
        if facts.problem:
            self.is_usable.clear()
        else:
            self.is_usable.set()
        self._found(facts)

    def note_progress(self) -> None:
        """Record that the host or the lease has changed, because a rotation may wait for this change."""
        self._progress.set()

    async def rotate(self, is_switched: Callable[[], bool], is_published: Callable[[str], bool]) -> str:
        """Replace the key by a new key, and return the public part of the new key.

        If a step fails, the old key remains in use.

        Args:
            is_switched: function that returns whether the device is as planned.
            is_published: function that returns whether the lease has this public key.

        Raises:
            NotReadyError: WireGuard is not in use, or a step took too long.
            TargetError: the key cannot be created or saved.
        """
        async with self._turn:
            before = self._facts
            if self._source is None or not self.is_wanted.is_set() or before.problem:
                raise NotReadyError(
                    "this host has no WireGuard key in use",
                    hint="Rotate the key on a host that runs the wireguard backend; see flannelctl status.",
                )
            new, is_done = await self._source.prepare(), False
            try:
                self._tell(replace(before, key=new))
                await self._until(is_switched, "the device did not take the new key")
                self._tell(replace(before, key=new, published=new))
                await self._until(lambda: is_published(new), "the store did not take the new key")
                await self._source.promote()
                is_done = True
            finally:
                if not is_done:
                    self._tell(before)
                    await self._source.discard()
        log.info("Rotated the WireGuard key public_key=%s", new)
        return new

    async def _until(self, is_so: Callable[[], bool], failure: str) -> None:
        end = self._clock.now() + STEP_S
        while not is_so():
            left_s = end - self._clock.now()
            if left_s <= 0:
                raise NotReadyError(
                    f"{failure} within {STEP_S:.0f} s, so the old key remains in use",
                    hint="Check flannelctl status, then try again.",
                )
            self._progress.clear()
            await pause(self._clock, left_s, until=self._progress)
