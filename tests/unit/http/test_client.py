"""The client returns an answer, or raises an error within its deadline."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from pyflannel.errors import WireError
from pyflannel.http.sockets import listen_unix, request

Serve = Callable[..., AbstractAsyncContextManager[Path]]


@contextlib.asynccontextmanager
async def answering(path: Path, data: bytes) -> AsyncIterator[None]:
    """Answer every request with these bytes; never answer if there are no bytes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if not data:
            await asyncio.Event().wait()  # since Python 3.13, an unreferenced connection is closed
        writer.write(data)
        writer.close()

    server = await asyncio.start_unix_server(answer, sock=listen_unix(path))
    try:
        yield
    finally:
        server.close()


def ask(path: Path, data: bytes, *, deadline_s: float = 20.0) -> bytes:
    async def exchange() -> bytes:
        async with answering(path, data):
            return (await request(path, "GET", "/", deadline_s=deadline_s)).body

    return asyncio.run(exchange())


def test_a_body_of_a_megabyte_is_returned_completely(serve: Serve) -> None:
    body = bytes(range(256)) * 4096

    async def exchange() -> bytes:
        async with serve() as path:
            return (await request(path, "PUT", "/echo", body=body, deadline_s=20)).body

    assert asyncio.run(exchange()) == body


def test_interim_answers_are_ignored(tmp_path: Path) -> None:
    data = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"

    assert ask(tmp_path / "s", data) == b"hi"


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", b"\x00" * 100]
)
def test_an_invalid_answer_is_a_wire_error(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(WireError):
        ask(tmp_path / "s", data)


def test_silence_ends_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        ask(tmp_path / "s", b"", deadline_s=0.1)


def test_a_missing_server_is_an_error_immediately(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        asyncio.run(request(tmp_path / "s", "GET", "/", deadline_s=20))
