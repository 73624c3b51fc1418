"""One watch at one member, until the member, the connection or the history ends it."""

from collections.abc import AsyncGenerator

from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import Change, Changes, DeleteSeen, PutSeen
from pyflannel.stores.etcd.call import apart
from pyflannel.stores.etcd.failure import BROKEN, explain
from pyflannel.stores.etcd.key_space import KeySpace
from pyflannel.stores.etcd.member import Member
from pyflannel.stores.etcd.rpc_grpc import WatchStub
from pyflannel.stores.etcd.rpc_pb2 import Event, WatchCreateRequest, WatchRequest, WatchResponse

# A member that is cut off from the others then ends the watch, rather than keep silent.
_REQUIRE_LEADER = {"hasleader": "true"}


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
        """Wait for the next changes, in etcd's order; one revision's are never parted.

        Raises:
            CompactedError: the member's history no longer reaches back.
            StoreError: the watch has ended; watch again.
        """
        while True:
            events, revision = await self._next_events()
            if not events:
                # A progress notification, which etcd sends only to a watch that has seen all up to there.
                return Changes((), max(revision, self._after))
            if later := [event for event in events if event.kv.mod_revision > self._after]:
                # Not the header's revision: to a watch that catches up, old events come under the newest.
                return Changes(tuple(map(self._change, later)), later[-1].kv.mod_revision)

    async def close(self) -> None:
        """Tell the member that nobody listens any more."""
        await self._responses.aclose()

    async def _next_events(self) -> tuple[list[Event], int]:
        """Return the events of one response, all its fragments together, and the revision in its header."""
        events: list[Event] = []
        while True:
            try:
                response = await apart(self._next_response())
            except BROKEN as error:
                raise StoreError(
                    f"the watch at etcd {self.member.endpoint} ended: {explain(error)}",
                    hint="Watch again from the last revision seen.",
                ) from error
            self._raise_if_canceled(response)
            events += response.events
            if not response.fragment:
                return events, response.header.revision

    async def _next_response(self) -> WatchResponse:
        return await anext(self._responses)

    def _raise_if_canceled(self, response: WatchResponse) -> None:
        if response.compact_revision:
            raise CompactedError(self._after + 1, response.compact_revision)
        if response.canceled:
            reason = response.cancel_reason or "no reason given"
            raise StoreError(
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
