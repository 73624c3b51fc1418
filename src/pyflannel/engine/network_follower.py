"""Follows which networks there are, where one daemon runs several (flannel 0.6's --watch-networks)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection

from pyflannel.errors import StoreError
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Change, PutSeen
from pyflannel.ports import Clock, Store
from pyflannel.wire.lease_record import CONFIG

log = logging.getLogger(__name__)

RETRY_S = 1.0
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
        allowed: Collection[str],
        objection: Callable[[str], Notice | None],
        run: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._allowed = allowed
        self._objection = objection
        self._run = run
        self._running: dict[str, asyncio.Task[None]] = {}
        self._refused: set[str] = set()

    async def run(self) -> None:
        """Follow until cancelled; all networks end with it."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    await self._follow(tasks)
                except StoreError as error:
                    log.warning("Could not list the networks, trying again: %s", error)
                await self._clock.sleep(RETRY_S)

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        listing = await self._store.list("")
        present = {name for record in listing.records if (name := network_of(record.key)) is not None}
        for name in sorted(self._running.keys() - present):
            self._remove(name)
        for name in sorted(present):
            self._add(name, tasks)
        async with self._store.watch("", listing.revision) as watcher:
            while True:
                for change in (await watcher.next()).changes:
                    self._take(change, tasks)

    def _take(self, change: Change, tasks: asyncio.TaskGroup) -> None:
        if isinstance(change, PutSeen):
            if (name := network_of(change.record.key)) is not None:
                self._add(name, tasks)
        elif (name := network_of(change.key)) is not None:
            self._remove(name)

    def _add(self, name: str, tasks: asyncio.TaskGroup) -> None:
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
        log.info("Network added: %s", name)
        self._running[name] = tasks.create_task(self._network(name), name=f"network {name}")

    async def _network(self, name: str) -> None:
        await self._run(name)

    def _remove(self, name: str) -> None:
        task = self._running.pop(name, None)
        if task is not None:
            log.info("Network removed: %s; what carries its packets stays until flannelctl cleanup", name)
            task.cancel()


def network_of(key: str) -> str | None:
    """Return the network whose config stands at this key; None for any other key."""
    name, _, rest = key.partition("/")
    return name if rest == CONFIG and name not in RESERVED else None
