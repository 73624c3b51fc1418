"""A client affects only its own connection: the server answers the next client."""

import asyncio
import logging
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest

from pyflannel.http.server import HttpServer, Limits, Request, Response, Routes
from pyflannel.http.sockets import request

Serve = Callable[..., AbstractAsyncContextManager[Path]]
Steps = Callable[[socket.socket], Awaitable[None]]

DEADLINE_S = 30.0
GET = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"


async def healthz(_: Request) -> Response:
    return Response.text(200, "flanneld is healthy")


HEALTH: Routes = {("GET", "/healthz"): healthz}


@asynccontextmanager
async def tcp_server(*, limits: Limits | None = None, routes: Routes = HEALTH) -> AsyncIterator[int]:
    """Serve on a TCP port of the loopback device during the block, which gets the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # a slow client soon fills this buffer
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(HttpServer(routes, limits=limits).serve(listener))
        try:
            async with asyncio.timeout(DEADLINE_S):
                yield listener.getsockname()[1]
        finally:
            task.cancel()


async def connect(port: int, *, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", port))
    return client


async def read_all(client: socket.socket) -> bytes:
    loop, data = asyncio.get_running_loop(), bytearray()
    while piece := await loop.sock_recv(client, 4096):
        data += piece
    return bytes(data)


async def ask(port: int) -> bytes:
    """Return the answer to one normal request."""
    with await connect(port) as client:
        await asyncio.get_running_loop().sock_sendall(
            client, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        )
        return await read_all(client)


def test_a_client_that_reads_late_does_not_end_the_server() -> None:
    """The client with a small buffer reads the answers to 100 pipelined requests late."""

    async def attack() -> tuple[bytes, bytes]:
        answered = 0
        all_answered = asyncio.Event()

        async def count(_: Request) -> Response:
            nonlocal answered
            answered += 1
            if answered == 100:
                all_answered.set()
            return Response.text(200, "flanneld is healthy")

        async with tcp_server(routes={("GET", "/healthz"): count}) as port:
            with await connect(port, receive_buffer=2048) as client:
                await asyncio.get_running_loop().sock_sendall(client, GET * 100)
                client.shutdown(socket.SHUT_WR)
                await all_answered.wait()
                for _ in range(
                    20
                ):  # the server reads the end of the requests and closes with a non-empty buffer
                    await asyncio.sleep(0)
                taken = await read_all(client)
            return taken, await ask(port)

    taken, next_answer = asyncio.run(attack())

    assert taken.count(b"HTTP/1.1 200 OK\r\n") == 100
    assert next_answer.startswith(b"HTTP/1.1 200")


def test_a_large_answer_over_a_unix_socket_does_not_end_the_server(serve: Serve) -> None:
    """`flannelctl status` with thousands of leases gets more data than a socket buffers."""
    # At some of these sizes the rest fits below asyncio's high-water mark.
    sizes = range(100_000, 400_000, 15_000)

    async def large(request: Request) -> Response:
        return Response(status=200, body=bytes(int(request.body)))

    async def ask_all() -> list[int]:
        async with serve({("GET", "/status"): large}) as path:
            return [
                len((await request(path, "GET", "/status", body=b"%d" % size, deadline_s=20)).body)
                for size in sizes
            ]

    assert asyncio.run(ask_all()) == list(sizes)


def test_a_defect_met_by_one_connection_does_not_end_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """The connection is the boundary of any error: it is logged, and the next client is served."""
    failures = [ZeroDivisionError()]

    def fails_once(_: socket.socket) -> bool:
        if failures:
            raise failures.pop()
        return True

    async def attack() -> bytes:
        listener = socket.create_server(("127.0.0.1", 0))
        async with asyncio.TaskGroup() as tasks, asyncio.timeout(DEADLINE_S):
            task = tasks.create_task(HttpServer(HEALTH, admit=fails_once).serve(listener))
            port = listener.getsockname()[1]
            with suppress(ConnectionError):  # the request may be unread when the connection ends
                assert await ask(port) == b""
            answer = await ask(port)
            task.cancel()
        return answer

    with caplog.at_level(logging.ERROR):
        next_answer = asyncio.run(attack())

    assert next_answer.startswith(b"HTTP/1.1 200")
    assert "ZeroDivisionError" in caplog.text


async def ended(client: socket.socket) -> bool:
    """Return whether the server closed the connection."""
    try:
        return await asyncio.get_running_loop().sock_recv(client, 1) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize("sent", [b"", b"G"], ids=["silent", "one byte of a request"])
def test_idle_clients_do_not_block_an_active_client(sent: bytes) -> None:
    """All places are taken by silent clients. Only the oldest silent client is disconnected."""

    async def attack() -> tuple[bytes, bool, int]:
        places = Limits().connections
        async with tcp_server() as port:
            with ExitStack() as held:
                idle = [held.enter_context(await connect(port)) for _ in range(places)]
                for client in idle:
                    await asyncio.get_running_loop().sock_sendall(client, sent)
                answer = await ask(port)
                oldest_ended = await ended(idle[0])
                return answer, oldest_ended, sum(is_closed(client) for client in idle[1:])

    answer, oldest_ended, others_ended = asyncio.run(attack())

    assert answer.startswith(b"HTTP/1.1 200")
    assert oldest_ended
    assert others_ended == 0


def is_closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except BlockingIOError:
        return False


def test_a_client_keeps_its_place_while_its_answer_is_prepared() -> None:
    """Idle clients are evicted, but no client that waits for the server."""

    async def attack() -> bytes:
        asked, may_answer = asyncio.Event(), asyncio.Event()

        async def slow(_: Request) -> Response:
            asked.set()
            await may_answer.wait()
            return Response.text(200, "done")

        async with tcp_server(limits=Limits(connections=2), routes={("GET", "/healthz"): slow}) as port:
            honest = asyncio.ensure_future(ask(port))
            await asked.wait()
            with ExitStack() as held:
                idle = [held.enter_context(await connect(port)) for _ in range(10)]
                await ended(idle[0])
                may_answer.set()
                return await honest

    assert asyncio.run(attack()).startswith(b"HTTP/1.1 200")


def test_the_number_of_lingering_refused_clients_is_limited() -> None:
    """While every place is busy, a limited number of refused clients can read the reason."""

    async def attack() -> tuple[list[bytes], bool]:
        busy = asyncio.Queue[None]()
        may_answer = asyncio.Event()

        async def slow(_: Request) -> Response:
            busy.put_nowait(None)
            await may_answer.wait()
            return Response.text(200, "done")

        limits = Limits(connections=2, linger_s=DEADLINE_S)
        async with tcp_server(limits=limits, routes={("GET", "/healthz"): slow}) as port:
            served = [asyncio.ensure_future(ask(port)) for _ in range(2)]
            for _ in range(2):
                await busy.get()
            with ExitStack() as held:
                lingering = [held.enter_context(await connect(port)) for _ in range(2)]
                refusals = [await read_all(client) for client in lingering]
                beyond = held.enter_context(await connect(port))
                beyond_ended = await ended(beyond)
                may_answer.set()
                await asyncio.gather(*served)
                return refusals, beyond_ended

    refusals, beyond_ended = asyncio.run(attack())

    assert [refusal[:12] for refusal in refusals] == [b"HTTP/1.1 503"] * 2
    assert beyond_ended


def test_pipelined_requests_leave_turns_for_other_tasks() -> None:
    """Other tasks of the daemon run between the answers to requests that arrived together."""

    async def attack() -> int:
        turns, turns_at_answer = 0, list[int]()

        async def note(_: Request) -> Response:
            turns_at_answer.append(turns)
            return Response(status=200)

        async with tcp_server(routes={("GET", "/healthz"): note}) as port:
            with await connect(port) as client:
                await asyncio.get_running_loop().sock_sendall(client, GET * 50)
                while len(turns_at_answer) < 50:
                    turns += 1
                    await asyncio.sleep(0)
        return len(set(turns_at_answer))

    assert asyncio.run(attack()) == 50


@pytest.mark.parametrize(
    "rest",
    [
        b"Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n",
        b"Content-Length: 99999999\r\n\r\n",
    ],
)
def test_a_refused_head_request_is_answered_without_a_body(
    rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """If the answer had a body, each of these clients would cause a traceback in the log."""

    async def run() -> bytes:
        async with tcp_server() as port:
            client = await connect(port)
            with client:
                await asyncio.get_running_loop().sock_sendall(
                    client, b"HEAD /healthz HTTP/1.1\r\nHost: h\r\n" + rest
                )
                return await read_all(client)

    answer = asyncio.run(run())

    assert answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 413"))
    assert answer.endswith(b"\r\n\r\n")
    assert caplog.records == []


def test_clients_that_do_not_read_cost_little_memory() -> None:
    """The answer is in memory once. Each client has a copy only of the part that it reads next."""
    answer, clients = bytes(8_000_000), 8

    async def large(_: Request) -> Response:
        return Response(status=200, body=answer)

    async def attack() -> int:
        async with tcp_server(routes={("GET", "/healthz"): large}) as port:
            with ExitStack() as opened:
                for _ in range(clients):
                    client = opened.enter_context(await connect(port, receive_buffer=2048))
                    await asyncio.get_running_loop().sock_sendall(client, GET)
                    await asyncio.get_running_loop().sock_recv(client, 1)
                return tracemalloc.get_traced_memory()[1]

    tracemalloc.start()
    try:
        assert asyncio.run(attack()) < len(answer) / 2
    finally:
        tracemalloc.stop()


def test_a_handler_gets_query_and_headers(serve: Serve) -> None:
    seen: list[Request] = []

    async def keep(request: Request) -> Response:
        seen.append(request)
        return Response(status=200)

    async def ask_once() -> None:
        async with serve({("GET", "/echo"): keep}) as path:
            await request(path, "GET", "/echo?network=blue", deadline_s=20)

    asyncio.run(ask_once())

    assert (seen[0].path, seen[0].query, seen[0].headers["host"]) == ("/echo", "network=blue", "localhost")
