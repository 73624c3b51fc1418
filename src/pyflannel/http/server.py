"""A small HTTP/1.1 server: routes over one listening socket, Unix or TCP, each client within bounds."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Mapping
from http import HTTPStatus

from pyflannel.http.conversation import Conversation, Handler, linger
from pyflannel.http.limits import Limits
from pyflannel.http.message import Request, Response

log = logging.getLogger(__name__)

Routes = Mapping[tuple[str, str], Handler]
"""Handlers by method and path; HEAD is answered by GET's."""

Admit = Callable[[socket.socket], bool]


def admit_all(_: socket.socket) -> bool:
    """Let every client in."""
    return True


class HttpServer:
    """Answers requests by its routes; what one client does, or a handler raises, never reaches another."""

    def __init__(self, routes: Routes, *, limits: Limits | None = None, admit: Admit = admit_all) -> None:
        """Serve `routes` within `limits` to the clients whose socket `admit` lets in."""
        self._routes = routes
        self._limits = limits or Limits()
        self._admit = admit
        self._open = 0

    async def serve(self, listener: socket.socket) -> None:
        """Serve until cancelled; the listening socket is then closed, and every connection with it."""
        async with asyncio.TaskGroup() as tasks:

            def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                tasks.create_task(self._converse(reader, writer), name="http connection")

            server = await asyncio.start_server(accepted, sock=listener)
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
                elif self._open >= self._limits.connections:
                    await self._turn_away(reader, writer, HTTPStatus.SERVICE_UNAVAILABLE)
                else:
                    await self._attend(reader, writer)
        finally:
            writer.transport.abort()

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Converse with one client of the bounded number, until it has its last answer."""
        self._open += 1
        try:
            await Conversation(reader, writer, self._limits).run(self._answer)
            writer.close()
            async with asyncio.timeout(self._limits.response_s):
                await writer.wait_closed()
        finally:
            self._open -= 1

    async def _turn_away(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, status: HTTPStatus
    ) -> None:
        """Answer without having read anything, whatever was asked."""
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(head.encode("ascii"))
        await linger(reader, writer, self._limits.linger_s)

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
