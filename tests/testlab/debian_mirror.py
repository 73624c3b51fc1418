"""Access to Debian's package index from a sandbox, whose network does not reach the Internet."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyflannel.lab.sandbox import Sandbox
from testlab.inside import enter_network

_INDEX = "deb.debian.org"
_PORT = 80
_CHUNK = 65536


@contextmanager
def debian_mirror(system: Sandbox) -> Iterator[None]:
    """Forward connections of a system to deb.debian.org, for the duration of a block."""
    server = _listen_inside(system)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name=f"mirror for {system.name}")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(asyncio.start_server(_forward, sock=server), loop).result()
        system.run(["tee", "--append", "/etc/hosts"], text=f"127.0.0.1 {_INDEX}\n")
        yield
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.close()


def _listen_inside(system: Sandbox) -> socket.socket:
    """Return a socket that listens in the network of a system. The calling thread keeps its network."""
    servers: list[socket.socket] = []

    def enter_and_listen() -> None:
        enter_network(Path(f"/proc/{system.init_pid}/ns/net"))
        servers.append(socket.create_server(("127.0.0.1", _PORT)))

    thread = threading.Thread(target=enter_and_listen)
    thread.start()
    thread.join()
    (server,) = servers
    return server


async def _forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Forward one connection to the index, in both directions."""
    index_reader, index_writer = await asyncio.open_connection(_INDEX, _PORT)
    await asyncio.gather(_copy(reader, index_writer), _copy(index_reader, writer), return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()
