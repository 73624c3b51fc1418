"""The allow-list of keys, which is a file, or a list in the store that an operator signed.

A list has no effect if it is malformed, if no operator signed it, or if it is older than the current list.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from pyflannel.engine.list_watch import listen
from pyflannel.engine.pacing import LogLimit, pause
from pyflannel.errors import TargetError, WireError
from pyflannel.model.status import Notice
from pyflannel.ports import Changes, Clock, KeyFile, Memory
from pyflannel.wire.lease_signature import (
    KeptList,
    SignedList,
    format_kept_list,
    is_authentic_list,
    parse_allowed_keys,
    parse_kept_list,
    parse_signed_list,
)

log = logging.getLogger(__name__)

LOOK_S = 60.0
"""Maximum interval in seconds between two reads of the file, because some file systems do not announce
changes."""

SETTLE_S = 0.5
"""A file is read after it has not changed for this time in seconds, so that no half-written list takes
effect."""

SETTLE_MAX_S = 5.0


class AllowList(Protocol):
    """The keys whose leases this host accepts.

    Attributes:
        keys: the keys in the last valid list.
        counter: counter of the list, if an operator signed it.
        changed: set when `keys` has changed.
    """

    keys: frozenset[bytes]
    counter: int | None
    changed: asyncio.Event

    @property
    def trouble(self) -> Notice | None:
        """The reason why a later list is not used, and the remedy; None if the list is the latest."""

    async def run(self) -> None:
        """Follow the files until cancelled."""

    def reload(self) -> None:
        """Read the files soon, even without a change."""

    async def load(self) -> None:
        """Read the list that an earlier run saved."""

    async def see(self, data: bytes | None) -> None:
        """Record the value that the store contains; None if there is no value."""


class AllowedKeys:
    """The AllowList in a file of this host."""

    counter: int | None = None

    def __init__(self, file: KeyFile, clock: Clock, keys: frozenset[bytes]) -> None:
        """Start with the keys that the file contained when it was last read."""
        self._file = file
        self._clock = clock
        self._has_news = asyncio.Event()
        self.keys = keys
        self.trouble: Notice | None = None
        self.changed = asyncio.Event()

    def reload(self) -> None:
        """Read the file soon, even if it has not changed."""
        self._has_news.set()

    async def load(self) -> None:
        """Do nothing, because the file itself is kept."""

    async def see(self, data: bytes | None) -> None:
        """Do nothing, because a list in the store has no effect."""

    async def run(self) -> None:
        """Follow the file until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(listen(self._changes, self._clock, self.reload), name="file of keys")
            while True:
                await self._settled()
                await self._read()
                await pause(self._clock, LOOK_S, until=self._has_news)

    @asynccontextmanager
    async def _changes(self) -> AsyncIterator[Changes]:
        async with self._file.changes() as changes:
            self.reload()  # the file may have changed before the channel was open
            yield changes

    async def _settled(self) -> None:
        until = self._clock.now() + SETTLE_MAX_S
        while self._has_news.is_set() and self._clock.now() < until:
            self._has_news.clear()
            await pause(self._clock, SETTLE_S, until=self._has_news)
        self._has_news.clear()

    async def _read(self) -> None:
        try:
            keys = parse_allowed_keys(await self._file.read())
        except (TargetError, WireError) as error:
            self._keep(Notice(f"{self._file.name}: {error}", error.hint))
            return
        if self.trouble is not None:
            log.info("The file of allowed keys is usable again")
        self.trouble = None
        self._use(keys)

    def _keep(self, trouble: Notice) -> None:
        """Keep the last valid list, and log the reason once."""
        if trouble != self.trouble:
            log.error("Kept the last valid list of %d allowed keys: %s", len(self.keys), trouble)
        self.trouble = trouble

    def _use(self, keys: frozenset[bytes]) -> None:
        if keys == self.keys:
            return
        log.info(
            "Changed the list of allowed keys: added=%d removed=%d keys=%d",
            len(keys - self.keys),
            len(self.keys - keys),
            len(keys),
        )
        self.keys = keys
        self.changed.set()


_SIGN = "Sign the list with flannelctl allow-list sign, and publish it with flannelctl allow-list publish."
_SPACE = "Make the state directory writable for flanneld; the log contains the reason."
_WRITER = (
    "If no operator published the list, find the program that writes it, and restrict the writers of the "
    "store."
)


class SignedKeys:
    """The AllowList in the store, signed by an operator whose key is in a file of this host.

    The last verified list stays in force, regardless of the store and of the file of operators. A later list
    must have a higher counter than all lists of the current operators. Therefore the counter of a removed
    operator, whose key may be stolen, has no effect.
    """

    def __init__(self, operators: AllowedKeys, prefix: str, memory: Memory, clock: Clock) -> None:
        self._operators = operators
        self._prefix = prefix
        self._memory = memory
        self._refused = LogLimit(log, clock, "allow-lists in the store")
        self._seen: bytes | None = None
        self._kept: KeptList | None = None
        self._saved: KeptList | None = None
        self._trouble: Notice | None = Notice("flanneld has not read the store yet", _SIGN)
        self.keys: frozenset[bytes] = frozenset()
        self.counter: int | None = None
        self.changed = asyncio.Event()

    @property
    def trouble(self) -> Notice | None:
        """The reason why a later list, or the file of operators, is not used."""
        return self._trouble or self._operators.trouble

    def reload(self) -> None:
        """Read the file of operators soon."""
        self._operators.reload()

    async def run(self) -> None:
        """Follow the file of operators until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._operators.run(), name="operators")
            while True:
                await self._operators.changed.wait()
                self._operators.changed.clear()
                await self.see(self._seen)

    async def load(self) -> None:
        """Use the last verified list of an earlier run."""
        data = await self._memory.load()
        if data is None:
            return
        try:
            kept = parse_kept_list(data)
            keys = parse_allowed_keys(kept.text)
        except WireError as error:
            log.error("Could not read the last verified allow-list: %s", error.in_full)
            return
        self._kept, self._saved, self.keys = kept, kept, keys
        self.counter = kept.counters[kept.operator]
        self.changed.set()

    async def see(self, data: bytes | None) -> None:
        """Use the list in the store if it is a later list that an operator signed; None if the store has
        no list.
        """
        self._seen = data
        try:
            trouble = (
                None
                if await self._use(data)
                else Notice("could not save the list for the next start", _SPACE)
            )
        except WireError as error:
            text = str(error) if data is None else f"the list in the store is not used: {error}"
            trouble = Notice(text, error.hint)
            if trouble != self._trouble:
                line = "Kept the last verified list of %d allowed keys: %s"
                self._refused.line(logging.ERROR, line, len(self.keys), trouble)
        self._trouble = trouble

    async def _use(self, data: bytes | None) -> bool:
        """Use a list from now on; return whether it was saved to its file.

        Raises:
            WireError: the list is not used.
        """
        signed, kept = self._verified(data), self._kept
        if kept is not None and (signed.text, signed.operator, signed.counter) == (
            kept.text,
            kept.operator,
            kept.counters[kept.operator],
        ):
            return await self._keep(kept)
        counters = {} if kept is None else kept.counters
        latest = max((counters.get(key, 0) for key in self._operators.keys), default=0)
        if signed.counter <= latest:
            raise WireError(
                f"the counter {signed.counter} of the list is not higher than {latest}, the counter of "
                f"the last list",
                hint=_WRITER,
            )
        keys = parse_allowed_keys(signed.text)
        kept = KeptList(signed.text, signed.operator, {**counters, signed.operator: signed.counter})
        is_kept = await self._keep(kept)
        log.info(
            "Verified a new allow-list: counter=%d operator=%s added=%d removed=%d keys=%d",
            signed.counter,
            signed.operator.hex(),
            len(keys - self.keys),
            len(self.keys - keys),
            len(keys),
        )
        self._kept, self.counter = kept, signed.counter
        if keys != self.keys:
            self.keys = keys
            self.changed.set()
        return is_kept

    async def _keep(self, kept: KeptList) -> bool:
        """Save a list for a restart, unless it is already saved; return whether it is saved."""
        if kept != self._saved and await self._memory.save([format_kept_list(kept)]):
            self._saved = kept
        return kept == self._saved

    def _verified(self, data: bytes | None) -> SignedList:
        if data is None:
            why = (
                "contains no allow-list" if self._kept is None else "does not contain the allow-list any more"
            )
            raise WireError(f"the store {why}", hint=_SIGN)
        signed = parse_signed_list(data)
        if signed.operator not in self._operators.keys:
            raise WireError(
                f"the list is signed by the key {signed.operator.hex()}, which belongs to no operator",
                hint=_WRITER,
            )
        if not is_authentic_list(self._prefix, signed):
            raise WireError(
                "the signature of the list does not match its key and this prefix of the store", hint=_WRITER
            )
        return signed
