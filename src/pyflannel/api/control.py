"""The control socket of the daemon: status, leases, events and network config by HTTP on a Unix socket.

GET /v1/status, GET /v1/leases, GET /v1/events, GET and PUT /v1/config, POST /v1/wireguard-key.
wire.control_json defines the documents. Only root and the user of the daemon have access.
"""

import asyncio
import errno
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
    remedy,
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
    format_public_key,
    format_status,
)
from pyflannel.wire.network_config_json import parse_network_config

log = logging.getLogger(__name__)


LOOK_S = 1.0
"""Interval between checks for a deleted socket, which is then created again."""

_SHORTAGES = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EROFS,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""Why a socket cannot be created although its path is right. They end without a restart of the daemon."""


class Controlled(Protocol):
    """The part of the daemon that the control socket needs. Leases and config come from memory."""

    async def status(self) -> Status:
        """Return the current status, within a bounded time."""

    def leases(self) -> Sequence[Lease]:
        """Return every known lease, including the lease of this host."""

    def events(self) -> Sequence[JournalEntry]:
        """Return the events of the passes, the latest last."""

    def config_text(self) -> str | None:
        """Return the network config in use; None if there is none."""

    async def set_config(self, text: str) -> None:
        """Write the network config to the store.

        Raises:
            StoreError: it was not written, or the result is unknown.
        """

    async def rotate_key(self) -> str:
        """Replace the WireGuard key of this host and return the new public key.

        Raises:
            NotReadyError: WireGuard is not in use, or the store is unreachable.
            TargetError: the key cannot be created or stored.
        """


async def serve_control(path: Path, daemon: Controlled, *, look_s: float = LOOK_S) -> None:
    """Serve the control socket at `path` until cancelled, then remove it.

    Every `look_s` seconds, the socket is created again if it was deleted. While the file system is full or
    read-only, or a limit is reached, the daemon works without the socket.

    Raises:
        BusyError: another daemon serves it.
        TargetError: it cannot be created there.
    """
    server = HttpServer(control_routes(daemon), admit=_is_ours)
    listener = await _first_listener(path, look_s)
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


async def _first_listener(path: Path, look_s: float) -> socket.socket:
    logged = ""
    while True:
        try:
            return _listen(path)
        except TargetError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _SHORTAGES:
                raise
            if str(error) != logged:
                log.error("flannelctl gets no answer, retrying: %s", error.in_full)
            logged = str(error)
        await asyncio.sleep(look_s)


def _listen(path: Path) -> socket.socket:
    try:
        return listen_unix(path)
    except OSError as error:
        raise TargetError(
            f"the control socket {path} cannot be created: {error.strerror or error}",
            hint=remedy(
                error,
                "Run as root, or choose a --run-dir that is writable and short enough for a socket path.",
            ),
        ) from error


async def _listen_again(path: Path, look_s: float) -> socket.socket:
    log.warning("Creating the deleted control socket again path=%s", path)
    while True:
        try:
            return _listen(path)
        except (BusyError, TargetError) as error:
            log.debug("Could not create the control socket: %s", error)
            await asyncio.sleep(look_s)


def control_routes(daemon: Controlled) -> Routes:
    """Return the routes of the control socket."""

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

    async def rotate_key(_: Request) -> Response:
        try:
            public_key = await daemon.rotate_key()
        except FlannelError as error:
            return Response(status=_status_of(error), body=format_error(error))
        return Response(status=200, body=format_public_key(public_key))

    return {
        ("POST", "/v1/wireguard-key"): rotate_key,
        ("GET", "/v1/status"): status,
        ("GET", "/v1/leases"): leases,
        ("GET", "/v1/events"): events,
        ("GET", "/v1/config"): config,
        ("PUT", "/v1/config"): set_config,
    }


def _is_ours(connection: socket.socket) -> bool:
    """Return whether the client is root or the daemon's user, even if the mode of the socket was changed."""
    uid = peer_uid(connection)
    if uid in (0, os.geteuid()):
        return True
    log.warning("Refused a client of the control socket uid=%d", uid)
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
    """Remove the daemon's socket, unless another program replaced it."""
    if inode is not None and _inode(path) == inode:
        path.unlink(missing_ok=True)
