"""A watch of etcd tells all that has arrived at once, and no revision in parts."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest
from grpclib.exceptions import StreamTerminatedError

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.store_record import Changes, PutSeen
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.etcd.keys import KeySpace
from pyflannel.stores.etcd.member import Member
from pyflannel.stores.etcd.rpc_pb2 import Event, KeyValue, ResponseHeader, WatchResponse
from pyflannel.stores.etcd.watch import Watch

KEYS = KeySpace("/net")
TURNS = 50
"""After so many turns of the loop whatever can go on has gone on."""


def put(revision: int, name: str = "") -> Event:
    key = KEYS.full(f"subnets/{name or revision}")
    return Event(type=Event.PUT, kv=KeyValue(key=key, value=b"v", mod_revision=revision))


def response(*revisions: int, header: int = 0, fragment: bool = False) -> WatchResponse:
    events = [put(revision, f"{revision}-{number}") for number, revision in enumerate(revisions)]
    return WatchResponse(header=ResponseHeader(revision=header), events=events, fragment=fragment)


async def watching(
    responses: Sequence[WatchResponse], after: int, check: Callable[[Watch, asyncio.Event], Any]
) -> None:
    """Watch after that revision what comes, the last response only when `check` sets the event."""
    last = asyncio.Event()

    async def come() -> AsyncGenerator[WatchResponse, None]:
        for number, item in enumerate(responses):
            if number == len(responses) - 1:
                await last.wait()
            yield item
        raise StreamTerminatedError("the connection broke")

    watch = Watch(KEYS, after, Member.at(Endpoint("127.0.0.1", 1), None), come(), 0)
    try:
        await check(watch, last)
    finally:
        await watch.close()


def revisions_of(changes: Changes) -> list[int]:
    return [change.record.revision for change in changes.changes if isinstance(change, PutSeen)]


def test_all_that_has_arrived_is_told_at_once() -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        first = await watch.next()
        last.set()
        second = await watch.next()

        assert (revisions_of(first), first.revision) == ([4, 5, 6], 6)
        assert (revisions_of(second), second.revision) == ([7], 7)

    asyncio.run(watching([response(4), response(5, 6), response(7)], 3, check))


def test_one_revision_is_never_parted() -> None:
    """What has arrived of a response in fragments waits for the rest."""

    async def check(watch: Watch, last: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(watch.next())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert not waiting.done()
        last.set()

        assert revisions_of(await waiting) == [4, 4, 4]

    asyncio.run(watching([response(4, 4, fragment=True), response(4)], 3, check))


def test_what_was_seen_before_is_passed_over_and_the_header_of_old_events_means_nothing() -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()
        changes = await watch.next()

        assert (revisions_of(changes), changes.revision) == ([4], 4)

    asyncio.run(watching([response(2, 3, header=90), response(4, header=90)], 3, check))


def test_progress_is_told_without_changes() -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()

        assert await watch.next() == Changes((), 9)

    asyncio.run(watching([response(header=9)], 3, check))


def test_what_came_before_the_end_is_told_before_it() -> None:
    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()

        assert revisions_of(await watch.next()) == [4, 5]
        with pytest.raises(StoreError, match="ended: connection lost"):
            await watch.next()

    asyncio.run(watching([response(4), response(5)], 3, check))


def test_a_history_that_is_gone_is_told_after_what_came_before() -> None:
    compacted = WatchResponse(compact_revision=8, canceled=True)

    async def check(watch: Watch, last: asyncio.Event) -> None:
        last.set()

        assert revisions_of(await watch.next()) == [4]
        with pytest.raises(CompactedError):
            await watch.next()

    asyncio.run(watching([response(4), compacted], 3, check))


def test_who_does_not_take_holds_the_member_up() -> None:
    """However much comes, only so much is read ahead; nothing of it is lost."""

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

    asyncio.run(watching([response(revision) for revision in range(4, 504)], 3, check))
