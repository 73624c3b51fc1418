"""The Target that is the kernel: links, addresses and routes of the network namespace the process is in."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from itertools import islice

from pyflannel.errors import TargetError
from pyflannel.kernel.link_index import link_index
from pyflannel.kernel.links import LinkWriter, is_link_operation
from pyflannel.kernel.netlink_socket import NotificationSocket, RequestSocket
from pyflannel.kernel.refusals import refusal, refusal_of
from pyflannel.kernel.requests import Asked, ask, ask_again, failure
from pyflannel.kernel.snapshot import Interest, Snapshot, read_snapshot
from pyflannel.model.operation import Operation, Refusal
from pyflannel.model.route import PROTOCOL_FLANNEL
from pyflannel.model.state import State
from pyflannel.wire.netlink import addresses, links, routes
from pyflannel.wire.netlink.acknowledgement import Acknowledgement
from pyflannel.wire.netlink.message import Message

_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400 | 0x800
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, _IPV4_ROUTE, RTMGRP_IPV6_IFADDR, _IPV6_ROUTE, _IPV6_IFINFO, by which alone
the kernel says that IPv6 was turned on (linux/rtnetlink.h)."""

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
        self._links = LinkWriter(self._requests)
        # Until the first snapshot everything concerns us.
        self._interest: Interest | None = None
        self._seen: Snapshot | None = None

    def close(self) -> None:
        """Let go of the sockets."""
        self._requests.close()
        self._notifications.close()

    async def snapshot(self, desired: State) -> State:
        """Return what the plan names, what carries our mark, and what hangs on links of either sort."""
        interest = Interest.of(desired)
        if self._interest is None or not self._interest.has_links_of(interest):
            self._seen = None  # their indexes are unknown: what changes while we look may concern us
        self._interest = interest
        self._seen = await read_snapshot(self._requests, self._interest)
        return self._seen.state

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        """Perform the operations in order; neighbouring ones on addresses and routes go out as one batch."""
        refusals: list[Refusal] = []
        batch: list[Operation] = []
        for operation in operations:
            if not is_link_operation(operation):
                batch.append(operation)
                continue
            refusals += await self._perform(batch)
            batch = []
            refusals += await self._links.perform(operation)
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
        index_of = lru_cache(maxsize=None)(link_index)
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


def _refused(asked: Asked, answers: Sequence[Acknowledgement]) -> list[Refusal]:
    answer = failure(asked, answers)
    return [] if answer is None else [refusal(asked.operation, answer.errno, answer.text)]
