"""A server on a Unix socket in a temporary directory, and raw bytes to it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from pyflannel.http.server import Admit, HttpServer, Limits, Request, Response, Routes, admit_all
from pyflannel.http.sockets import listen_unix


async def echo(request: Request) -> Response:
    return Response(status=200, body=request.body or b"nothing")


ECHO: Routes = {("GET", "/echo"): echo, ("PUT", "/echo"): echo}

Serve = Callable[..., AbstractAsyncContextManager[Path]]
Say = Callable[..., Awaitable[bytes]]


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Serve routes during a block. Yield the path of the socket."""

    @contextlib.asynccontextmanager
    async def serving(
        routes: Routes = ECHO, *, limits: Limits | None = None, admit: Admit = admit_all
    ) -> AsyncIterator[Path]:
        path = tmp_path / "s"
        server = HttpServer(routes, limits=limits, admit=admit)
        listener = listen_unix(path)
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(server.serve(listener))
            try:
                async with asyncio.timeout(30):
                    yield path
            finally:
                task.cancel()

    return serving


@pytest.fixture
def say(serve: Serve) -> Say:
    """Send these bytes to an echo handler, and return everything until the server closes."""

    async def exchange(data: bytes, *, limits: Limits | None = None, ends: bool = False) -> bytes:
        async with serve(limits=limits) as path:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(data)
            if ends:
                writer.write_eof()
            answer = await reader.read()
            writer.close()
            return answer

    return exchange
