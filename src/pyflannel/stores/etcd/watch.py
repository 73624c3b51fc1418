"""One watch at one member, until the member, the connection or the history ends it."""

import asyncio
from collections.abc import AsyncGenerator

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import Change, Changes, DeleteSeen, PutSeen
from pyflannel.stores.etcd.failure import BROKEN, explain
from pyflannel.stores.etcd.keys import KeySpace
from pyflannel.stores.etcd.member import Member
from pyflannel.stores.etcd.rpc_grpc import WatchStub
from pyflannel.stores.etcd.rpc_pb2 import Event, WatchCreateRequest, WatchRequest, WatchResponse

# A member that is cut off from the others then ends the watch, rather than keep silent.
_REQUIRE_LEADER = {"hasleader": "true"}

_READ_AHEAD = 10
"""Responses that may wait for whoever watches; then the member is held up."""


class Watch:
    """A watch that a member has confirmed; its holder closes it.

    Attributes:
        member: who serves it.
        revision: how far that member was at the time; it may lag behind the cluster.
    """

    def __init__(
        self,
        keys: KeySpace,
        after: int,
        member: Member,
        responses: AsyncGenerator[WatchResponse, None],
        revision: int,
    ) -> None:
        self.member = member
        self.revision = revision
        self._keys = keys
        self._after = after
        self._responses = responses
        self._arrived: asyncio.Queue[WatchResponse | StoreError] = asyncio.Queue(_READ_AHEAD)
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, member: Member, keys: KeySpace, prefix: str, after: int) -> "Watch":
        """Return a watch of all keys under `prefix`, later than revision `after`.

        It begins at `after` itself, which is passed over when it comes: etcd 3.4 lets a watch begin at the
        very revision that was compacted, and then says nothing of a key deleted there (etcd issue 18089).

        Raises:
            GRPCError: the member refused it.
        """
        start, end = keys.range_of(prefix)
        request = WatchRequest(
            create_request=WatchCreateRequest(
                key=start, range_end=end, start_revision=max(after, 1), progress_notify=True, fragment=True
            )
        )
        responses = _responses(member, request)
        created = await anext(responses)
        if created.canceled:
            await responses.aclose()
            # So etcd 3.4 answers a user without rights, and also one whose token has expired.
            raise GRPCError(Status.UNAUTHENTICATED, created.cancel_reason or "the watch was canceled")
        return cls(keys, after, member, responses, created.header.revision)

    async def next(self) -> Changes:
        """Wait for the next changes and return all that have arrived, in etcd's order.

        One revision's are never parted.

        Raises:
            CompactedError: the member's history no longer reaches back.
            StoreError: the watch has ended; watch again.
        """
        if self._reading is None:
            # One task for all responses: grpclib 0.4 cancels the one that waits when the connection breaks
            # (see `apart`), and a task for each response would take longer than to read it. Not in a group,
            # as the store's generator yields while it runs.
            self._reading = asyncio.create_task(self._read(), name="etcd watch")
        while True:
            responses = await self._whole_responses()
            # Progress notifications, which etcd sends only to a watch that has seen all up to there.
            progress = [response.header.revision for response in responses if not response.events]
            events = [event for response in responses for event in response.events]
            later = [event for event in events if event.kv.mod_revision > self._after]
            if progress or later:
                # Not the header's revision: to a watch that catches up, old events come under the newest.
                seen = [event.kv.mod_revision for event in later[-1:]]
                return Changes(tuple(map(self._change, later)), max(self._after, *progress, *seen))

    async def close(self) -> None:
        """Tell the member that nobody listens any more."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.wait([self._reading])
        await self._responses.aclose()

    async def _read(self) -> None:
        """Let responses arrive until the watch has ended."""
        try:
            async for response in self._responses:
                ended = self._ended(response)
                await self._arrived.put(ended or response)
                if ended is not None:
                    return
        except BROKEN as error:
            lost = StoreError(
                f"the watch at etcd {self.member.endpoint} ended: {explain(error)}",
                hint="Watch again from the last revision seen.",
            )
            lost.__cause__ = error
            await self._arrived.put(lost)

    async def _whole_responses(self) -> list[WatchResponse]:
        """Wait for responses and return those that have arrived, none without its last fragment."""
        responses: list[WatchResponse] = []
        while not responses or responses[-1].fragment or not self._arrived.empty():
            arrived = await self._arrived.get()
            if isinstance(arrived, WatchResponse):
                responses.append(arrived)
            elif responses and not responses[-1].fragment:
                self._arrived.put_nowait(arrived)  # what came before it is told first
                break
            else:
                raise arrived
        return responses

    def _ended(self, response: WatchResponse) -> StoreError | None:
        """Return why the member ends the watch with this response, if it does."""
        if response.compact_revision:
            return CompactedError(self._after + 1, response.compact_revision)
        if not response.canceled:
            return None
        reason = response.cancel_reason or "no reason given"
        return StoreError(
            f"etcd at {self.member.endpoint} ended the watch: {reason}",
            hint="Watch again from the last revision seen.",
        )

    def _change(self, event: Event) -> Change:
        if event.type == Event.DELETE:
            return DeleteSeen(self._keys.relative(event.kv.key), event.kv.mod_revision)
        return PutSeen(self._keys.record(event.kv))


async def _responses(member: Member, request: WatchRequest) -> AsyncGenerator[WatchResponse, None]:
    async with WatchStub(member.channel).Watch.open(metadata=_REQUIRE_LEADER) as stream:
        await stream.send_message(request)
        while (response := await stream.recv_message()) is not None:
            yield response
        # Within the stream's scope, so that leaving it tells the status that the member ended with.
        raise StreamTerminatedError("the member ended the stream")
