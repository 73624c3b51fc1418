"""A watch at one member. The watch ends if the member or the connection ends, or if the history is
compacted.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

from grpclib.client import Stream
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import Change, DeleteSeen, PutSeen, StoreChanges
from pyflannel.stores.etcd.cluster import Member
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.etcd.failure import explain, hint_of, within
from pyflannel.stores.etcd.keys import KeySpace
from pyflannel.stores.etcd.rpc_grpc import WatchStub
from pyflannel.stores.etcd.rpc_pb2 import (
    Event,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)

SILENT_S = 5.0
"""Seconds without a response, after which the watch requests a progress report from the member."""

ANSWER_S = 5.0
"""Deadline in seconds for the progress report. Without a request, etcd reports progress every 10 minutes."""

# With this setting, a member that lost the connection to the other members ends the watch. Without this
# setting, the member would send nothing.
_REQUIRE_LEADER = {"hasleader": "true"}

_READ_AHEAD = 10
"""Maximum number of responses that are read but not yet returned by `next`. If there are more, the member has
to wait."""

_REQUESTED = -1
"""`watch_id` of the answer to a progress request."""

_PROGRESS_REQUEST = WatchRequest(progress_request=WatchProgressRequest())

_Stream = Stream[WatchRequest, WatchResponse]


class Watch:
    """A watch of the changes after revision `after`, at one member. The caller of `start` must close the
    watch.

    One task reads, and another task requests progress reports. When one of these tasks ends, `next` raises an
    error.

    Attributes:
        member: the member that serves the watch.
        revision: revision of the member when it confirmed the watch. This revision may be older than the
            revision of the cluster.
    """

    def __init__(self, keys: KeySpace, after: int, member: Member, answering: set[Endpoint]) -> None:
        """`answering`: the members that have answered a progress request. This watch adds its member to
        this set.
        """
        self.member = member
        self.revision = 0
        self._keys = keys
        self._after = after
        self._answering = answering
        self._tasks: list[asyncio.Task[None]] = []
        self._arrived: asyncio.Queue[WatchResponse | None] = asyncio.Queue(_READ_AHEAD)
        self._taken: list[WatchResponse] = []
        self._life = asyncio.Event()
        self._end: StoreError | None = None
        self._is_first = True

    async def start(self, prefix: str) -> None:
        """Watch all keys under `prefix`; return when the member has confirmed the watch.

        The watch begins at revision `after`, and the changes of this revision are ignored. etcd 3.4 lets a
        watch begin at a compacted revision, and does not report a key that was deleted at that revision (etcd
        issue 18089).

        Raises:
            GRPCError: the member refused the watch.
            StreamTerminatedError: the connection broke. Other errors in BROKEN may also mean a refusal.
        """
        start, end = self._keys.range_of(prefix)
        request = WatchCreateRequest(
            key=start, range_end=end, start_revision=max(self._after, 1), progress_notify=True, fragment=True
        )
        confirmed: asyncio.Future[_Stream] = asyncio.get_running_loop().create_future()
        # One task reads all responses: grpclib 0.4 cancels the waiting task when the connection breaks (see
        # `apart`), and a task for each response would take longer than the reading.
        reading = self._run(self._read(WatchRequest(create_request=request), confirmed), "etcd watch")
        waits: list[asyncio.Future[Any]] = [reading, confirmed]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if not confirmed.done():
            raise _why(reading)
        self._run(self._require_life(confirmed.result()), "progress requests of an etcd watch")

    async def close(self) -> None:
        """End the tasks. The stream to the member is closed."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def is_lost(self) -> bool:
        """True if the member or the connection failed."""
        return self._end is not None and not isinstance(self._end, CompactedError)

    async def next(self) -> StoreChanges:
        """Wait for changes and return all that have arrived, in etcd's order.

        The changes of one revision are returned together.

        Raises:
            CompactedError: the history of the member no longer contains the revision of the watch.
            StoreError: the watch has ended, and a new watch is required.
        """
        if self._is_first:
            self._is_first = False
            return StoreChanges((), self._after)
        while True:
            responses = await self._whole_responses()
            # etcd sends progress notifications only to a watch that has received all earlier changes.
            progress = [response.header.revision for response in responses if not response.events]
            events = [event for response in responses for event in response.events]
            later = [event for event in events if event.kv.mod_revision > self._after]
            if progress or later:
                # The revision of the header is unsuitable: while a watch catches up, the header of old events
                # contains the newest revision.
                seen = [event.kv.mod_revision for event in later[-1:]]
                return StoreChanges(tuple(map(self._change, later)), max(self._after, *progress, *seen))

    async def _read(self, request: WatchRequest, confirmed: "asyncio.Future[_Stream]") -> None:
        """Receive responses until the watch has ended."""
        async with WatchStub(self.member.channel).Watch.open(metadata=_REQUIRE_LEADER) as stream:
            await stream.send_message(request)
            created = await _received(stream)
            if created.canceled:
                # etcd 3.4 sends this answer to a user without permissions, and also for an expired token.
                raise GRPCError(Status.UNAUTHENTICATED, created.cancel_reason or "the watch was canceled")
            self.revision = created.header.revision
            confirmed.set_result(stream)
            while True:
                response = await _received(stream)
                self._life.set()
                if response.watch_id == _REQUESTED:
                    # This response only shows that the member is running: etcd before 3.4.25 may report a
                    # revision here before it sends earlier events (etcd issue 15220).
                    self._answering.add(self.member.endpoint)
                else:
                    self._raise_if_ended(response)
                    await self._arrived.put(response)

    async def _require_life(self, stream: _Stream) -> None:
        """Raise TimeoutError if the member neither sends anything nor answers a progress request.

        A member that has never answered gets only one request, and its answer is not required. etcd's
        grpc-proxy does not forward progress requests, and logs an error for each request (etcd issue 19710).
        """
        is_asked = False
        while True:
            self._life.clear()
            await asyncio.sleep(SILENT_S)
            must_answer = self.member.endpoint in self._answering
            if self._is_alive() or (is_asked and not must_answer):
                continue
            is_asked = True
            try:
                await within(ANSWER_S, self._ask(stream))
            except TimeoutError:
                if must_answer and not self._is_alive():
                    raise

    async def _ask(self, stream: _Stream) -> None:
        await stream.send_message(_PROGRESS_REQUEST)
        await self._life.wait()

    def _is_alive(self) -> bool:
        return self._life.is_set() or self._arrived.full()  # a slow watcher delays the member

    def _run(self, work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._ended)
        self._tasks.append(task)
        return task

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Make `next` return the earlier responses, and then raise the first error that ended a task."""
        error = _why(task)
        if self._end is None and isinstance(error, StoreError):
            self._end = error
        elif self._end is None:
            why = "no response" if isinstance(error, TimeoutError) else explain(error)
            self._end = StoreError(
                f"the watch at etcd {self.member.endpoint} ended: {why}", hint=hint_of(error)
            )
            self._end.__cause__ = error
        if not self._arrived.full():
            self._arrived.put_nowait(None)  # wake the waiting task

    async def _whole_responses(self) -> list[WatchResponse]:
        """Wait for responses and return the responses that have arrived completely."""
        while not self._taken or self._taken[-1].fragment or not self._arrived.empty():
            if self._end is not None and self._arrived.empty():
                raise self._end
            arrived = await self._arrived.get()
            if arrived is not None:
                self._taken.append(arrived)
        responses, self._taken = self._taken, []
        return responses

    def _raise_if_ended(self, response: WatchResponse) -> None:
        """Raise the cause if the member ends the watch with this response."""
        if response.compact_revision:
            raise CompactedError(self._after + 1, response.compact_revision)
        if response.canceled:
            reason = response.cancel_reason or "no reason given"
            raise StoreError(
                f"etcd at {self.member.endpoint} ended the watch: {reason}",
                hint="flanneld starts a new watch at the last revision.",
            )

    def _change(self, event: Event) -> Change:
        if event.type == Event.DELETE:
            return DeleteSeen(self._keys.relative(event.kv.key), event.kv.mod_revision)
        return PutSeen(self._keys.record(event.kv))


async def _received(stream: _Stream) -> WatchResponse:
    response = await stream.recv_message()
    if response is None:
        # The error is raised inside the stream's block, because the end of the block raises the status of the
        # member.
        raise StreamTerminatedError("the member ended the stream")
    return response


def _why(task: "asyncio.Task[None]") -> BaseException:
    """Return the cause of the unexpected end of a task."""
    if task.cancelled():
        return StreamTerminatedError("the reader was cancelled")
    return task.exception() or StreamTerminatedError("the reader ended")
