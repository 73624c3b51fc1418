"""The ports: what the engine needs from outside, as protocols; each has at least two implementations."""

from collections.abc import AsyncIterator, Iterable, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Protocol

from pyflannel.model.fast_path import Feature
from pyflannel.model.forwarder import Stranger
from pyflannel.model.host import Bridge, Interfaces
from pyflannel.model.state import Operation, Refusal, State
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Changes, Conflict, Delete, Listing, Put, Record, Written


class Clock(Protocol):
    """Two clocks: one that never steps, for deadlines, and one that people read."""

    def now(self) -> float:
        """Return seconds of a clock that never steps and counts while the host sleeps (CLOCK_BOOTTIME)."""

    def utc(self) -> float:
        """Return seconds since the epoch; for texts only, as it may step."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, measured by `now`."""


class Memory(Protocol):
    """One file in the state directory, or whatever stands in for it."""

    async def load(self) -> bytes | None:
        """Return what was saved last, or None; a file that cannot be read counts as none, and is said."""

    async def save(self, parts: Iterable[bytes]) -> None:
        """Replace it by these parts, each asked for in its turn.

        Atomically; a failure is said, and the old text stays.
        """


class FileWatch(Protocol):
    """Something that says when a file may have changed, whoever wrote it."""

    def changes(self, path: Path) -> AsyncIterator[None]:
        """Yield after each burst of writes to `path`, also when the file is created, replaced or deleted.

        It may yield once too often. Only what happens after the first `anext` began is sure to be told,
        so the caller looks at the file once by itself after that.

        Raises:
            OSError: the file's directory cannot be watched.
        """


class Store(Protocol):
    """Keys under one prefix, with revisions, conditional writes, TTLs and watches.

    Every call raises StoreError when the store cannot be reached or refuses, within a bounded time;
    it may then be called again. A write that raised may or may not have taken effect.
    """

    async def get(self, key: str) -> Record | None:
        """Return the record at exactly this key, or None; linearisable."""

    async def list(self, prefix: str) -> Listing:
        """Return all records whose key starts with `prefix`, at one revision, from which to watch."""

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write, atomically; a lost condition leaves nothing behind."""

    def watch(self, prefix: str, after: int) -> AsyncIterator[Changes]:
        """Yield every change of keys under `prefix` later than revision `after`, each exactly once, in order.

        No changes up to `after` come first, as soon as the watch is open. Ends only by an error.

        Raises:
            CompactedError: the history no longer reaches back to `after`.
            StoreError: the connection was lost; watch again from the last revision seen.
        """

    async def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, or None when it never does."""

    async def close(self) -> None:
        """Let go of connections and files."""


class Target(Protocol):
    """Something that can be read, changed, and that says when it may have changed.

    A snapshot is made afresh from what is there, never from memory. It may hold foreign objects too:
    what is ours among them is decided by `plan.ownership`, from the plan that `desired` holds.
    """

    async def snapshot(self, desired: State) -> State:
        """Return what is there now, normalised so that it compares equal to plans.

        `desired` tells the adapter where to look; objects that it does not name may be left out unless
        they carry our mark or hang on a device of ours. It is the plan until the next snapshot, and the
        adapter may keep it: items are exchanged in it before `apply` hears of them.

        Raises:
            TargetError: it could not be read.
        """

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in order and return the refused; one refusal does not stop the rest."""

    def changes(self) -> AsyncIterator[None]:
        """Yield after each burst of changes, whoever made them; a burst is announced at least once."""


class InterfaceSource(Protocol):
    """The interfaces of one network namespace, read afresh, and word of their changes."""

    async def observe(self) -> Interfaces:
        """Return the interfaces, their addresses and the default routes as they are now.

        Raises:
            TargetError: they could not be read.
        """

    async def route_to(self, address: IPv4Address) -> tuple[str, IPv4Address] | None:
        """Return the link and the source of the host's own packets to `address`; None when there is no route.

        Nothing is sent.

        Raises:
            TargetError: it could not be asked.
        """

    def changes(self) -> AsyncIterator[None]:
        """Yield after each burst of changes that may alter the answers above."""


class BridgeSource(Protocol):
    """The bridges of one network namespace, read afresh, and word of their changes."""

    async def observe(self) -> tuple[Bridge, ...]:
        """Return the bridges that have IPv4 addresses, in the order of their names.

        Raises:
            TargetError: they could not be read.
        """

    def changes(self) -> AsyncIterator[None]:
        """Yield after each burst of changes that may alter the answer."""


class Guard(Protocol):
    """Drops tunnel packets that come from where they must not."""

    async def strangers(self) -> Sequence[Stranger]:
        """Return who sent what was dropped, one for each address and reason, in no order.

        Of very many only the latest. Nobody, where it cannot be asked.
        """


class KernelPath(Protocol):
    """Says what there is, and what nobody can mend. Neither raises, nor takes more than milliseconds."""

    def features(self) -> tuple[Feature, ...]:
        """Return what there is of what the fast path uses, asked anew."""

    def notices(self, device: str) -> tuple[Notice, ...]:
        """Return what the latest look found of the tunnel of `device` that no repair helps."""


class PlainKernelPath:
    """One of which nothing is known beforehand: whatever is planned is tried."""

    def features(self) -> tuple[Feature, ...]:
        """Return nothing."""
        return ()

    def notices(self, device: str) -> tuple[Notice, ...]:
        """Return nothing."""
        return ()
