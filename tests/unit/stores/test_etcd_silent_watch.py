"""A watch without responses is lost, even if the connection works."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from grpclib.const import Cardinality, Handler
from grpclib.server import Server

from pyflannel.errors import StoreError
from pyflannel.model.store_record import StoreChanges
from pyflannel.stores.etcd import watch as watches
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.etcd.rpc_grpc import WatchBase
from pyflannel.stores.etcd.rpc_pb2 import (
    AuthenticateRequest,
    Event,
    KeyValue,
    RangeRequest,
    ResponseHeader,
    WatchResponse,
)
from pyflannel.stores.etcd.store import EtcdStore

SHORT_S = 0.2
PATIENCE_S = 30


@dataclass
class FakeMember(WatchBase):
    """Confirms each watch, and answers a number of progress requests.

    Attributes:
        requests: number of progress requests.
        floods: True if the member sends changes without end.
    """

    answers: int
    requests: int = 0
    floods: bool = False

    async def Watch(self, stream: Any) -> None:
        await stream.recv_message()
        await stream.send_message(response(created=True))
        while self.floods:
            kv = KeyValue(key=b"/net/subnets/a", value=bytes(10_000), mod_revision=2)
            await stream.send_message(response(events=[Event(kv=kv)]))
        while await stream.recv_message() is not None:
            self.requests += 1
            if self.requests <= self.answers:
                await stream.send_message(response(watch_id=-1))


def response(**fields: Any) -> WatchResponse:
    return WatchResponse(header=ResponseHeader(revision=9), **fields)


@asynccontextmanager
async def serving(*services: Any) -> AsyncIterator[EtcdStore]:
    """Return a store with one member that has these services."""
    server = Server(services)
    await server.start("127.0.0.1", 0)
    assert server._server is not None
    store = EtcdStore([Endpoint("127.0.0.1", server._server.sockets[0].getsockname()[1])], "/net")
    try:
        async with asyncio.timeout(PATIENCE_S):
            yield store
    finally:
        await store.close()
        server.close()
        await server.wait_closed()


async def until(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "SILENT_S", SHORT_S)
    monkeypatch.setattr(watches, "ANSWER_S", SHORT_S)


def test_a_member_that_stops_responding_is_lost() -> None:
    """The member answers pings, but its watch sends nothing."""

    async def check() -> None:
        async with serving(FakeMember(answers=2)) as store:
            async with store.watch("", 1) as watch:
                assert await watch.next() == StoreChanges((), 1)
                with pytest.raises(StoreError, match="ended: no response"):
                    await watch.next()

    asyncio.run(check())


def test_a_responding_member_keeps_the_watch() -> None:
    """The revision of an answer to a progress request is ignored, because older etcd reports it before
    earlier events.
    """

    async def check() -> None:
        member = FakeMember(answers=1000)
        async with serving(member) as store, store.watch("", 1) as watch:
            await watch.next()
            waiting = asyncio.ensure_future(watch.next())
            await until(lambda: member.requests >= 5)
            assert not waiting.done()
            waiting.cancel()

    asyncio.run(check())


def test_a_proxy_that_never_answers_is_asked_once_in_each_watch() -> None:
    """Etcd's grpc-proxy does not forward progress requests, and logs an error for each request."""

    async def check() -> None:
        member = FakeMember(answers=0)
        async with serving(member) as store:
            for count in (1, 2):
                async with store.watch("", 1) as watch:
                    await watch.next()
                    waiting = asyncio.ensure_future(watch.next())
                    await asyncio.wait([waiting], timeout=10 * SHORT_S)
                    assert not waiting.done()
                    assert member.requests == count
                    waiting.cancel()

    asyncio.run(check())


def test_a_member_with_a_slow_watcher_is_not_reported_as_silent() -> None:
    """The member is blocked meanwhile, and cannot answer."""

    async def check() -> None:
        member = FakeMember(answers=1)
        async with serving(member) as store:
            async with store.watch("", 1) as watch:
                await watch.next()
                await until(lambda: member.requests == 1)
            member.floods = True
            async with store.watch("", 1) as watch:
                for _ in range(3):
                    await watch.next()
                    await asyncio.sleep(3 * SHORT_S)

    asyncio.run(check())


class Nonsense:
    """A different gRPC server on the port of the member."""

    def __mapping__(self) -> dict[str, Handler]:
        async def answer(stream: Any) -> None:
            await stream.recv_message()
            await stream.send_message(AuthenticateRequest(name="\x08"))

        return {
            "/etcdserverpb.KV/Range": Handler(
                answer, Cardinality.UNARY_UNARY, RangeRequest, AuthenticateRequest
            ),
            "/etcdserverpb.Watch/Watch": Handler(
                answer, Cardinality.STREAM_STREAM, RangeRequest, AuthenticateRequest
            ),
        }


def test_a_member_with_another_protocol_is_a_store_error() -> None:
    async def check() -> None:
        async with serving(Nonsense()) as store:
            for call in (store.list(""), store.watch("", 1).__aenter__()):
                with pytest.raises(StoreError, match="does not use etcd's protocol"):
                    await call

    asyncio.run(check())
