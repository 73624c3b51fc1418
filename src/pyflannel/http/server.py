"""A small HTTP/1.1 server based on h11: routes on one listening socket, with limits for each client."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from http import HTTPStatus

import h11
from msgspec import Struct, field

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


class Request(Struct, frozen=True, kw_only=True):
    """A complete request.

    Attributes:
        method: method as the client sent it, by convention in upper case; HEAD is passed as GET.
        path: the request target without its query, not percent-decoded.
        query: the query of the target, without its question mark, not percent-decoded.
        headers: values by name in lower case; the last value of a repeated name.
    """

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class Response(Struct, frozen=True, kw_only=True):
    """A complete answer. The server adds the headers for length and date."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def text(cls, status: int, text: str, *, headers: tuple[tuple[str, str], ...] = ()) -> "Response":
        """Return an answer of one line for people."""
        return cls(status=status, body=f"{text}\n".encode(), content_type=TEXT, headers=headers)


class Limits(Struct, frozen=True, kw_only=True):
    """Limits of a server. All values are chosen by pyflannel, and are generous for normal clients.

    Attributes:
        connections: open connections. If all connections are in use, a new client replaces the client that
            has kept the server waiting longest. The new client gets status 503 only if the server is
            preparing an answer for every client.
        head_bytes: maximum size of request line and headers together, or of a chunk header, or of the
            trailers.
        body_bytes: maximum size of the body of a request.
        idle_s: maximum time between an answer, or the start of the connection, and the first byte of a
            request.
        request_s: maximum time between the first and the last byte of a request.
        handler_s: maximum time to prepare the answer.
        response_s: maximum time for the client to read the answer.
        linger_s: maximum time for a refused client to stop sending, so that it can read the reason. At most
            `connections` refused clients linger, and further clients are dropped without an answer.
    """

    connections: int = 64
    head_bytes: int = 16 * 1024
    body_bytes: int = 1024 * 1024
    idle_s: float = 60.0
    request_s: float = 10.0
    handler_s: float = 30.0
    response_s: float = 10.0
    linger_s: float = 1.0


READ_BYTES = 64 * 1024
WRITE_BYTES = 64 * 1024
"""Maximum number of bytes of a response that are copied for a client before it has read the previous
bytes."""


async def next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    """Return the next h11 event. The end of the stream is also an event.

    Raises:
        h11.RemoteProtocolError: the other side violates HTTP/1.1, or exceeds a limit of the connection.
    """
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(READ_BYTES))
    return event


Handler = Callable[[Request], Awaitable[Response]]


class _RefusedError(Exception):
    """The request is refused, and the connection is closed after the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Conversation:
    """Answers the requests of one connection in order, including pipelined requests, until either side
    closes it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_bytes)
        self._is_head = (
            False  # the current request is HEAD, so the response has no body, even if it is a refusal
        )

    async def run(self, answer: Handler) -> None:
        """Answer until the client disconnects, is silent for too long or exceeds a limit.

        Raises:
            OSError: the connection broke, or the client did not read an answer in time (TimeoutError).
        """
        while await self._has_more():
            try:
                request = await self._receive()
            except _RefusedError as refused:
                await self._refuse(refused)
                return
            if request is None:
                return
            await self._send(await answer(request))
            if (self._h11.our_state, self._h11.their_state) != (h11.DONE, h11.DONE):
                return
            self._h11.start_next_cycle()
            await asyncio.sleep(0)  # let other tasks run between pipelined requests

    async def _has_more(self) -> bool:
        """Return whether another request has begun; False after a long silence."""
        if self._h11.trailing_data[0]:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.idle_s):
                data = await self._reader.read(READ_BYTES)
                self._h11.receive_data(data)
                return bool(data)
        return False

    async def _receive(self) -> Request | None:
        """Return a complete request, or None if the client disconnected."""
        try:
            async with asyncio.timeout(self._limits.request_s):
                return await self._request()
        except TimeoutError:
            raise _RefusedError(408, f"the request took longer than {self._limits.request_s:g} s") from None
        except h11.RemoteProtocolError as error:
            raise _RefusedError(error.error_status_hint, str(error)) from error

    async def _request(self) -> Request | None:
        self._is_head = False
        head = await next_event(self._h11, self._reader)
        if not isinstance(head, h11.Request):
            return None
        self._is_head = head.method == b"HEAD"
        self._check_length(_declared_length(head))
        if self._h11.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray()
        while isinstance(event := await next_event(self._h11, self._reader), h11.Data):
            self._check_length(len(body) + len(event.data))
            body += event.data
        path, _, query = head.target.decode("ascii").partition("?")
        return Request(
            method=head.method.decode("ascii"),
            path=path,
            query=query,
            headers={name.decode("ascii"): value.decode("latin-1") for name, value in head.headers},
            body=bytes(body),
        )

    def _check_length(self, length: int) -> None:
        if length > self._limits.body_bytes:
            raise _RefusedError(413, f"the body is longer than {self._limits.body_bytes} bytes")

    async def _send(self, response: Response) -> None:
        headers = [
            ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            *response.headers,
        ]
        reason = HTTPStatus(response.status).phrase
        async with asyncio.timeout(self._limits.response_s):
            self._write(h11.Response(status_code=response.status, reason=reason, headers=headers))
            if not self._is_head:
                for start in range(0, len(response.body), WRITE_BYTES):
                    self._write(h11.Data(data=response.body[start : start + WRITE_BYTES]))
                    await self._writer.drain()
            self._write(h11.EndOfMessage())
            await self._writer.drain()

    def _write(self, event: h11.Event) -> None:
        self._writer.write(self._h11.send(event) or b"")

    async def _refuse(self, refused: _RefusedError) -> None:
        await self._send(Response.text(refused.status, str(refused), headers=(("Connection", "close"),)))
        await linger(self._reader, self._writer, self._limits.linger_s)


async def linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, linger_s: float) -> None:
    """Stop sending, and read until the client has finished. Closing a socket with unread bytes would lose
    the answer.
    """
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(linger_s):
            while await reader.read(READ_BYTES):
                pass


def _drop(transport: asyncio.WriteTransport) -> None:
    """Close the connection now, and discard bytes that the client did not read.

    `abort` is called only while bytes are left. asyncio (Python 3.11) raises AttributeError if `abort` is
    called after a transport was closed. After `close`, a transport is closed as soon as its last bytes are
    sent.
    """
    if transport.get_write_buffer_size():
        transport.abort()
    else:
        transport.close()


def _declared_length(head: h11.Request) -> int:
    """Return the Content-Length, or 0 if the header is missing. h11 has checked that the value is a
    number.
    """
    return next((int(value) for name, value in head.headers if name == b"content-length"), 0)


log = logging.getLogger(__name__)

Routes = Mapping[tuple[str, str], Handler]
"""Handlers by method and path. The handler of GET is also used for HEAD."""

Admit = Callable[[socket.socket], bool]


def admit_all(_: socket.socket) -> bool:
    """Admit every client."""
    return True


class _Places:
    """The limited number of places for connections of clients. A client that keeps the server waiting can
    lose its place.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        # clients for which the server waits; the longest wait is first
        self._waiting: dict[asyncio.WriteTransport, None] = {}
        self._busy: set[asyncio.WriteTransport] = set()  # clients for which the server prepares an answer

    @contextlib.contextmanager
    def take(self, transport: asyncio.WriteTransport) -> Iterator[bool]:
        """Hold a place during the block. Yield False if no place is free."""
        if has_place := self._make_room():
            self._waiting[transport] = None
        try:
            yield has_place
        finally:
            self._waiting.pop(transport, None)

    @contextlib.contextmanager
    def keep_busy(self, transport: asyncio.WriteTransport) -> Iterator[None]:
        """Protect a place from eviction during the block. After the block, a new wait begins."""
        self._waiting.pop(transport, None)
        self._busy.add(transport)
        try:
            yield
        finally:
            self._busy.discard(transport)
            self._waiting[transport] = None

    def _make_room(self) -> bool:
        if len(self._waiting) + len(self._busy) < self._count:
            return True
        if not self._waiting:
            return False
        longest = next(iter(self._waiting))
        del self._waiting[longest]
        _drop(longest)  # the client's task ends at its next read or write
        return True


_BACKLOG = 32
"""Maximum number of connections that are accepted in one turn of the event loop, and the length of the
kernel's queue.

This number is smaller than `Limits.connections`, so that newer clients cannot evict a client before its
request is read.
"""


class HttpServer:
    """Answers requests according to its routes.

    Each connection is an error boundary: an error of a client, a handler or the server ends only the
    connection.
    """

    def __init__(self, routes: Routes, *, limits: Limits | None = None, admit: Admit = admit_all) -> None:
        """Serve `routes` within `limits` to the clients that `admit` accepts."""
        self._routes = routes
        self._limits = limits or Limits()
        self._admit = admit
        self._places = _Places(self._limits.connections)
        self._lingering = 0

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled, then close the listening socket and every connection."""
        async with asyncio.TaskGroup() as tasks:

            def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                tasks.create_task(self._converse(reader, writer), name="http connection")

            server = await asyncio.start_server(accepted, sock=listener, backlog=_BACKLOG)
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                server.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A client that disconnects, or does not read its answer, is not an error of the server.
            with contextlib.suppress(OSError):
                if not self._admit(writer.get_extra_info("socket")):
                    await self._turn_away(reader, writer, HTTPStatus.FORBIDDEN)
                    return
                with self._places.take(writer.transport) as has_place:
                    if has_place:
                        await self._attend(reader, writer)
                if not has_place:
                    await self._turn_away(reader, writer, HTTPStatus.SERVICE_UNAVAILABLE)
        except Exception:
            log.exception("Dropped an HTTP connection after an unexpected error")
        finally:
            _drop(writer.transport)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a client that has a place, until it has read its last answer."""

        async def answer(request: Request) -> Response:
            with self._places.keep_busy(writer.transport):
                return await self._answer(request)

        await Conversation(reader, writer, self._limits).run(answer)
        writer.close()
        async with asyncio.timeout(self._limits.response_s):
            await writer.wait_closed()

    async def _turn_away(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: HTTPStatus
    ) -> None:
        """Refuse a client without reading its request. Drop the client without an answer if too many
        refused clients linger.
        """
        if self._lingering >= self._limits.connections:
            return
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        self._lingering += 1
        try:
            writer.write(head.encode("ascii"))
            await linger(reader, writer, self._limits.linger_s)
        finally:
            self._lingering -= 1

    async def _answer(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        handler = self._routes.get((method, request.path))
        if handler is None:
            return self._no_route(request)
        try:
            async with asyncio.timeout(self._limits.handler_s):
                return await handler(request)
        except TimeoutError:
            return Response.text(504, f"the answer was not ready within {self._limits.handler_s:g} s")
        except Exception:
            log.exception("Failed to answer a request method=%s path=%s", request.method, request.path)
            return Response.text(500, "internal error: see the log of flanneld")

    def _no_route(self, request: Request) -> Response:
        allowed = sorted(method for method, path in self._routes if path == request.path)
        if not allowed:
            return Response.text(404, f"{request.path} does not exist")
        return Response.text(
            405, f"{request.path} accepts only {', '.join(allowed)}", headers=(("Allow", ", ".join(allowed)),)
        )
