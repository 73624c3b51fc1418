"""The server serves normal clients and enforces its limits."""

import asyncio
import contextlib
import logging
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyflannel.http.server import Limits, Request, Response
from pyflannel.http.sockets import request

Serve = Callable[..., AbstractAsyncContextManager[Path]]
Say = Callable[..., Awaitable[bytes]]

GET = b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\n"
LAST = b"GET /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


def put(body: bytes, *, declared: int | None = None) -> bytes:
    length = len(body) if declared is None else declared
    return b"PUT /echo HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % length + body


def test_pipelined_requests_are_answered_in_order(say: Say) -> None:
    answers = asyncio.run(say(put(b"first") + put(b"second") + LAST))

    assert answers.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert answers.index(b"first") < answers.index(b"second") < answers.index(b"nothing")


def test_an_answer_contains_its_length_and_date(say: Say) -> None:
    head = asyncio.run(say(LAST)).partition(b"\r\n\r\n")[0]

    assert b"Content-Length: 7" in head
    assert b"Date: " in head


def test_a_head_request_is_answered_like_get_without_a_body(say: Say) -> None:
    answer = asyncio.run(say(LAST.replace(b"GET", b"HEAD")))

    assert b"Content-Length: 7" in answer
    assert answer.endswith(b"\r\n\r\n")


def test_http_1_0_closes_after_one_answer(say: Say) -> None:
    answer = asyncio.run(say(b"GET /echo?verbose HTTP/1.0\r\n\r\n"))

    assert answer.startswith(b"HTTP/1.1 200")


def test_the_chunks_of_a_request_are_joined(say: Say) -> None:
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    answer = asyncio.run(
        say(b"PUT /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + LAST)
    )

    assert b"\r\n\r\nabcde" in answer


def test_a_waiting_client_gets_100_continue(serve: Serve) -> None:
    async def ask() -> tuple[bytes, bytes]:
        async with serve() as path:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(put(b"", declared=4).replace(b"Host", b"Expect: 100-continue\r\nHost"))
            interim = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"body")
            final = await reader.readuntil(b"body")
            writer.close()
            return interim, final

    interim, final = asyncio.run(ask())

    assert interim.startswith(b"HTTP/1.1 100")
    assert final.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"404"),
        (b"DELETE /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"405"),
        (b"GET /echo HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
        (b"GET /echo HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"PUT /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", b"501"),
    ],
)
def test_the_status_identifies_the_fault(say: Say, data: bytes, status: bytes) -> None:
    answer = asyncio.run(say(data))

    assert answer.startswith(b"HTTP/1.1 " + status)


def test_a_wrong_method_is_answered_with_the_allowed_methods(say: Say) -> None:
    answer = asyncio.run(say(b"DELETE /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"))

    assert b"\r\nAllow: GET, PUT\r\n" in answer


def test_a_body_that_is_declared_too_long_is_refused_without_a_read(say: Say) -> None:
    answer = asyncio.run(say(put(b"x" * 10, declared=10**9), limits=Limits(body_bytes=100), ends=True))

    assert answer.startswith(b"HTTP/1.1 413")


def test_a_body_that_grows_too_long_is_refused_and_the_reason_arrives(say: Say) -> None:
    """The client is still sending when its request is refused. The client must be able to read the reason."""
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    answer = asyncio.run(
        say(
            b"PUT /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 20,
            limits=Limits(body_bytes=100_000),
            ends=True,
        )
    )

    assert answer.startswith(b"HTTP/1.1 413")


def test_endless_headers_are_refused(say: Say) -> None:
    answer = asyncio.run(say(b"GET /echo HTTP/1.1\r\nA: " + b"x" * 100_000, ends=True))

    assert answer.startswith(b"HTTP/1.1 431")


def test_a_very_slow_request_is_refused(serve: Serve) -> None:
    """A client that sends single bytes is disconnected at the deadline of a request."""

    async def trickle() -> bytes:
        async with serve(limits=Limits(request_s=0.1, linger_s=0.1)) as path:
            reader, writer = await asyncio.open_unix_connection(path)
            answer = asyncio.ensure_future(reader.read())
            while not answer.done():
                writer.write(b"G")
                await asyncio.wait([answer], timeout=0.02)
            writer.close()
            return await answer

    assert asyncio.run(trickle()).startswith(b"HTTP/1.1 408")


def test_a_silent_client_is_disconnected(say: Say) -> None:
    answer = asyncio.run(say(b"", limits=Limits(idle_s=0.05)))

    assert answer == b""


def test_a_client_that_does_not_read_its_answer_is_disconnected(serve: Serve) -> None:
    async def huge(_: Request) -> Response:
        return Response(status=200, body=bytes(10_000_000))

    async def ask() -> int:
        async with serve({("GET", "/echo"): huge}, limits=Limits(response_s=0.05)) as path:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))
                client.send(GET)
                hang_up = select.poll()
                hang_up.register(client, select.POLLHUP)
                return len(await asyncio.to_thread(hang_up.poll, 20_000))

    assert asyncio.run(ask()) == 1


def test_clients_above_the_limit_are_refused_while_every_place_is_busy(serve: Serve) -> None:
    async def ask() -> tuple[int, list[int]]:
        busy, may_answer = asyncio.Queue[None](), asyncio.Event()

        async def slow(_: Request) -> Response:
            busy.put_nowait(None)
            await may_answer.wait()
            return Response(status=200)

        async with serve({("GET", "/echo"): slow}, limits=Limits(connections=2)) as path:
            served = [asyncio.ensure_future(request(path, "GET", "/echo", deadline_s=20)) for _ in range(2)]
            for _ in range(2):
                await busy.get()
            refused = await request(path, "GET", "/echo", deadline_s=20)
            may_answer.set()
            return refused.status, [answer.status for answer in await asyncio.gather(*served)]

    refused, answered = asyncio.run(ask())

    assert refused == 503
    assert answered == [200, 200]


def test_a_place_is_free_again_after_its_client_disconnected(serve: Serve) -> None:
    async def ask() -> list[int]:
        async with serve(limits=Limits(connections=1)) as path:
            return [(await request(path, "GET", "/echo", deadline_s=20)).status for _ in range(5)]

    assert asyncio.run(ask()) == [200] * 5


def test_a_client_that_is_not_admitted_gets_403(serve: Serve) -> None:
    async def ask() -> bytes:
        async with serve(admit=lambda _: False) as path:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"GET /echo HTTP/1.1\r\n")
            await writer.drain()
            answer = await reader.read()
            with contextlib.suppress(ConnectionError):  # if the server has closed the connection
                writer.write(b"Host: h\r\n\r\n")
                await writer.drain()
            writer.close()
            return answer

    assert asyncio.run(ask()).startswith(b"HTTP/1.1 403")


def test_a_failing_handler_affects_only_one_answer(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Request) -> Response:
        raise ZeroDivisionError

    async def ask() -> tuple[int, int]:
        async with serve({("GET", "/echo"): broken}) as path:
            first = await request(path, "GET", "/echo", deadline_s=20)
            second = await request(path, "GET", "/elsewhere", deadline_s=20)
            return first.status, second.status

    with caplog.at_level(logging.ERROR):
        statuses = asyncio.run(ask())

    assert statuses == (500, 404)
    assert "ZeroDivisionError" in caplog.text


def test_a_hanging_handler_is_cancelled(serve: Serve) -> None:
    async def hanging(_: Request) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def ask() -> int:
        async with serve({("GET", "/echo"): hanging}, limits=Limits(handler_s=0.05)) as path:
            return (await request(path, "GET", "/echo", deadline_s=20)).status

    assert asyncio.run(ask()) == 504


@given(data=st.binary(max_size=300) | st.binary(max_size=60).map(lambda tail: GET + tail))
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
)
def test_no_received_bytes_damage_the_server(serve: Serve, data: bytes) -> None:
    """After any input of a client, the next client is served."""

    async def ask() -> int:
        async with serve(limits=Limits(linger_s=0.05)) as path:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(data)
            writer.write_eof()
            await reader.read()
            writer.close()
            return (await request(path, "GET", "/echo", deadline_s=20)).status

    assert asyncio.run(ask()) == 200
