"""A connection ends if no data arrives any more, not if the answer to a ping is late.

A member is not considered silent because this process was stopped.
"""

import asyncio
import ssl
import time
from types import SimpleNamespace
from typing import Any, cast

import h2.config
import h2.connection
import pytest

from pyflannel.stores.etcd import cluster
from pyflannel.stores.etcd.cluster import Connection, Member
from pyflannel.stores.etcd.endpoint import Endpoint

REQUEST = [(":method", "POST"), (":path", "/"), (":scheme", "http"), (":authority", "member")]


class Wire(asyncio.Transport):
    """A connection that accepts data, and records whether it was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.is_closed = False

    def write(self, data: object) -> None:
        """Close the connection."""

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("hears", [True, False])
def test_any_received_data_keeps_the_connection_open(hears: bool) -> None:
    async def test() -> bool:
        protocol = Connection(Endpoint("127.0.0.1", 1), None)._protocol_factory()
        protocol.connection_made(Wire())
        grpc = protocol.connection
        grpc._connection.send_headers(1, REQUEST)  # pings are sent while a call is open
        grpc._ping()
        assert grpc._close_by_ping_handler is not None

        if hears:
            member = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
            member.initiate_connection()
            protocol.data_received(member.data_to_send())
        is_taken_for_alive = grpc._close_by_ping_handler is None

        grpc.close()
        return is_taken_for_alive

    assert asyncio.run(test()) is hears


def test_a_refusal_that_arrived_while_the_process_was_stopped_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refusal = ssl.SSLError("tlsv13 alert certificate required")

    async def read(_: int) -> bytes:
        for _ in range(3):
            time.sleep(0.2)
            await asyncio.sleep(0)
        raise refusal

    async def open_connection(*_: object, **__: object) -> tuple[Any, Any]:
        return SimpleNamespace(read=read), SimpleNamespace(transport=SimpleNamespace(abort=lambda: None))

    async def test() -> ssl.SSLError | None:
        tls = cast(Any, SimpleNamespace(context=lambda: None))
        return await Member.at(Endpoint("127.0.0.1", 1), tls).alert()

    monkeypatch.setattr(cluster, "_ALERT_S", 0.2)
    monkeypatch.setattr(asyncio, "open_connection", open_connection)

    assert asyncio.run(test()) is refusal
