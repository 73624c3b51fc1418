"""The ports: what the engine needs from outside, as protocols; each has at least two implementations."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from fnmatch import fnmatchcase
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, TypeVarTuple, Unpack

from pyflannel.errors import TargetError, in_words, target_errors
from pyflannel.model.fast_path import Feature
from pyflannel.model.forwarder import Stranger
from pyflannel.model.host import Bridge, Interfaces
from pyflannel.model.item import Item
from pyflannel.model.state import Operation, Refusal, State
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Conflict, Delete, Listing, Put, Record, StoreChanges, Written

_Answer = TypeVar("_Answer")
_Arguments = TypeVarTuple("_Arguments")


class Clock(Protocol):
    """Two clocks: one that never steps, for deadlines, and one that people read."""

    def now(self) -> float:
        """Return seconds of a clock that never steps and counts while the host sleeps (CLOCK_BOOTTIME)."""

    def utc(self) -> float:
        """Return seconds since the epoch; for texts only, as it may step."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, measured by `now`."""


class Memory(Protocol):
    """One file in the state directory, or a double of it."""

    async def load(self) -> bytes | None:
        """Return the bytes saved last, or None. A file that cannot be read counts as none, and is logged."""

    async def save(self, parts: Iterable[bytes]) -> None:
        """Replace it by these parts, each asked for in its turn.

        Atomically; a failure is logged, and the old text stays.
        """


class Changes(Protocol):
    """An open channel of changes."""

    async def next(self) -> None:
        """Return after the next burst of changes: what came since the last return, or since the opening.

        A burst is announced at least once. Bursts that came before the call are coalesced. A call that is
        cancelled loses nothing: the next one returns.

        Raises:
            TargetError: the reader of the changes failed, and so will each later call. Anything may have
                changed since: open another channel, then look.
        """


Announce = Callable[[], None]
"""A reader calls it when a burst of changes came."""


class ChangeChannel:
    """The changes that readers announce, for the length of an `async with` block.

    Each reader is a task of the block: it runs from the beginning of the block to its end, also while nobody
    waits for a change. A reader that ends before the block does has failed.
    """

    def __init__(self, *readers: Callable[[Announce], Coroutine[Any, Any, None]]) -> None:
        self._readers = readers
        self._tasks: list[asyncio.Task[None]] = []
        self._told = asyncio.Event()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        for reader in self._readers:
            task = asyncio.create_task(reader(self._told.set), name="reader of changes")
            task.add_done_callback(self._note_end)
            self._tasks.append(task)
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def next(self) -> None:
        """Return after the next burst of changes; raise when a reader has failed."""
        await self._told.wait()
        if self._failure is not None:
            raise self._failure
        self._told.clear()

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            error = TargetError("the reader of changes ended", hint="It is started again.")
        elif isinstance(error, OSError):
            error = TargetError(
                f"the reader of changes failed: {in_words(error)}", hint="It is started again."
            )
        self._failure = self._failure or error
        self._told.set()


class FileWatch(Protocol):
    """Reports when a file may have changed, by any process."""

    def changes(self, path: Path) -> AbstractAsyncContextManager[Changes]:
        """Open a channel of writes to `path`, also of its creation, replacement and deletion.

        It may report a change that did not happen.

        Raises:
            TargetError: on opening, when the file's directory cannot be watched.
        """


class Watcher(Protocol):
    """A watch that is open; for one task."""

    async def next(self) -> StoreChanges:
        """Wait for changes and return all that have come, each exactly once, in the store's order.

        First come no changes, up to the revision where the watch begins. It waits only while
        the watch is open: an end of the watch, and a silence of the store, raises within a bounded time.

        Raises:
            CompactedError: the history no longer reaches back.
            StoreError: the watch is lost; watch again from the last revision seen.
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

    def watch(self, prefix: str, after: int) -> AbstractAsyncContextManager[Watcher]:
        """Watch the keys under `prefix` for what is later than revision `after`, as long as the block runs.

        Raises:
            CompactedError: the history no longer reaches back to `after`.
            StoreError: the watch cannot be opened.
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

    @property
    def kinds(self) -> Collection[type[Item]]:
        """The kinds of items that it holds; no other target holds them."""

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

    def changes(self) -> AbstractAsyncContextManager[Changes]:
        """Open a channel of changes to what the latest snapshot was about, whoever made them."""


def refused_by(operation: Operation, error: TargetError) -> Refusal:
    """Return the refusal that an error stands for."""
    return Refusal(operation=operation, cause=str(error), hint=error.hint, is_permanent=error.is_permanent)


async def performed(
    operations: Sequence[Operation], performing: Awaitable[Sequence[Refusal]]
) -> Sequence[Refusal]:
    """Return what was refused: the boundary of a target's `apply`.

    Where the whole failed, each operation is refused for that: what took effect, the next look tells.
    """
    try:
        with target_errors(
            "the change cannot be made", hint="Look at the kernel's log (dmesg) for the reason."
        ):
            return await performing
    except TargetError as error:
        return [refused_by(operation, error) for operation in operations]


async def in_thread(act: Callable[[Unpack[_Arguments]], _Answer], *arguments: *_Arguments) -> _Answer:
    """Return what a call returns that may block, made in a thread.

    Raises:
        OSError: EAGAIN, there is no thread for it.
    """
    try:
        return await asyncio.to_thread(act, *arguments)
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise OSError(errno.EAGAIN, "no thread can be started") from error


def child_environment(*wanted: str) -> dict[str, str]:
    """Return the environment of a program that the daemon starts: PATH, and variables by name or `PREFIX*`.

    Each other variable may be a secret: the store's password, or one of a container's other programs.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in ("PATH", *wanted))
    }


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

    def changes(self) -> AbstractAsyncContextManager[Changes]:
        """Open a channel of changes that may alter the answers above."""


class BridgeSource(Protocol):
    """The bridges of one network namespace, read afresh, and word of their changes."""

    async def observe(self) -> tuple[Bridge, ...]:
        """Return the bridges that have IPv4 addresses, in the order of their names.

        Raises:
            TargetError: they could not be read.
        """

    def changes(self) -> AbstractAsyncContextManager[Changes]:
        """Open a channel of changes that may alter the answer."""


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
