"""The forwarder's control socket: several clients at once, none of which can delay a packet."""

import os
import socket
import struct
from collections.abc import Callable
from typing import NamedTuple

from pyflannel.datapath.relay import BROKEN, READABLE, WRITABLE, Poller
from pyflannel.errors import BusyError, WireError
from pyflannel.wire.forwarder_control import FrameReader, Kind, encode_frame

_CLIENTS = 16
_READ_OCTETS = 65536
_UNSENT_OCTETS = 8 << 20
"""Answers that a client left unread; one with more has forgotten us."""

_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Answer(NamedTuple):
    """The frame that answers a request.

    Attributes:
        is_change: whether other processes must hear that something changed.
        descriptors: what goes along with the frame.
    """

    frame: bytes
    is_change: bool = False
    descriptors: tuple[int, ...] = ()


def listen(path: str) -> socket.socket:
    """Return a listening socket at `path`, mode 0600; one that a dead forwarder left is replaced.

    Raises:
        BusyError: a living forwarder answers there.
        OSError: the path cannot be used.
    """
    remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.bind(path)
    os.chmod(path, 0o600)  # nobody can connect before listen()
    listener.listen(_CLIENTS)
    return listener


def listen_on(descriptor: int) -> socket.socket:
    """Return a listener that another process listened on; who connects sees from now on that it is ours."""
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    listener.listen(_CLIENTS)
    return listener


def remove_stale(path: str) -> None:
    """Remove the socket that a dead forwarder left at `path`.

    Raises:
        BusyError: a living forwarder answers there.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:  # alive: its backlog is full
            holder = "another forwarder"
        else:
            holder = f"another forwarder, pid {_credentials(probe)[0]},"
    raise BusyError(
        f"{holder} answers at {path}", hint="Stop it first, or use another run directory for this one."
    )


class ControlServer:
    """Reads requests, answers each with what `answer` returns.

    A client that sends what is not a frame, that never reads, or that is neither root nor our own user is
    dropped. `answer` is called with the client's number, which `gone` hears when the client has left.
    """

    def __init__(
        self,
        listener: socket.socket,
        poller: Poller,
        answer: Callable[[int, Kind, bytes], Answer],
        gone: Callable[[int], None],
    ) -> None:
        self._listener = listener
        self._poller = poller
        self._answer = answer
        self._gone = gone
        self._clients: dict[int, _Client] = {}
        poller.add(listener.fileno(), READABLE, self._on_connection)

    def notify(self, but_pid: int | None = None) -> None:
        """Tell every client, apart from those of one process, that the state changed."""
        for client in list(self._clients.values()):
            if client.pid != but_pid:
                self._send(client, encode_frame(Kind.CHANGED))

    def close(self) -> None:
        """Drop the clients and stop listening."""
        for client in list(self._clients.values()):
            self._drop(client)
        self.stop_listening()

    def stop_listening(self) -> None:
        """Take no new clients; those that are there stay."""
        if self._listener.fileno() >= 0:
            self._poller.remove(self._listener.fileno())
            self._listener.close()

    def _on_connection(self, events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it went away again
        connection.setblocking(False)
        pid, uid, _ = _credentials(connection)
        if len(self._clients) >= _CLIENTS or uid not in (0, os.geteuid()):
            connection.close()
            return
        client = _Client(connection, pid)
        self._clients[connection.fileno()] = client
        self._poller.add(connection.fileno(), READABLE, lambda events: self._on_client(client, events))

    def _on_client(self, client: "_Client", events: int) -> None:
        if events & WRITABLE:
            self._flush(client)
        if events & (READABLE | BROKEN) and client.is_open:
            self._read(client)

    def _read(self, client: "_Client") -> None:
        try:
            octets = client.connection.recv(_READ_OCTETS)
            requests = list(client.reader.feed(octets)) if octets else None
        except BlockingIOError:
            return
        except (OSError, WireError):
            requests = None
        if requests is None:
            self._drop(client)
            return
        for kind, payload in requests:
            try:
                answer = self._answer(client.connection.fileno(), kind, payload)
            except WireError:
                self._drop(client)
                return
            self._send(client, answer.frame, answer.descriptors)
            if answer.is_change:
                self.notify(but_pid=client.pid)
            if not client.is_open:  # it left before its answer
                return

    @property
    def descriptor(self) -> int:
        """The listener's."""
        return self._listener.fileno()

    def _send(self, client: "_Client", frame: bytes, descriptors: tuple[int, ...] = ()) -> None:
        if not client.is_open:
            return
        if descriptors:
            try:
                if client.unsent:  # descriptors go along with the first octet, in the order of the stream
                    raise BlockingIOError
                frame = frame[socket.send_fds(client.connection, [frame], descriptors) :]
            except OSError:
                self._drop(client)
                return
        client.unsent += frame
        if len(client.unsent) > _UNSENT_OCTETS:
            self._drop(client)
        else:
            self._flush(client)

    def _flush(self, client: "_Client") -> None:
        try:
            del client.unsent[: client.connection.send(client.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        self._poller.change(client.connection.fileno(), READABLE | (WRITABLE if client.unsent else 0))

    def _drop(self, client: "_Client") -> None:
        number = client.connection.fileno()
        self._poller.remove(number)
        del self._clients[number]
        client.connection.close()
        self._gone(number)


class _Client:
    """One connection."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.connection = connection
        self.pid = pid
        self.reader = FrameReader()
        self.unsent = bytearray()

    @property
    def is_open(self) -> bool:
        return self.connection.fileno() >= 0


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the process at the other end."""
    octets = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, gid = _PEER_CREDENTIALS.unpack(octets)
    return pid, uid, gid
