"""Sockets for HTTP: listening on TCP and Unix paths, and a request over a Unix socket."""

import asyncio
import errno
import logging
import os
import socket
import stat
import struct
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import h11
from msgspec import Struct

from pyflannel.errors import BusyError, TargetError, WireError, remedy
from pyflannel.http.server import JSON, HttpServer, Limits, Response, Routes, next_event

_BODY_BYTES = 64 * 1024 * 1024
"""Maximum size in bytes of an answer, which is more than any answer of the daemon. 10,000 leases are 4 MB."""


async def request(path: Path, method: str, target: str, *, body: bytes = b"", deadline_s: float) -> Response:
    """Return the answer to one request, with any status, within `deadline_s`.

    Raises:
        OSError: no process listens, the connection broke, or the deadline passed (TimeoutError).
        WireError: the answer is not HTTP, or too long.
    """
    async with asyncio.timeout(deadline_s):
        reader, writer = await asyncio.open_unix_connection(path)
        try:
            return await _exchange(reader, writer, method, target, body)
        except h11.RemoteProtocolError as error:
            raise WireError(
                f"the answer of {path} is not HTTP: {error}", hint="Check that flanneld serves this socket."
            ) from error
        finally:
            writer.close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, target: str, body: bytes
) -> Response:
    connection = h11.Connection(h11.CLIENT)
    headers = [("Host", "localhost"), ("Connection", "close")]
    if body:
        headers += [("Content-Type", JSON), ("Content-Length", str(len(body)))]
    question: list[h11.Event] = [
        h11.Request(method=method, target=target, headers=headers),
        h11.Data(data=body),
        h11.EndOfMessage(),
    ]
    for event in question:
        writer.write(connection.send(event) or b"")
    await writer.drain()

    head = await next_event(connection, reader)
    while isinstance(head, h11.InformationalResponse):
        head = await next_event(connection, reader)
    if not isinstance(head, h11.Response):
        raise WireError(
            "the connection ended without an answer",
            hint="Try again. If the request fails again, read the log of flanneld.",
        )
    answer = bytearray()
    while isinstance(piece := await next_event(connection, reader), h11.Data):
        answer += piece.data
        if len(answer) > _BODY_BYTES:
            raise WireError(
                f"the answer is longer than {_BODY_BYTES} bytes",
                hint="Check which program listens on the socket.",
            )
    content_type = next((value for name, value in head.headers if name == b"content-type"), b"")
    return Response(status=head.status_code, body=bytes(answer), content_type=content_type.decode("latin-1"))


_BACKLOG = 64


def listen_tcp(ip: IPv4Address | IPv6Address, port: int) -> socket.socket:
    """Return a listening socket. The address `::` also accepts IPv4, as in Go.

    Raises:
        BusyError: another program uses the port.
        TargetError: the kernel refused the address or port, because the host does not have the address, or
            the port is reserved for root.
    """
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    is_dual = ip == IPv6Address("::")
    if is_dual and not socket.has_dualstack_ipv6():
        raise TargetError(
            f"TCP port {format_address(ip, port)} cannot be opened: this kernel has no IPv6",
            hint="Use an IPv4 address, or 0.0.0.0 for all addresses.",
        )
    try:
        return socket.create_server((str(ip), port), family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual)
    except OSError as error:
        where = format_address(ip, port)
        if error.errno == errno.EADDRINUSE:
            raise BusyError(
                f"TCP port {where} is in use",
                hint=f"Find the process that uses the port: ss -ltnp 'sport = :{port}'.",
            ) from error
        raise TargetError(
            f"TCP port {where} cannot be opened: {os.strerror(error.errno or 0)}",
            hint="Use an address of this host, or 0.0.0.0 for all addresses, and a port that flanneld may "
            "open.",
        ) from error


def format_address(ip: IPv4Address | IPv6Address, port: int) -> str:
    """Return `IP:PORT`, with brackets around an IPv6 address."""
    return f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}"


_UCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred of unix(7)


def listen_unix(path: Path) -> socket.socket:
    """Return a non-blocking listening socket at `path`, mode 0600.

    A socket that no process serves is replaced atomically. Another user cannot connect at any time.

    Raises:
        BusyError: another program serves the socket, or the path is not a socket.
        OSError: the socket could not be created. The kernel refuses a path of more than 107 bytes.
    """
    _check_free(path)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    born = path.with_name(f".{path.name}.{os.getpid()}")
    born.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(str(born))
        born.chmod(0o600)
        listener.listen(_BACKLOG)
        born.replace(path)
    except OSError:
        listener.close()
        born.unlink(missing_ok=True)
        raise
    return listener


def peer_uid(connection: socket.socket) -> int:
    """Return the user of the client, from the kernel (SO_PEERCRED)."""
    return _peer(connection)[1]


def server_pid(path: Path) -> int | None:
    """Return the process ID of the server at `path`, 0 if the server is in another PID namespace; None if
    there is no server.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except OSError:
            return None
        return _peer(probe)[0]


def _peer(connection: socket.socket) -> tuple[int, int, int]:
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def _check_free(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise BusyError(
            f"{path} is not a socket", hint="Move the file at this path, or choose another run directory."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except OSError:
            pass  # the queue of connections is full, so a process listens
    raise BusyError(
        f"another program serves {path}", hint="Stop the other program, or choose another run directory."
    )


log = logging.getLogger(__name__)

LOOK_S = 1.0
"""Interval in seconds between checks for a deleted socket, which the daemon then creates again."""

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
"""Errors that prevent the creation of a socket at a valid path, and that can disappear while the daemon
runs."""


class UnixPlace(Struct, frozen=True, kw_only=True):
    """The description of a Unix socket that the daemon serves.

    Attributes:
        name: name of the socket in texts.
        consequence: the effect of a missing socket, as a sentence without its full stop.
        hint: the remedy if the socket cannot be created at this path.
    """

    path: Path
    name: str
    consequence: str
    hint: str


async def serve_unix(place: UnixPlace, server: HttpServer, *, look_s: float = LOOK_S) -> None:
    """Serve a Unix socket until cancelled, then remove it.

    Every `look_s` seconds, the socket is created again if it was deleted. While the file system is full or
    read-only, or a limit is reached, the daemon works without the socket.

    Raises:
        BusyError: another daemon serves the socket.
        TargetError: the socket cannot be created at the path.
    """
    path = place.path
    listener = await _first_listener(place, look_s)
    while True:
        inode = _inode(path)
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(server.serve(listener), name=place.name)
                while _inode(path) == inode:
                    await asyncio.sleep(look_s)
                serving.cancel()
        finally:
            _remove(path, inode)
        listener = await _listen_again(place, look_s)


def is_ours(connection: socket.socket) -> bool:
    """Return whether the client is root or the daemon's user, even if the mode of the socket was changed."""
    uid = peer_uid(connection)
    if uid in (0, os.geteuid()):
        return True
    log.warning("Refused a client of a Unix socket uid=%d", uid)
    return False


async def _first_listener(place: UnixPlace, look_s: float) -> socket.socket:
    logged = ""
    while True:
        try:
            return _listen_at(place)
        except TargetError as error:
            if not isinstance(error.__cause__, OSError) or error.__cause__.errno not in _SHORTAGES:
                raise
            if str(error) != logged:
                log.error("%s, retrying: %s", place.consequence, error.in_full)
            logged = str(error)
        await asyncio.sleep(look_s)


def _listen_at(place: UnixPlace) -> socket.socket:
    try:
        return listen_unix(place.path)
    except OSError as error:
        raise TargetError(
            f"the {place.name} {place.path} cannot be created: {error.strerror or error}",
            hint=remedy(error, place.hint),
        ) from error


async def _listen_again(place: UnixPlace, look_s: float) -> socket.socket:
    log.warning("Creating the deleted %s again path=%s", place.name, place.path)
    while True:
        try:
            return _listen_at(place)
        except (BusyError, TargetError) as error:
            log.debug("Could not create the %s: %s", place.name, error)
            await asyncio.sleep(look_s)


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _remove(path: Path, inode: int | None) -> None:
    """Remove the daemon's socket, unless another program replaced it."""
    if inode is not None and _inode(path) == inode:
        path.unlink(missing_ok=True)


_STRANGERS = Limits(head_bytes=8 * 1024, body_bytes=4 * 1024, idle_s=10.0, request_s=5.0, response_s=5.0)
"""Limits for TCP clients, which may be any container. Health probes and metrics collectors stay far below
these limits."""

RETRY_S = 5.0
"""Interval in seconds between attempts to open an address and port."""


class Endpoint(Struct, frozen=True, kw_only=True):
    """An address and a port.

    Attributes:
        name: name in the log.
        asked_by: the flag or variable that sets the address, with its value.
    """

    name: str
    ip: IPv4Address | IPv6Address
    port: int
    asked_by: str


async def serve_endpoint(endpoint: Endpoint, routes: Routes, *, retry_s: float = RETRY_S) -> None:
    """Serve until cancelled. If the address or port cannot be opened, log the error and retry."""
    listener = await _listen(endpoint, retry_s)
    log.info("Start %s server on %s", endpoint.name, format_address(endpoint.ip, endpoint.port))
    await HttpServer(routes, limits=_STRANGERS).serve(listener)


async def _listen(endpoint: Endpoint, retry_s: float) -> socket.socket:
    logged = ""
    while True:
        try:
            return listen_tcp(endpoint.ip, endpoint.port)
        except (BusyError, TargetError) as error:
            if str(error) != logged:
                log.error("Could not serve %s, retrying: %s", endpoint.asked_by, error.in_full)
            logged = str(error)
        await asyncio.sleep(retry_s)
