"""Follows the network config in the store: waits for a good one, and takes a better one when it comes."""

import logging
from collections.abc import Callable, Sequence

from pyflannel.engine.list_watch import ListAndWatch, StoreLog
from pyflannel.engine.pacing import LogLimit
from pyflannel.errors import ConfigError, StoreError, sentences
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Change, Listing, PutSeen, Record
from pyflannel.plan.backends import Backend, backend_of
from pyflannel.ports import Clock, Store
from pyflannel.wire.lease_record import CONFIG
from pyflannel.wire.network_config_json import parse_network_config

log = logging.getLogger(__name__)

_FAILED = "Couldn't fetch network config"
MISSING = "flannel config not found in etcd store. Did you create your config using etcdv3 API?"


def read_config(text: str | bytes) -> tuple[NetworkConfig, Backend]:
    """Return the config that the text gives, and its backend.

    Raises:
        ConfigError: the text admits no plan; the message names key and value.
    """
    config = parse_network_config(text)
    return config, backend_of(config)


def _how(error: ConfigError) -> str:
    """Return how a config that is there is set right."""
    return f"{error.hint} 'flannelctl config get' prints the config, 'flannelctl config set FILE' writes it."


class ConfigFollower:
    """Calls `found` with each good config, `waiting` with the reason while there is none, `away` on failure.

    With a config come its text, its backend, and the store's revision of it.
    A bad config never takes a good one away: the host runs on with what it has.
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
    ) -> None:
        self._found = found
        self._waiting = waiting
        self._logged: str | None = None
        self._bad = LogLimit(log, clock, "network configs that are refused")
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
            if isinstance(change, PutSeen) and change.record.key == CONFIG:
                self._read(change.record)
            elif not isinstance(change, PutSeen) and change.key == CONFIG:
                self._read(None)

    def _read(self, record: Record | None) -> None:
        try:
            if record is None:
                raise ConfigError(
                    MISSING,
                    hint='Write one: flannelctl config set \'{"Network":"10.100.0.0/16"}\'.',
                )
            text = record.value.decode(errors="replace")
            config, backend = read_config(text)
        except ConfigError as error:
            self._say(error)
            self._waiting(
                Notice(f"a good network config: {error}", error.hint if record is None else _how(error))
            )
            return
        self._logged = None
        self._found(text, config, backend, record.revision)

    def _say(self, error: ConfigError) -> None:
        """Say each problem once, until it is another one."""
        if self._logged != str(error):
            text = sentences(error.in_full, "Waiting for a good one.")
            self._bad.line(logging.ERROR, "%s: %s", _FAILED, text)
            self._logged = str(error)
