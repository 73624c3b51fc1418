"""The kernel as a Target: the objects of one network namespace, and notifications of changes to them."""

import asyncio
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence, Set
from functools import lru_cache
from itertools import islice
from typing import Self

from msgspec.structs import replace

from pyflannel.errors import TargetError, target_errors
from pyflannel.kernel.network.device_ioctls import link_index
from pyflannel.kernel.network.items import fdb_entry_of, neighbour_of
from pyflannel.kernel.network.links import LinkWriter, is_link_operation
from pyflannel.kernel.network.netlink_socket import (
    NOTIFICATION_BUFFER,
    NotificationSocket,
    RequestSocket,
)
from pyflannel.kernel.network.requests import (
    Asked,
    IndexOf,
    are_next_hops_readable,
    ask,
    ask_again,
    failure,
    links_worth_it,
    refusal,
    refusal_of,
)
from pyflannel.kernel.network.snapshot import Interest, Links, SnapshotReader
from pyflannel.model.link import Address, Link
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Replace, State
from pyflannel.ports import Announce, ChangeChannel, performed, refused_by
from pyflannel.wire.netlink import addresses, links, neighbours, routes
from pyflannel.wire.netlink.message import PORT_AT, Acknowledgement, Message
from pyflannel.wire.netlink.routes import (
    dump_next_hops,
    next_hop_protocol,
    parse_next_hop_number,
    remove_next_hop,
)

_COALESCE_S = 0.005

_BATCH = 100
"""Maximum number of operations that are sent together."""


class LinuxTarget:
    """A Target for Link, Address, Neighbour, FdbEntry and Route items.

    Within its `with` block, the target receives notifications of all changes, even while no task waits for a
    change. The adapter reads with one socket and writes with another, so that no operation waits for a long
    scan.

    Args:
        notification_bytes: size of the receive buffer for notifications, in bytes. If the buffer overflows,
            any object may have changed.

    Raises:
        TargetError: on entering, if the kernel refuses to create a netlink socket.
    """

    kinds = (Link, Address, Neighbour, FdbEntry, Route)

    def __init__(self, notification_bytes: int = NOTIFICATION_BUFFER) -> None:
        self._notification_bytes = notification_bytes
        self._rests_until = 0.0

    async def __aenter__(self) -> Self:
        with contextlib.ExitStack() as opened:
            questions = opened.enter_context(contextlib.closing(RequestSocket()))
            self._requests = opened.enter_context(contextlib.closing(RequestSocket()))
            notifications = NotificationSocket(GROUPS, buffer_bytes=self._notification_bytes)
            self._notifications = opened.enter_context(contextlib.closing(notifications))
            port = self._requests.port.to_bytes(4, sys.byteorder)
            # the kernel drops the messages about changes by this process
            self._notifications.ignore([(PORT_AT, (port,))])
            self._sockets = opened.pop_all()
        self._reader = SnapshotReader(questions)
        self._links = LinkWriter(self._requests)
        self._filter = ChangeFilter(self._requests.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sockets.close()

    async def snapshot(self, desired: State) -> State:
        """Return the objects at keys of the plan, objects with pyflannel's mark, and objects on links with
        the mark.

        Of neighbours and FDB entries, only entries on planned vxlan devices are returned.
        """
        began = time.monotonic()
        interest = Interest.of(desired)
        self._filter.looks(interest)
        with target_errors("links and routes cannot be read", hint="See the kernel's log (dmesg)."):
            seen = await self._reader.read(interest)
        self._filter.saw(seen.links)
        self._rests_until = 2 * time.monotonic() - began
        return seen.state

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in order. Consecutive operations are sent as one batch, except operations
        on links.
        """
        return await performed(operations, self._apply(operations))

    async def _apply(self, operations: Sequence[Operation]) -> list[Refusal]:
        refusals: list[Refusal] = []
        batch: list[Operation] = []
        for operation in operations:
            if not is_link_operation(operation):
                batch.append(operation)
                continue
            refusals += await self._perform(batch)
            batch = []
            refusals += await self._links.perform(operation)
            self._note_made(operation)
        return refusals + await self._perform(batch)

    def changes(self) -> ChangeChannel:
        """Open a channel of changes by other programs to the objects of the latest snapshot.

        During a burst, the interval between two notifications is at least the duration of the latest scan.
        """
        return ChangeChannel(self._read_changes)

    async def _read_changes(self, announce: Announce) -> None:
        while True:
            await self._notifications.wait(self._filter.concerns)
            await asyncio.sleep(max(_COALESCE_S, self._rests_until - time.monotonic()))
            await self._notifications.forget()
            announce()

    def _note_made(self, operation: Operation) -> None:
        """Watch the objects on a new link of pyflannel immediately, not only after the next scan."""
        match operation:
            case Add(Link(name=name)) | Replace(_, Link(name=name)):
                with contextlib.suppress(OSError):  # the creation of the link was refused
                    self._filter.made(link_index(name), name)
            case _:
                pass

    async def _perform(self, operations: Sequence[Operation]) -> list[Refusal]:
        """Perform operations on items other than links, in as few system calls as possible.

        While the kernel performs one batch, the next batch is prepared.
        """
        refusals: list[Refusal] = []
        index_of = lru_cache(maxsize=None)(link_index)
        by_next_hops = links_worth_it(operations)
        if by_next_hops and not are_next_hops_readable():
            by_next_hops = frozenset()
        batch, refused = self._asked(operations[:_BATCH], index_of, by_next_hops)
        async with asyncio.TaskGroup() as tasks:
            for start in range(0, len(operations), _BATCH):
                task = tasks.create_task(self._perform_batch(batch, index_of), name="changes of the kernel")
                # the task starts to send the batch, and other tasks run between two batches
                await asyncio.sleep(0)
                following = operations[start + _BATCH : start + 2 * _BATCH]
                batch, refused_next = self._asked(following, index_of, by_next_hops)
                done = await task
                if isinstance(done, TargetError):
                    return [*refusals, *_unknown(operations[start:], done)]
                refusals += refused + done
                refused = refused_next
        return refusals

    def _asked(
        self, operations: Sequence[Operation], index_of: IndexOf, by_next_hops: Set[str]
    ) -> tuple[list[Asked], list[Refusal]]:
        """Return the operations with their requests, and refusals for operations that have no request."""
        asked: list[Asked] = []
        refusals: list[Refusal] = []
        for operation in operations:
            try:
                asked.append(ask(operation, index_of, by_next_hops=by_next_hops))
            except OSError as error:
                refusals.append(refusal_of(operation, error))
        return asked, refusals

    async def _perform_batch(self, asked: Sequence[Asked], index_of: IndexOf) -> list[Refusal] | TargetError:
        """Return a refusal for each operation that the kernel refused or did not answer."""
        refusals: list[Refusal] = []
        again: list[Asked] = []
        try:
            for one, answers in await self._transact(asked):
                if (more := ask_again(one, answers, index_of)) is not None:
                    again.append(more)
                else:
                    refusals += _refused(one, answers)
            for one, answers in await self._transact(again):
                refusals += _refused(one, answers)
        except TargetError as error:
            return error
        return refusals

    async def _transact(self, asked: Sequence[Asked]) -> list[tuple[Asked, list[Acknowledgement]]]:
        answers = iter(await self._requests.transact([request for one in asked for request in one.requests]))
        return [(one, list(islice(answers, len(one.requests)))) for one in asked]


def _unknown(operations: Sequence[Operation], error: TargetError) -> Iterator[Refusal]:
    return (refused_by(operation, error) for operation in operations)


def _refused(asked: Asked, answers: Sequence[Acknowledgement]) -> list[Refusal]:
    answer = failure(asked, answers)
    return [] if answer is None else [refusal(asked.operation, answer.errno, answer.text)]


async def remove_next_hops(protocol: int) -> int:
    """Remove the next-hop objects of this rtm_protocol and the routes that refer to them; return the number
    of these objects.

    For a kernel without support for next-hop objects, the number is 0.

    Raises:
        TargetError: the kernel did not answer.
    """

    def read(body: bytes) -> int | None:
        return parse_next_hop_number(body) if next_hop_protocol(body) == protocol else None

    requests = RequestSocket()
    try:
        try:
            numbers = await requests.dump(dump_next_hops(), read)
        except TargetError:
            return 0
        await requests.transact([remove_next_hop(number) for number in numbers])
    finally:
        requests.close()
    return len(numbers)


GROUPS = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400 | 0x800 | 0x8000_0000
"""RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, RTMGRP_IPV6_IFADDR, _IPV6_ROUTE, _IPV6_IFINFO
(the only group that announces that IPv6 was enabled), and RTNLGRP_NEXTHOP (linux/rtnetlink.h)."""


class ChangeFilter:
    """Decides which notifications of the kernel affect the plan, by comparing them with the last scan and the
    current plan.

    Before the first scan, every notification counts as a change that affects the plan.

    Args:
        port: port of the request socket. Notifications of pyflannel's own changes contain this port and are
            ignored.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._interest: Interest | None = None
        self._links: Links | None = None

    def looks(self, interest: Interest) -> None:
        """Register the start of a scan. If the scan reads other links than the last scan, every change counts
        as relevant until its end.
        """
        if self._interest is None or not self._interest.has_links_of(interest):
            self._links = None
        self._interest = interest

    def saw(self, links: Links) -> None:
        """Register the end of the scan, with its links."""
        self._links = links

    def made(self, index: int, name: str) -> None:
        """Register a link that pyflannel created or changed after the scan."""
        if self._links is not None:
            names = {**self._links.names, index: name}
            self._links = replace(self._links, names=names, ours=self._links.ours | {index})

    def concerns(self, message: Message) -> bool:
        """Return whether another program changed an object of the last scan.

        Raises:
            WireError: the message is shorter than required for its kind.
        """
        if message.port == self._port:
            return False
        interest, seen = self._interest, self._links
        if interest is None or seen is None:
            return True
        match message.kind:
            case neighbours.NEW | neighbours.DELETE:
                # Traffic causes most of these notifications. The check of the link rejects nearly all
                # notifications.
                index = neighbours.entry_index(message.body)
                return index in seen.ours and self._is_damage(message, interest, seen)
            case routes.NEW | routes.DELETE:
                glance = routes.glance_at_route(message.body)
                return glance is not None and interest.concerns_route(glance, seen.ours)
            # the kernel also removes the routes of the link, without an announcement
            case routes.DELETE_NEXT_HOP:
                return routes.next_hop_protocol(message.body) in interest.protocols
            case links.NEW | links.DELETE:
                link = links.parse_link(message.body)
                return (
                    interest.concerns_link(link)
                    or link.name in interest.carriers
                    or link.index in seen.ours | seen.carriers
                )
            case addresses.NEW | addresses.DELETE:
                return addresses.address_index(message.body) in seen.ours | seen.carriers
            case _:
                return False

    def _is_damage(self, message: Message, interest: Interest, seen: Links) -> bool:
        """Return whether an entry on one of pyflannel's links differs from the plan.

        The kernel does not report which program changed an FDB entry. No repair is necessary if an entry now
        equals the plan, or if an unplanned entry was removed. No repair is necessary either if the kernel
        learned an entry at a key without a planned entry.
        """
        neighbour, entry = neighbours.parse_neighbour(message.body), neighbours.parse_fdb_entry(message.body)
        item: Neighbour | FdbEntry
        if neighbour is not None:
            item = neighbour_of(neighbour, seen.names)
        elif entry is not None:
            item = fdb_entry_of(entry, seen.names)
        else:
            return False
        planned = interest.desired.by_key.get(item.key)
        if message.kind == neighbours.NEW:
            return item != planned and (item.is_permanent or planned is not None)
        if isinstance(item, FdbEntry) and isinstance(planned, FdbEntry):
            return item.destination == planned.destination  # pyflannel itself removed another destination
        return planned is not None
