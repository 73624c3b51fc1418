"""Tasks that follow the store: the network config, and the list of networks if one daemon runs several."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from weakref import WeakValueDictionary

from msgspec.structs import replace

from pyflannel.engine.list_watch import ListAndWatch, StoreLog
from pyflannel.engine.pacing import LogLimit
from pyflannel.errors import ConfigError, StoreError, sentences
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Change, Listing, PutSeen, Record
from pyflannel.plan.backends import Backend, backend_of
from pyflannel.ports import Clock, Store
from pyflannel.wire.lease_record import CONFIG, RESERVED
from pyflannel.wire.network_config_json import parse_network_config

log = logging.getLogger(__name__)

_FAILED = "Couldn't fetch network config"
MISSING = "flannel config not found in etcd store. Did you create your config using etcdv3 API?"


def read_config(text: str | bytes, *, is_assigned: bool) -> tuple[NetworkConfig, Backend]:
    """Parse a text, and return the network config and its backend. `is_assigned`: another program assigns the
    subnets.

    Raises:
        ConfigError: the config is invalid; the message names the key and the value.
    """
    config = parse_network_config(text, is_assigned=is_assigned)
    backend = backend_of(config)
    if config.enable_ipv6 and 6 not in backend.families:
        config = replace(config, enable_ipv6=False)  # the backend's config_warnings already report this
    return config, backend


def _remedy(error: ConfigError, *, is_file: bool) -> str:
    """Return the remedy for an invalid config in the store."""
    if is_file:
        return f"{error.hint} Correct net-conf.json. In a cluster, edit its ConfigMap."
    return f"{error.hint} 'flannelctl config get' prints the config, 'flannelctl config set FILE' writes it."


class ConfigFollower:
    """Calls `found` with each valid config, `waiting` with the reason if there is no valid config, and `away`
    if the store fails.

    The arguments of `found` are the config's text, the config, its backend, and its revision in the store. An
    invalid config does not replace a valid config, so the host keeps running with the last valid config. With
    `is_assigned`, Kubernetes assigns the subnets, and the config is a file.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        draw: Callable[[int], int],
        store_log: StoreLog,
        found: Callable[[str, NetworkConfig, Backend, int], None],
        waiting: Callable[[Notice], None],
        away: Callable[[StoreError], None],
        is_assigned: bool = False,
    ) -> None:
        self._is_assigned = is_assigned
        self._found = found
        self._waiting = waiting
        self._logged: str | None = None
        self._bad = LogLimit(log, clock, "invalid network configs")
        self._loop = ListAndWatch(
            store=store,
            prefix=CONFIG,
            clock=clock,
            draw=draw,
            store_log=store_log,
            doing=_FAILED,
            listed=self._listed,
            changed=self._changed,
            failed=away,
        )

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._loop.run()

    def _listed(self, listing: Listing) -> None:
        self._read(next((record for record in listing.records if record.key == CONFIG), None))

    def _changed(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.key == CONFIG:
                self._read(change.record if isinstance(change, PutSeen) else None)

    def _read(self, record: Record | None) -> None:
        try:
            if record is None:
                raise ConfigError(
                    MISSING,
                    hint='Write one: flannelctl config set \'{"Network":"10.100.0.0/16"}\'.',
                )
            text = record.value.decode(errors="replace")
            config, backend = read_config(text, is_assigned=self._is_assigned)
        except ConfigError as error:
            self._log(error)
            remedy = error.hint if record is None else _remedy(error, is_file=self._is_assigned)
            self._waiting(Notice(f"a valid network config: {error}", remedy))
            return
        self._logged = None
        self._found(text, config, backend, record.revision)

    def _log(self, error: ConfigError) -> None:
        """Log a problem, unless it equals the last logged problem."""
        if self._logged != str(error):
            text = sentences(error.in_full, "Waiting for a valid config.")
            self._bad.line(logging.ERROR, "%s: %s", _FAILED, text)
            self._logged = str(error)


class NetworkFollower:
    """Runs `run(name)` for each network in the store, while its config exists.

    `allowed` limits the networks; empty means all. `objection` returns the reason why a network cannot run on
    this host; None if it can.
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
        """Follow until cancelled; then all networks are stopped."""
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
            if (name := network_of(change.key)) is None:
                continue
            if isinstance(change, PutSeen):
                self._add(name)
            else:
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
        """Run the network after the previous network with this name has stopped."""
        async with turn:
            log.info("Network added: %s", name)
            await self._run(name)

    def _remove(self, name: str) -> None:
        task = self._running.pop(name, None)
        if task is not None:
            log.info("Network removed: %s; its data path remains until flannelctl cleanup", name)
            task.cancel()


def network_of(key: str) -> str | None:
    """Return the name of the network whose config is at this key; None for any other key."""
    name, _, rest = key.partition("/")
    return name if rest == CONFIG and name not in RESERVED else None
