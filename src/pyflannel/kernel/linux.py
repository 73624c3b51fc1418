"""The Target that is the kernel: links, addresses and routes of the network namespace the process is in."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from functools import lru_cache
from itertools import islice

from pyflannel.errors import TargetError
from pyflannel.kernel.netlink_socket import NotificationSocket, RequestSocket
from pyflannel.kernel.refusals import GONE, refusal, refusal_of
from pyflannel.kernel.requests import Asked, ask, ask_again, failure
from pyflannel.kernel.snapshot import Interest, Snapshot, read_snapshot
from pyflannel.kernel.sysctl import set_ipv6
from pyflannel.kernel.tun import create_tun
from pyflannel.model.link import Link
from pyflannel.model.operation import Add, Operation, Refusal, Remove, Replace
from pyflannel.model.route import PROTOCOL_FLANNEL
from pyflannel.model.state import State
from pyflannel.wire.netlink import addresses, links, routes
from pyflannel.wire.netlink.acknowledgement import Acknowledgement
from pyflannel.wire.netlink.message import Message, Request

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, RTMGRP_IPV6_IFADDR, _IPV6_ROUTE (linux/rtnetlink.h)."""

_COALESCE_S = 0.005


class LinuxTarget:
    """A Target for Link, Address and Route items.

    Made, it hears every change from then on, whether or not somebody waits for it yet.

    Raises:
        TargetError: the kernel gives no netlink socket.
    """

    def __init__(self) -> None:
        self._requests = RequestSocket()
        try:
            self._notifications = NotificationSocket(_GROUPS)
        except TargetError:
            self._requests.close()
            raise
        # Until the first snapshot everything concerns us.
        self._interest: Interest | None = None
        self._seen: Snapshot | None = None

    def close(self) -> None:
        """Let go of the sockets."""
        self._requests.close()
        self._notifications.close()

    async def snapshot(self, desired: State) -> State:
        """Return what the plan names, what carries our mark, and what hangs on links of either sort."""
        self._seen = None  # what changes while we look concerns us, whatever it is
        self._interest = Interest.of(desired)
        self._seen = await read_snapshot(self._requests, self._interest)
        return self._seen.state

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in order; neighbouring ones on addresses and routes go out as one batch."""
        refusals: list[Refusal] = []
        batch: list[Operation] = []
        for operation in operations:
            link_change = _link_change(operation)
            if link_change is None:
                batch.append(operation)
                continue
            refusals += await self._perform(batch)
            batch = []
            refusals += await self._change_link(operation, *link_change)
        return refusals + await self._perform(batch)

    async def changes(self) -> AsyncIterator[None]:
        """Yield after each burst of changes to what the last snapshot was about, made by others."""
        while True:
            await self._notifications.wait(self._concerns)
            await asyncio.sleep(_COALESCE_S)
            self._notifications.drain()
            yield

    async def _perform(self, operations: Sequence[Operation]) -> list[Refusal]:
        """Perform operations on addresses and routes, in as few system calls as can be."""
        refusals: list[Refusal] = []
        index_of = lru_cache(maxsize=None)(socket.if_nametoindex)
        asked: list[Asked] = []
        for operation in operations:
            try:
                asked.append(ask(operation, index_of))
            except OSError as error:
                refusals.append(refusal_of(operation, error))
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
            return [Refusal(operation=one, cause=str(error), hint=error.hint) for one in operations]
        return refusals

    async def _transact(self, asked: Sequence[Asked]) -> list[tuple[Asked, list[Acknowledgement]]]:
        answers = iter(await self._requests.transact([request for one in asked for request in one.requests]))
        return [(one, list(islice(answers, len(one.requests)))) for one in asked]

    async def _change_link(self, operation: Operation, old: Link | None, new: Link | None) -> list[Refusal]:
        """Make, change or delete a link; what can be done is done even when a part of it is refused."""
        refusals: list[Refusal] = []
        try:
            if old is not None and (new is None or old.kind != new.kind):
                refusals += await self._delete_link(operation, old.name)
                old = None
            if new is not None and not refusals:
                if old is None:
                    _create(new)
                index = socket.if_nametoindex(new.name)
                refusals += await self._settle_ipv6(operation, index, old, new)
                refusals += await self._ask(operation, [_link_request(index, old, new)])
        except OSError as error:
            refusals.append(refusal_of(operation, error))
        except TargetError as error:
            refusals.append(Refusal(operation=operation, cause=str(error), hint=error.hint))
        return refusals[:1]

    async def _delete_link(self, operation: Operation, name: str) -> list[Refusal]:
        try:
            index = socket.if_nametoindex(name)
        except OSError:
            return []  # gone already
        return await self._ask(operation, [links.delete_link(index)], tolerated=GONE)

    async def _settle_ipv6(
        self, operation: Operation, index: int, old: Link | None, new: Link
    ) -> list[Refusal]:
        """Turn IPv6 on or off before the link goes up, so that it solicits no router meanwhile."""
        if old is not None and old.has_ipv6 == new.has_ipv6:
            return []
        if old is None and not new.has_ipv6:
            # The setting below suffices; this one stays when somebody turns IPv6 on for all links.
            await self._ask(operation, [links.stop_ipv6_addresses(index)])
        try:
            set_ipv6(new.name, new.has_ipv6)
        except OSError as error:
            return [refusal_of(operation, error)]
        return []

    async def _ask(
        self, operation: Operation, requests: Sequence[Request], tolerated: Collection[int] = ()
    ) -> list[Refusal]:
        return [
            refusal(operation, answer.errno, answer.text)
            for answer in await self._requests.transact(requests)
            if answer.errno and answer.errno not in tolerated
        ]

    def _concerns(self, message: Message) -> bool:
        """Return whether somebody else changed what the last snapshot was about."""
        if message.port == self._requests.port:
            return False
        seen, interest = self._seen, self._interest
        if seen is None or interest is None:
            return True
        match message.kind:
            case links.NEW | links.DELETE:
                link = links.parse_link(message.body)
                return (
                    interest.concerns_link(link)
                    or link.name in interest.carriers
                    or link.index in seen.ours | seen.carriers
                )
            case addresses.NEW | addresses.DELETE:
                return addresses.address_index(message.body) in seen.ours | seen.carriers
            case routes.NEW | routes.DELETE:
                glance = routes.glance_at_route(message.body)
                return glance is not None and (
                    glance.protocol == PROTOCOL_FLANNEL
                    or glance.link in seen.ours
                    or glance.key in interest.routes
                )
            case _:
                return False


def _create(link: Link) -> None:
    if link.kind != "tun":
        raise OSError(errno.EOPNOTSUPP, f"links of kind {link.kind} cannot be made yet")
    create_tun(link.name)


def _link_request(index: int, old: Link | None, new: Link) -> Request:
    """Return what changes the link in place; what it has already is left alone, lest it be announced."""
    return links.change_link(
        index,
        mtu=new.mtu if old is None or old.mtu != new.mtu else None,
        queue_length=new.queue_length if old is None or old.queue_length != new.queue_length else None,
        alias=new.alias if old is None or old.alias != new.alias else None,
        is_up=new.is_up if old is None or old.is_up != new.is_up else None,
    )


def _refused(asked: Asked, answers: Sequence[Acknowledgement]) -> list[Refusal]:
    answer = failure(asked, answers)
    return [] if answer is None else [refusal(asked.operation, answer.errno, answer.text)]


def _link_change(operation: Operation) -> tuple[Link | None, Link | None] | None:
    """Return a link before and after the operation; None when it is about something else."""
    match operation:
        case Add(Link() as new):
            return None, new
        case Replace(Link() as old, Link() as new):
            return old, new
        case Remove(Link() as old):
            return old, None
        case _:
            return None
