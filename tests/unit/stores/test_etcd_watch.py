"""A watch of etcd returns all arrived changes together, and never a part of a revision."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from types import SimpleNamespace

import pytest
from grpclib.exceptions import StreamTerminatedError

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import PutSeen, StoreChanges
from pyflannel.stores.etcd import watch as watches
from pyflannel.stores.etcd.cluster import Member
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.etcd.keys import KeySpace
from pyflannel.stores.etcd.rpc_pb2 import Event, KeyValue, ResponseHeader, WatchRequest, WatchResponse
from pyflannel.stores.etcd.watch import Watch

Check = Callable[[Watch, asyncio.Event], Awaitable[None]]
Watching = Callable[[Sequence[WatchResponse | BaseException], int, Check], None]

KEYS = KeySpace("/net")
PATIENCE_S = 10
BROKE = StreamTerminatedError("the connection broke")
TURNS = 50
"""Turns of the event loop after which every runnable task has run."""


def put(revision: int, name: str = "") -> Event:
    key = KEYS.full(f"subnets/{name or revision}")
    return Event(type=Event.PUT, kv=KeyValue(key=key, value=b"v", mod_revision=revision))


def response(*revisions: int, header: int = 0, fragment: bool = False) -> WatchResponse:
    events = [put(revision, f"{revision}-{number}") for number, revision in enumerate(revisions)]
    return WatchResponse(header=ResponseHeader(revision=header), events=events, fragment=fragment)


class Stream:
    """A double of grpclib's stream: the double returns one message per call; if the message is an exception,
    the double raises the exception.
    """

    def __init__(self, messages: AsyncGenerator[WatchResponse, None]) -> None:
        self._messages = messages

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._messages.aclose()

    async def send_message(self, message: WatchRequest) -> None:
        """Close the stream."""

    async def recv_message(self) -> WatchResponse | None:
        return await anext(self._messages, None)


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Watching:
    """Watch these responses after that revision. The last response arrives when `check` sets the event."""

    async def watch(messages: Sequence[WatchResponse | BaseException], after: int, check: Check) -> None:
        last = asyncio.Event()

        async def come() -> AsyncGenerator[WatchResponse, None]:
            yield WatchResponse(created=True)
            for number, item in enumerate(messages):
                if number == len(messages) - 1:
                    await last.wait()
                if isinstance(item, BaseException):
                    raise item
                yield item

        stub = SimpleNamespace(Watch=SimpleNamespace(open=lambda metadata: Stream(come())))
        monkeypatch.setattr(watches, "WatchStub", lambda channel: stub)
        watch = Watch(KEYS, after, Member.at(Endpoint("127.0.0.1", 1), None), set())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await watch.start("")
                assert await watch.next() == StoreChanges((), after)  # the watch is open
                await check(watch, last)
        finally:
            await watch.close()

    return lambda messages, after, check: asyncio.run(watch(messages, after, check))


def revisions_of(changes: StoreChanges) -> list[int]:
    return [change.record.revision for change in changes.changes if isinstance(change, PutSeen)]


def test_all_arrived_changes_are_returned_together(watching: Watching) -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        first = await watch.next()
        last.set()
        second = await watch.next()

        assert (revisions_of(first), first.revision) == ([4, 5, 6], 6)
        assert (revisions_of(second), second.revision) == ([7], 7)

    watching([response(4), response(5, 6), response(7)], 3, check)


def test_the_changes_of_one_revision_are_returned_together(watching: Watching) -> None:
    """Fragments of a response wait for the rest of the response."""

    async def check(watch: Watch, last: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(watch.next())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert not waiting.done()
        last.set()

        assert revisions_of(await waiting) == [4, 4, 4]

    watching([response(4, 4, fragment=True), response(4)], 3, check)


def test_known_changes_are_skipped_and_the_header_of_old_events_is_ignored(
    watching: Watching,
) -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()
        changes = await watch.next()

        assert (revisions_of(changes), changes.revision) == ([4], 4)

    watching([response(2, 3, header=90), response(4, header=90)], 3, check)


def test_progress_is_returned_without_changes(watching: Watching) -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()

        assert await watch.next() == StoreChanges((), 9)

    watching([response(header=9)], 3, check)


def test_changes_before_the_end_of_the_watch_are_returned_before_the_end(watching: Watching) -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()

        assert revisions_of(await watch.next()) == [4, 5]
        with pytest.raises(StoreError, match="ended: connection lost"):
            await watch.next()

    watching([response(4), response(5), BROKE], 3, check)


def test_a_compacted_history_is_raised_after_the_changes_before_the_compaction(watching: Watching) -> None:
    compacted = WatchResponse(compact_revision=8, canceled=True)

    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()

        assert revisions_of(await watch.next()) == [4]
        with pytest.raises(CompactedError):
            await watch.next()

    watching([response(4), compacted], 3, check)


def test_a_slow_watcher_delays_the_member(watching: Watching) -> None:
    """The number of responses read ahead is limited, and no response is lost."""

    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()
        seen = revisions_of(await watch.next())
        for _ in range(10 * TURNS):
            await asyncio.sleep(0)
        at_once = len(revisions_of(changes := await watch.next()))
        seen += revisions_of(changes)
        while len(seen) < 500:
            seen += revisions_of(await watch.next())

        assert at_once < 100
        assert seen == list(range(4, 504))

    watching([response(revision) for revision in range(4, 504)], 3, check)


@pytest.mark.parametrize(
    "error",
    [
        StreamTerminatedError("the connection broke"),
        ValueError("no message of this kind"),
        TypeError("an unexpected defect"),
        asyncio.CancelledError(),
    ],
)
def test_any_error_of_the_reader_is_raised(watching: Watching, error: BaseException) -> None:
    """Unexpected errors, and cancellations by other tasks, are raised too: `next` never waits forever."""

    async def check(watch: Watch, last: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(watch.next())
        await asyncio.sleep(0)
        last.set()

        for waits in (waiting, watch.next()):
            with pytest.raises(StoreError, match=r"the watch at etcd .* ended"):
                await waits
        assert watch.is_lost

    watching([error], 3, check)


def test_a_stream_that_the_member_ends_is_a_lost_watch(watching: Watching) -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()
        assert revisions_of(await watch.next()) == [4]
        with pytest.raises(StoreError, match="ended"):
            await watch.next()

    watching([response(4)], 3, check)


def test_a_call_that_is_cancelled_loses_nothing(watching: Watching) -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(watch.next())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        last.set()

        assert revisions_of(await watch.next()) == [4, 4, 4]

    watching([response(4, 4, fragment=True), response(4)], 3, check)
