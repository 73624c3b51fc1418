"""One connection, from the server's side: requests in, answers out, each within its bounds."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus

import h11

from pyflannel.http.event import READ_OCTETS, next_event
from pyflannel.http.limits import Limits
from pyflannel.http.message import Request, Response

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


def _declared_length(head: h11.Request) -> int:
    """Return the Content-Length, 0 without one; h11 has seen to it that it is a number."""
    return next((int(value) for name, value in head.headers if name == b"content-length"), 0)
