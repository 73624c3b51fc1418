"""A small HTTP/1.1 server over h11: routes on one listening socket, each client within limits."""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

import h11

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request that arrived whole.

    Attributes:
        method: as sent, upper case by convention; HEAD arrives as GET.
        path: the target without its query, not percent-decoded.
    """

    method: str
    path: str
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer, whole; its length and date are added when it is sent."""

    status: int
    body: bytes = b""
    content_type: str = JSON
    headers: tuple[tuple[str, str], ...] = ()

    @classmethod
    def text(cls, status: int, text: str, *, headers: tuple[tuple[str, str], ...] = ()) -> "Response":
        """Return an answer of one line for people."""
        return cls(status=status, body=f"{text}\n".encode(), content_type=TEXT, headers=headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a server: all are choices of ours, wide for honest clients.

    Attributes:
        connections: open at once. A further one takes the place of the client that has kept the server
            waiting longest; it is answered with 503 only while the server owes an answer to every client.
        head_octets: request line and headers together, also one chunk header or the trailers.
        body_octets: of a request.
        idle_s: from one answer, or the connection, to the first octet of a request.
        request_s: from a request's first octet to its last.
        handler_s: for the answer to be made.
        response_s: for the client to take the answer.
        linger_s: for a client that was refused to stop sending, so that it can read why; at most
            `connections` clients linger without a place, and more are dropped unanswered.
    """

    connections: int = 64
    head_octets: int = 16 * 1024
    body_octets: int = 1024 * 1024
    idle_s: float = 60.0
    request_s: float = 10.0
    handler_s: float = 30.0
    response_s: float = 10.0
    linger_s: float = 1.0


READ_OCTETS = 64 * 1024


async def next_event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    """Return the next h11 event, reading as much as it takes; the stream's end is an event too.

    Raises:
        h11.RemoteProtocolError: the other side does not keep to HTTP/1.1, or to the connection's bounds.
    """
    while (event := connection.next_event()) is h11.NEED_DATA:
        connection.receive_data(await reader.read(READ_OCTETS))
    return event


Handler = Callable[[Request], Awaitable[Response]]


class _RefusedError(Exception):
    """The request is not taken, and the rest of the connection with it."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Conversation:
    """Answers the requests of one connection in turn, pipelined ones too, until either side ends it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.head_octets)

    async def run(self, answer: Handler) -> None:
        """Answer until the client leaves, is silent for too long or breaks a rule.

        Raises:
            OSError: the connection broke, or the client did not take an answer in time (TimeoutError).
        """
        while await self._has_more():
            try:
                request = await self._receive()
            except _RefusedError as refused:
                await self._refuse(refused)
                return
            if request is None:
                return
            await self._send(await answer(request), has_body=request.method != "HEAD")
            if (self._h11.our_state, self._h11.their_state) != (h11.DONE, h11.DONE):
                return
            self._h11.start_next_cycle()
            await asyncio.sleep(0)  # pipelined requests need no wait: other tasks run in between

    async def _has_more(self) -> bool:
        """Return whether the first octets of another request are there; False after a long silence."""
        if self._h11.trailing_data[0]:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.idle_s):
                octets = await self._reader.read(READ_OCTETS)
                self._h11.receive_data(octets)
                return bool(octets)
        return False

    async def _receive(self) -> Request | None:
        """Return one whole request, or None when the client closed instead."""
        try:
            async with asyncio.timeout(self._limits.request_s):
                return await self._request()
        except TimeoutError:
            raise _RefusedError(408, f"the request took longer than {self._limits.request_s:g} s") from None
        except h11.RemoteProtocolError as error:
            raise _RefusedError(error.error_status_hint, str(error)) from error

    async def _request(self) -> Request | None:
        head = await next_event(self._h11, self._reader)
        if not isinstance(head, h11.Request):
            return None
        self._check_length(_declared_length(head))
        if self._h11.they_are_waiting_for_100_continue:
            self._write(h11.InformationalResponse(status_code=100, headers=[]))
        body = bytearray()
        while isinstance(event := await next_event(self._h11, self._reader), h11.Data):
            self._check_length(len(body) + len(event.data))
            body += event.data
        return Request(
            method=head.method.decode("ascii"),
            path=head.target.decode("ascii").partition("?")[0],
            body=bytes(body),
        )

    def _check_length(self, octets: int) -> None:
        if octets > self._limits.body_octets:
            raise _RefusedError(413, f"the body is longer than {self._limits.body_octets} octets")

    async def _send(self, response: Response, *, has_body: bool = True) -> None:
        headers = [
            ("Date", time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())),
            ("Content-Type", response.content_type),
            ("Content-Length", str(len(response.body))),
            *response.headers,
        ]
        reason = HTTPStatus(response.status).phrase
        self._write(h11.Response(status_code=response.status, reason=reason, headers=headers))
        if has_body:
            self._write(h11.Data(data=response.body))
        self._write(h11.EndOfMessage())
        async with asyncio.timeout(self._limits.response_s):
            await self._writer.drain()

    def _write(self, event: h11.Event) -> None:
        self._writer.write(self._h11.send(event) or b"")

    async def _refuse(self, refused: _RefusedError) -> None:
        await self._send(Response.text(refused.status, str(refused), headers=(("Connection", "close"),)))
        await linger(self._reader, self._writer, self._limits.linger_s)


async def linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, linger_s: float) -> None:
    """Send no more, but let the client finish: a socket closed with octets unread loses the answer."""
    writer.write_eof()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(linger_s):
            while await reader.read(READ_OCTETS):
                pass


def _drop(transport: asyncio.WriteTransport) -> None:
    """Close the connection now, and discard octets that the client did not take.

    `abort` is called only while octets are left. asyncio (Python 3.11) raises AttributeError if `abort` is
    called after a transport ended by itself: after `close`, it ends as soon as its last octets are sent.
    """
    if transport.get_write_buffer_size():
        transport.abort()
    else:
        transport.close()


def _declared_length(head: h11.Request) -> int:
    """Return the Content-Length, 0 without one; h11 has seen to it that it is a number."""
    return next((int(value) for name, value in head.headers if name == b"content-length"), 0)


log = logging.getLogger(__name__)

Routes = Mapping[tuple[str, str], Handler]
"""Handlers by method and path; HEAD is answered by GET's."""

Admit = Callable[[socket.socket], bool]


def admit_all(_: socket.socket) -> bool:
    """Let every client in."""
    return True


class _Places:
    """The places of a bounded number of clients. A client that keeps the server waiting can lose its own."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: dict[asyncio.WriteTransport, None] = {}  # for the client; the longest wait first
        self._busy: set[asyncio.WriteTransport] = set()  # the server makes an answer

    @contextlib.contextmanager
    def take(self, transport: asyncio.WriteTransport) -> Iterator[bool]:
        """Hold a place for the length of the block, which gets whether there was one."""
        if has_place := self._make_room():
            self._waiting[transport] = None
        try:
            yield has_place
        finally:
            self._waiting.pop(transport, None)

    @contextlib.contextmanager
    def keep_busy(self, transport: asyncio.WriteTransport) -> Iterator[None]:
        """Make a place safe from eviction for the length of the block; then a new wait begins."""
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
        _drop(longest)  # its task ends at the next read or write
        return True


_BACKLOG = 32
"""Connections accepted in one turn of the event loop, and the kernel's queue of further ones.

It is below `Limits.connections`, so that newer clients cannot evict a client before its request is read.
"""


class HttpServer:
    """Answers requests by its routes.

    Each connection is an error boundary: no error of a client, a handler or the server itself leaves it.
    """

    def __init__(self, routes: Routes, *, limits: Limits | None = None, admit: Admit = admit_all) -> None:
        """Serve `routes` within `limits` to the clients whose socket `admit` lets in."""
        self._routes = routes
        self._limits = limits or Limits()
        self._admit = admit
        self._places = _Places(self._limits.connections)
        self._lingering = 0

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled; the listening socket is then closed, and every connection with it."""
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
            # A client that breaks off, or does not take its answer, is its own affair.
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
        """Converse with a client that has a place, until it has its last answer."""

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
        """Answer without having read anything, whatever was asked; drop it if many linger already."""
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
            return Response.text(504, f"no answer was found within {self._limits.handler_s:g} s")
        except Exception:
            log.exception("handler failed method=%s path=%s", request.method, request.path)
            return Response.text(500, "the server failed; its log says why")

    def _no_route(self, request: Request) -> Response:
        allowed = sorted(method for method, path in self._routes if path == request.path)
        if not allowed:
            return Response.text(404, f"there is no {request.path}")
        return Response.text(
            405, f"{request.path} takes {', '.join(allowed)}", headers=(("Allow", ", ".join(allowed)),)
        )
