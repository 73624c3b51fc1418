"""The control socket of a double of flanneld."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pyflannel.api.control import serve_control
from pyflannel.model.lease import Lease, LeaseAttributes

_START_S = 20.0


@contextmanager
def serving(socket: Path, daemon: Any) -> Iterator[None]:
    """Serve a daemon at this socket, in a thread."""
    loop, is_served = asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(serve_control(socket, daemon))
            while not socket.exists():
                await asyncio.sleep(0.01)
            is_served.set()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert is_served.wait(_START_S)
        yield
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(_START_S)
        loop.close()


@contextmanager
def serving_leases(directory: Path, *host_names: str | None) -> Iterator[Path]:
    """Serve the leases of these hosts at a socket in the directory; yield its path."""
    socket = directory / "flanneld.sock"
    with serving(socket, SimpleNamespace(leases=lambda most=None: _leases(host_names), change_ages=dict)):
        yield socket


def _leases(host_names: Sequence[str | None]) -> list[Lease]:
    return [
        Lease(
            subnet=IPv4Network(f"10.100.{number}.0/24"),
            attributes=LeaseAttributes(
                public_ip=IPv4Address(f"10.0.0.{number}"), owner=str(number), host_name=name
            ),
        )
        for number, name in enumerate(host_names)
    ]
