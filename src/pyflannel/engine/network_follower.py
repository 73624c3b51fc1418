"""Follows which networks there are, where one daemon runs several (flannel 0.6's --watch-networks)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from weakref import WeakValueDictionary

from pyflannel.engine.list_watch import ListAndWatch, StoreLog
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Change, Listing, PutSeen
from pyflannel.ports import Clock, Store
from pyflannel.wire.lease_record import CONFIG

log = logging.getLogger(__name__)

RESERVED = frozenset({"subnets", "claims"})
"""No network can have these names: the default network's own keys stand there."""


class NetworkFollower:
    """Runs `run(name)` for each network that the store has, from its config's coming to its going.

    `allowed` limits them; empty means all. `objection` says why a network cannot run here, None if it can.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        draw: Callable[[int], int],
        store_log: StoreLog,
        allowed: Collection[str],
        objection: Callable[[str], Notice | None],
        run: Callable[[str], Awaitable[None]],
    ) -> None:
        self._allowed = allowed
        self._objection = objection
        self._run = run
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._refused: set[str] = set()
        self._tasks = asyncio.TaskGroup()
        self._loop = ListAndWatch(
            store=store,
            prefix="",
            clock=clock,
            draw=draw,
            store_log=store_log,
            doing="Couldn't list the networks",
            listed=self._listed,
            changed=self._changed,
        )

    async def run(self) -> None:
        """Follow until cancelled; all networks end with it."""
        async with self._tasks:
            await self._loop.run()

    def _listed(self, listing: Listing) -> None:
        present = {name for record in listing.records if (name := network_of(record.key)) is not None}
        for name in sorted(self._running.keys() - present):
            self._remove(name)
        for name in sorted(present):
            self._add(name)

    def _changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, PutSeen):
                if (name := network_of(change.record.key)) is not None:
                    self._add(name)
            elif (name := network_of(change.key)) is not None:
                self._remove(name)

    def _add(self, name: str) -> None:
        if name in self._running:
            return
        if self._allowed and name not in self._allowed:
            if name not in self._refused:
                log.info('Network "%s" is not allowed', name)
                self._refused.add(name)
            return
        if (why := self._objection(name)) is not None:
            if name not in self._refused:
                log.error('Network "%s" cannot run on this host: %s', name, why)
                self._refused.add(name)
            return
        turn = self._turns.setdefault(name, asyncio.Lock())
        self._running[name] = self._tasks.create_task(self._live(name, turn), name=f"network {name}")

    async def _live(self, name: str, turn: asyncio.Lock) -> None:
        """Run the network, when the one that had this name before it has ended."""
        async with turn:
            log.info("Network added: %s", name)
            await self._run(name)

    def _remove(self, name: str) -> None:
        task = self._running.pop(name, None)
        if task is not None:
            log.info("Network removed: %s; what carries its packets stays until flannelctl cleanup", name)
            task.cancel()


def network_of(key: str) -> str | None:
    """Return the network whose config is at this key; None for any other key."""
    name, _, rest = key.partition("/")
    return name if rest == CONFIG and name not in RESERVED else None
