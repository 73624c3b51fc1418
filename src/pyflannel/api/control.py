"""The daemon's control socket: what it is doing, and the network config, over HTTP on a Unix socket.

GET /v1/status, GET /v1/leases, GET /v1/events, GET and PUT /v1/config; the documents are those of
wire.control_json. Only root and the user of the daemon are answered.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pyflannel.errors import (
    BusyError,
    ConfigError,
    FlannelError,
    NotReadyError,
    StoreError,
    TargetError,
    UsageError,
    WireError,
)
from pyflannel.http.server import HttpServer, Request, Response, Routes
from pyflannel.http.sockets import listen_unix, peer_uid
from pyflannel.model.lease import Lease, LeaseEntry
from pyflannel.model.status import JournalEntry, Status
from pyflannel.wire.control_json import (
    format_config_text,
    format_error,
    format_events,
    format_leases,
    format_status,
)
from pyflannel.wire.network_config_json import parse_network_config

log = logging.getLogger(__name__)


LOOK_S = 1.0
"""How soon a socket that somebody deleted is made again."""


class Controlled(Protocol):
    """What the door needs from the daemon. Leases and config are answered from memory, at once."""

    async def status(self) -> Status:
        """Return what the daemon is doing now; soon, whatever is broken."""

    def leases(self) -> Sequence[Lease]:
        """Return every lease that the daemon knows, its own too."""

    def events(self) -> Sequence[JournalEntry]:
        """Return what the passes found and did, the latest last."""

    def config_text(self) -> str | None:
        """Return the network config that the host runs with; None when there is none."""

    async def set_config(self, text: str) -> None:
        """Write the network config to the store.

        Raises:
            StoreError: it was not written, or it is not known whether it was.
        """


async def serve_control(path: Path, daemon: Controlled, *, look_s: float = LOOK_S) -> None:
    """Serve the control socket at `path` until cancelled; it is then removed.

    Every `look_s` seconds it looks whether somebody deleted the socket, and makes it again.

    Raises:
        BusyError: another daemon serves it.
        TargetError: it cannot be made there.
    """
    server = HttpServer(control_routes(daemon), admit=_is_ours)
    listener = _listen(path)
    while True:
        inode = _inode(path)
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.serve(listener), name="control socket")
                while _inode(path) == inode:
                    await asyncio.sleep(look_s)
                serving.cancel()
        finally:
            _remove(path, inode)
        listener = await _listen_again(path, look_s)


def _listen(path: Path) -> socket.socket:
    try:
        return listen_unix(path)
    except OSError as error:
        raise TargetError(
            f"the control socket {path} cannot be made: {error.strerror or error}",
            hint="Run as root, or name a --run-dir that is writable and not too long for a socket.",
        ) from error


async def _listen_again(path: Path, look_s: float) -> socket.socket:
    log.warning("Control socket is gone: making it again path=%s", path)
    while True:
        try:
            return _listen(path)
        except (BusyError, TargetError) as error:
            log.debug("Could not make the control socket: %s", error)
            await asyncio.sleep(look_s)


def control_routes(daemon: Controlled) -> Routes:
    """Return what the control socket answers."""

    async def status(_: Request) -> Response:
        return Response(status=200, body=format_status(await daemon.status()))

    async def leases(_: Request) -> Response:
        entries = [LeaseEntry.of(lease) for lease in daemon.leases()]
        return Response(status=200, body=format_leases(entries))

    async def events(_: Request) -> Response:
        return Response(status=200, body=format_events(daemon.events()))

    async def config(_: Request) -> Response:
        return Response(status=200, body=format_config_text(daemon.config_text()))

    async def set_config(request: Request) -> Response:
        try:
            parse_network_config(request.body)
            text = request.body.decode()
            await daemon.set_config(text)
        except FlannelError as error:
            return Response(status=_status_of(error), body=format_error(error))
        return Response(status=200, body=format_config_text(text))

    return {
        ("GET", "/v1/status"): status,
        ("GET", "/v1/leases"): leases,
        ("GET", "/v1/events"): events,
        ("GET", "/v1/config"): config,
        ("PUT", "/v1/config"): set_config,
    }


def _is_ours(connection: socket.socket) -> bool:
    """Return whether root or our own user asks; so says the socket's mode, unless someone changed it."""
    uid = peer_uid(connection)
    if uid in (0, os.geteuid()):
        return True
    log.warning("refused the control socket uid=%d", uid)
    return False


def _status_of(error: FlannelError) -> int:
    match error:
        case ConfigError() | UsageError() | WireError():
            return 422
        case StoreError() | NotReadyError():
            return 503
        case BusyError():
            return 409
        case _:
            return 500


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _remove(path: Path, inode: int | None) -> None:
    """Remove our socket, unless another program put its own there."""
    if inode is not None and _inode(path) == inode:
        path.unlink(missing_ok=True)
