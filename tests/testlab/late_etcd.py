"""A path to etcd with late and lost responses.

    python tests/testlab/late_etcd.py PORT ADDRESS ETCD_PORT LATE_S LOST_SHARE

The program listens on PORT of all addresses, and sends READY=1 to its NOTIFY_SOCKET. Each request reaches
etcd. If its response is lost, the client does not know the result. Events of a watch are late, but no event
is lost, because all events use one connection.
"""

import asyncio
import random
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

from grpclib.client import Channel, StreamStreamMethod, UnaryUnaryMethod
from grpclib.const import Cardinality, Handler
from grpclib.encoding.base import CodecBase
from grpclib.server import Server, Stream

from pyflannel.kernel.host.machine import notify

_CALLS = ("KV/Range", "KV/Txn", "Lease/LeaseGrant", "Lease/LeaseRevoke", "Lease/LeaseTimeToLive")
_WATCH = "Watch/Watch"
_DEADLINE_S = 60.0


class _Undecoded(CodecBase):
    """Messages are not decoded."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class _LateEtcd:
    """The services of etcd that flanneld uses, with late and lost responses."""

    def __init__(self, etcd: Channel, late_s: float, lost_share: float) -> None:
        self._etcd = etcd
        self._late_s = late_s
        self._lost_share = lost_share

    def __mapping__(self) -> Mapping[str, Handler]:
        handlers = {}
        for name in _CALLS:
            path = f"/etcdserverpb.{name}"
            handlers[path] = Handler(self._call(path), Cardinality.UNARY_UNARY, bytes, bytes)
        watch = f"/etcdserverpb.{_WATCH}"
        handlers[watch] = Handler(self._watch(watch), Cardinality.STREAM_STREAM, bytes, bytes)
        return handlers

    def _call(self, path: str) -> Any:
        method: UnaryUnaryMethod[bytes, bytes] = UnaryUnaryMethod(self._etcd, path, bytes, bytes)

        async def answer(stream: Stream[bytes, bytes]) -> None:
            request = await stream.recv_message()
            assert request is not None
            found = await method(request, timeout=_DEADLINE_S)
            await asyncio.sleep(self._late_s)
            if random.random() < self._lost_share:
                await asyncio.sleep(_DEADLINE_S)  # the client gives up earlier, which ends this call
            await stream.send_message(found)

        return answer

    def _watch(self, path: str) -> Any:
        method: StreamStreamMethod[bytes, bytes] = StreamStreamMethod(self._etcd, path, bytes, bytes)

        async def answer(stream: Stream[bytes, bytes]) -> None:
            async with AsyncExitStack() as opened:
                onward = await opened.enter_async_context(method.open())
                await onward.send_request()
                tasks = await opened.enter_async_context(asyncio.TaskGroup())
                loop = asyncio.get_running_loop()
                under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

                async def pass_requests() -> None:
                    async for request in stream:
                        await onward.send_message(request)

                async def receive() -> None:
                    async for event in onward:
                        under_way.put_nowait((loop.time() + self._late_s, event))

                async def pass_events() -> None:
                    while True:
                        at, event = await under_way.get()
                        await asyncio.sleep(at - loop.time())
                        await stream.send_message(event)

                for work in (pass_requests, receive, pass_events):
                    tasks.create_task(work(), name=work.__name__)

        return answer


async def _serve(port: int, address: str, etcd_port: int, late_s: float, lost_share: float) -> None:
    async with Channel(address, etcd_port, codec=_Undecoded()) as etcd:
        server = Server([_LateEtcd(etcd, late_s, lost_share)], codec=_Undecoded())
        await server.start("0.0.0.0", port)
        notify("READY=1")
        await server.wait_closed()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(
            _serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))
        )
