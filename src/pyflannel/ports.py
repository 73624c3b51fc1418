"""The ports: protocols of the adapters that the engine needs. Each port has at least two implementations."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar, TypeVarTuple, Unpack

from pyflannel.errors import TargetError, in_words, target_errors
from pyflannel.model.docker import DockerEndpoint, DockerParts, HostSubnet, PublishedPort
from pyflannel.model.fast_path import Feature
from pyflannel.model.forwarder import Stranger
from pyflannel.model.host import Bridge, Interface, Interfaces, RouteScope
from pyflannel.model.item import Item
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import IpAddress
from pyflannel.model.probe import Echo, EchoResult
from pyflannel.model.state import Operation, Refusal, State
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Conflict, Delete, Listing, Put, Record, StoreChanges, Written
from pyflannel.model.wireguard import WireguardContact, WireguardFacts

_Answer = TypeVar("_Answer")
_Arguments = TypeVarTuple("_Arguments")


class Clock(Protocol):
    """Two clocks: a monotonic clock for deadlines, and the wall clock for texts."""

    def now(self) -> float:
        """Return seconds of a monotonic clock that also counts while the host is suspended
        (CLOCK_BOOTTIME).
        """

    def utc(self) -> float:
        """Return seconds since the epoch. This clock is used only for texts, because the wall clock may
        step.
        """

    async def sleep(self, seconds: float) -> None:
        """Wait for `seconds`, measured by `now`."""


class Memory(Protocol):
    """One file in the state directory, or a test double of such a file."""

    async def load(self) -> bytes | None:
        """Return the bytes that were saved last; None if nothing was saved. An unreadable file is logged and
        counts as None.

        Raises:
            TargetError: the file is unreadable and flanneld must not start without it.
        """

    async def save(self, parts: Iterable[bytes]) -> bool:
        """Replace the content atomically by these parts, which are iterated only once.

        Return whether the write succeeded. After a failure, which is logged once, the old content is kept.
        """


class Changes(Protocol):
    """An open channel that announces changes."""

    async def next(self) -> None:
        """Wait for a burst of changes since the previous return, or since the channel was opened.

        A burst is announced at least once. Bursts before the call are coalesced. A cancelled call loses no
        burst: the next call returns immediately.

        Raises:
            TargetError: the reader of the changes failed, and each later call also fails. Changes may have
                been missed: open another channel, then take a snapshot.
        """


Announce = Callable[[], None]
"""A function that a reader calls after a burst of changes."""


class ChangeChannel:
    """The changes that readers announce during an `async with` block.

    Each reader is a task that runs during the whole block, even while no task waits for a change. If a reader
    ends before the block ends, it has failed.
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
        """Wait for the next burst of changes; raise if a reader has failed."""
        await self._told.wait()
        if self._failure is not None:
            raise self._failure
        self._told.clear()

    def _note_end(self, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if error is None:
            error = TargetError("the reader of changes ended", hint="flanneld starts the reader again.")
        elif isinstance(error, OSError):
            error = TargetError(
                f"the reader of changes failed: {in_words(error)}", hint="flanneld starts the reader again."
            )
        self._failure = self._failure or error
        self._told.set()


class FileWatch(Protocol):
    """Reports when a file may have changed, regardless of the process that changed it."""

    def changes(self, path: Path) -> AbstractAsyncContextManager[Changes]:
        """Open a channel that announces writes to `path`, including its creation, replacement and deletion.

        The channel may report a change that did not happen.

        Raises:
            TargetError: on opening, if the directory of the file cannot be watched.
        """


class KeyFile(Protocol):
    """A file with a list of keys, or a test double of such a file.

    Attributes:
        name: path of the file, which is used in messages.
    """

    name: str

    async def read(self) -> str:
        """Return the text of the file.

        Raises:
            TargetError: the file is unreadable.
        """

    def changes(self) -> AbstractAsyncContextManager[Changes]:
        """Open a channel that announces changes of the file, in the same way as FileWatch."""


class Watcher(Protocol):
    """An open watch. Only one task may use this watch."""

    async def next(self) -> StoreChanges:
        """Wait for changes and return all that have arrived, each exactly once, in the store's order.

        The first result is empty, with the revision at which the watch begins. If the watch ends or the store
        is silent, the method raises an error within a bounded time.

        Raises:
            CompactedError: the history no longer contains the revision.
            StoreError: the watch is lost. Start a new watch at the last revision.
        """


class Store(Protocol):
    """Keys under one prefix, with revisions, conditional writes, TTLs and watches.

    Every call of a store raises StoreError within a bounded time if the store is unreachable or refuses. The
    caller may retry. A write that raised an error may have taken effect nevertheless.
    """

    async def get(self, key: str) -> Record | None:
        """Return the record at exactly this key, or None; linearisable."""

    async def list(self, prefix: str) -> Listing:
        """Return all records whose key starts with `prefix`, and the revision at which to start a watch."""

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write atomically. If the condition fails, nothing is written."""

    def watch(self, prefix: str, after: int) -> AbstractAsyncContextManager[Watcher]:
        """Watch the keys under `prefix` for changes after revision `after`, during the block.

        Raises:
            CompactedError: the history no longer contains `after`.
            StoreError: the watch cannot be opened.
        """

    async def time_to_live(self, record: Record) -> float | None:
        """Return the seconds until the record expires, or None if the record never expires."""

    async def age(self, record: Record) -> float | None:
        """Return the seconds since a record with a TTL was written; None if the store does not know the
        time.
        """

    def addresses(self) -> tuple[IpAddress, ...]:
        """Return the addresses through which the store is reached, as far as they are known; empty for a
        file.
        """

    async def close(self) -> None:
        """Close connections and files."""


class Target(Protocol):
    """An external system, such as the kernel, that can be read and changed, and announces its changes.

    A snapshot always reads the current state, never a stored copy of it. A snapshot may contain objects of
    other programs. `plan.ownership` decides which objects pyflannel owns, from the plan in `desired`.
    """

    @property
    def kinds(self) -> Collection[type[Item]]:
        """The kinds of items in this target. No other target has items of these kinds."""

    async def snapshot(self, desired: State) -> State:
        """Return the current state, normalised so that it compares equal to plans.

        `desired` tells the adapter which objects to read. A snapshot may omit other objects, unless they
        carry pyflannel's mark or depend on a device of pyflannel. `desired` is the plan until the next
        snapshot, and the adapter may keep a reference to it. Items in the plan are replaced before `apply`
        gets them.

        Raises:
            TargetError: the state is unreadable.
        """

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in order and return the refusals. A refusal does not stop the remaining
        operations.
        """

    def changes(self) -> AbstractAsyncContextManager[Changes]:
        """Open a channel that announces changes of the objects of the latest snapshot, made by any
        program.
        """


def refused_by(operation: Operation, error: TargetError) -> Refusal:
    """Return an error as the refusal of an operation."""
    return Refusal(operation=operation, cause=str(error), hint=error.hint, is_permanent=error.is_permanent)


async def performed(
    operations: Sequence[Operation], performing: Awaitable[Sequence[Refusal]]
) -> Sequence[Refusal]:
    """Return the refusals. This function is the error boundary of a target's `apply`.

    If the whole call failed, every operation is refused with the cause of this failure. The next scan finds
    the effects of the call.
    """
    try:
        with target_errors("the change failed", hint="Read the kernel's log (dmesg) for the cause."):
            return await performing
    except TargetError as error:
        return [refused_by(operation, error) for operation in operations]


async def in_thread(act: Callable[[Unpack[_Arguments]], _Answer], *arguments: *_Arguments) -> _Answer:
    """Run a call that may block in a thread, and return its result.

    Raises:
        OSError: EAGAIN if no thread can be started.
    """
    try:
        return await asyncio.to_thread(act, *arguments)
    except RuntimeError as error:
        if "new thread" not in str(error):
            raise
        raise OSError(errno.EAGAIN, "no thread can be started") from error


def child_environment(*wanted: str) -> dict[str, str]:
    """Return the environment of a program that the daemon starts: PATH and variables by name or `PREFIX*`.

    Any other variable may be a secret, such as the password of the store.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in ("PATH", *wanted))
    }


class InterfaceSource(Protocol):
    """The current interfaces of one network namespace, and notifications of their changes."""

    async def observe(self, scope: RouteScope) -> Interfaces:
        """Return the interfaces, their addresses, the default routes and the routes in `scope`, in their
        current state.

        Raises:
            TargetError: the objects are unreadable.
        """

    async def route_to(self, address: IpAddress) -> tuple[str, IpAddress] | None:
        """Return the link and the source address of the host's own packets to `address`; None if there is no
        route.

        No packet is sent.

        Raises:
            TargetError: the kernel did not answer.
        """

    async def announce(self, interface: Interface, addresses: Iterable[IpAddress]) -> None:
        """Send the MAC address of an interface with its addresses to all hosts on its link.

        Raises:
            TargetError: the kernel refused to send the announcement.
        """

    def changes(self) -> AbstractAsyncContextManager[Changes]:
        """Open a channel that announces changes which may alter the results of the methods above."""


class ContainerLinks(Protocol):
    """The links of Docker's containers to their bridges, in one network namespace."""

    async def connect(self, endpoint: DockerEndpoint, bridge: str, mtu: int) -> None:
        """Create the veth of a container, with one end as a port of the bridge. An existing veth is replaced.

        Raises:
            TargetError: the kernel refused to create the veth; no part of the veth exists.
        """

    async def disconnect(self, endpoint: DockerEndpoint) -> None:
        """Remove the veth, if it exists.

        Raises:
            TargetError: the kernel refused to remove the veth.
        """

    async def attach(self, bridges: Mapping[str, str]) -> Sequence[str]:
        """Make each link the port of its bridge, if both the link and the bridge exist; return the links that
        changed.

        Raises:
            TargetError: the links are unreadable.
        """

    async def names(self) -> Collection[str]:
        """Return the names of all links.

        Raises:
            TargetError: the objects are unreadable.
        """

    def open_loopback(self, bridge: str) -> None:
        """Let packets from 127.0.0.1 leave by a bridge. Ports that are published at 127.0.0.1 need this
        setting.

        Raises:
            TargetError: the kernel refused the setting.
        """

    async def has_bridge(self, name: str) -> bool:
        """Return whether a bridge is up."""

    async def on_link(self) -> Mapping[IPv4Network, str]:
        """Return the prefixes that the host reaches without a gateway, each with the name of the link.

        Raises:
            TargetError: the objects are unreadable.
        """

    def port_in_use(self, port: PublishedPort) -> bool:
        """Return whether a program of the host uses this port."""


class DockerHost(Protocol):
    """The host in one flannel network, in the form that the network plugin for Docker uses.

    Attributes:
        progress: set each time the reconciler has changed the host.
    """

    progress: asyncio.Event

    def subnet(self) -> HostSubnet:
        """Return the properties of the host that networks of Docker need.

        Raises:
            DockerPluginError: the network has no IPv4.
            NotReadyError: the host has no lease yet.
        """

    def ranges(self) -> tuple[IPv4Network | None, IPv6Network | None]:
        """Return the range of the flannel network in each family; None while it is unknown, or if the
        family is not used.
        """

    def plan(self, parts: DockerParts) -> None:
        """Include these networks and ports in the plan."""

    def objection(self) -> str | None:
        """Return the reason why a part of the plan is not in place; "" while work is in progress; None if
        all parts are in place.
        """


class BridgeSource(Protocol):
    """The current bridges of one network namespace, and notifications of their changes."""

    async def observe(self) -> tuple[Bridge, ...]:
        """Return the bridges that have IPv4 addresses, in the order of their names.

        Raises:
            TargetError: the objects are unreadable.
        """

    def changes(self) -> AbstractAsyncContextManager[Changes]:
        """Open a channel that announces changes which may alter the result of `observe`."""


SendEchoes = Callable[[Sequence[Echo]], Awaitable[list[EchoResult]]]
"""A function that sends echo requests and returns their results, in a bounded time. This function may raise
TargetError."""

CountReceived = Callable[[Lease, Lease], Awaitable[int | None]]
"""A function that returns the bytes of the tunnel packets that the kernel accepted from a peer; None if the
kernel does not count them. The arguments are the lease of this host and the lease of the peer. This function
may raise TargetError."""

WireguardContacts = Callable[[], Awaitable[Sequence[WireguardContact]]]
"""A function that returns the contact with each WireGuard peer; empty if the device does not exist. This
function may raise TargetError."""


class WireguardSource(Protocol):
    """The WireGuard key of this host, and the WireGuard implementation that the host uses."""

    async def observe(self) -> WireguardFacts:
        """Return the current WireGuard properties of the host. The first call creates a key if no key exists.

        Raises:
            TargetError: the key or the implementation is unusable.
        """

    async def prepare(self) -> str:
        """Create the next key and return its public key.

        Raises:
            TargetError: the key cannot be created or saved.
        """

    async def promote(self) -> None:
        """Replace the current key with the prepared key.

        Raises:
            TargetError: the key cannot be saved.
        """

    async def discard(self) -> None:
        """Discard the prepared key.

        Raises:
            TargetError: the key cannot be removed.
        """


class Guard(Protocol):
    """Drops tunnel packets from unexpected senders."""

    async def strangers(self) -> Sequence[Stranger]:
        """Return the senders of dropped packets, one for each address and reason, in no particular order.

        If there are very many senders, only the latest are returned. The result is empty if the guard does
        not respond.
        """


class KernelPath(Protocol):
    """Access to the kernel features of the fast path, and to problems that cannot be repaired. The calls of
    this port never raise an error, and take milliseconds.
    """

    def features(self) -> tuple[Feature, ...]:
        """Probe the features that the fast path uses, and return them."""

    def notices(self, device: str) -> tuple[Notice, ...]:
        """Return the problems of the tunnel of `device` that the latest scan found, and that no repair can
        solve.
        """

    def uncached(self) -> tuple[str, ...]:
        """Return the reasons why packets of flows do not bypass the firewall, in mode flow."""


class PlainKernelPath:
    """An implementation without probes, so that every planned operation is tried."""

    def features(self) -> tuple[Feature, ...]:
        """Return nothing, because no feature is probed."""
        return ()

    def notices(self, device: str) -> tuple[Notice, ...]:
        """Return nothing, because no feature is probed."""
        return ()

    def uncached(self) -> tuple[str, ...]:
        """Return nothing, because no feature is probed."""
        return ()
