"""The forwarder's control socket. The socket serves several clients at the same time, and clients cannot
delay packets.
"""

import os
import socket
import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pyflannel.datapath.relay import BROKEN, READABLE, WRITABLE, Poller
from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import FrameReader, Kind, encode_frame

_CLIENTS = 16
_READ_BYTES = 65536
_UNSENT_BYTES = 8 << 20
"""Maximum size in bytes of the answers that a client has not read. A client with more unread bytes is
disconnected."""

_DESCRIPTORS = 1
"""Maximum number of file descriptors in a request. The kernel closes any further descriptors."""

_PEER_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Answer(NamedTuple):
    """The frame that is sent as the answer to a request.

    Attributes:
        is_change: True if the state changed, so that other processes must be notified.
        descriptors: file descriptors that are sent with the frame.
    """

    frame: bytes
    is_change: bool = False
    descriptors: tuple[int, ...] = ()


Handler = Callable[[int, Kind, bytes, list[int]], Answer]
"""A function that performs a request of the client with this number. The function removes the descriptors
that it uses from the list."""


class ControlServer:
    """Reads requests, and sends the result of `answer` for each request.

    The first client is the daemon that started the forwarder. After `listen`, processes of root and of the
    daemon's user can connect. A client that sends an invalid frame, or does not read, is disconnected. `gone`
    is called with the number of each disconnected client.
    """

    def __init__(
        self,
        starter: socket.socket,
        listener: socket.socket,
        poller: Poller,
        answer: Handler,
        gone: Callable[[int], None],
    ) -> None:
        self._listener = listener
        self._poller = poller
        self._answer = answer
        self._gone = gone
        self._clients: dict[int, _Client] = {}
        pid, uid, _ = _credentials(starter)
        self._users = frozenset({0, uid})
        self._is_listening = False
        self._starter = self._add(starter, pid)

    def greet(self, frame: bytes) -> None:
        """Send a frame to the first client."""
        self._send(self._starter, frame)

    def listen(self) -> None:
        """Accept clients. From now on, new clients see the credentials of this process at the socket."""
        self._listener.listen(_CLIENTS)
        self._poller.add(self._listener.fileno(), READABLE, self._on_connection)
        self._is_listening = True

    def notify(self, but_pid: int | None = None) -> None:
        """Notify all clients, except those of one process, that the state changed."""
        for client in list(self._clients.values()):
            if client.pid != but_pid:
                self._send(client, encode_frame(Kind.CHANGED))

    def close(self) -> None:
        """Disconnect the clients and stop listening."""
        for client in list(self._clients.values()):
            self._drop(client)
        self.stop_listening()

    def stop_listening(self) -> None:
        """Accept no new clients. Connected clients remain."""
        if self._is_listening:
            self._poller.remove(self._listener.fileno())
        self._is_listening = False
        self._listener.close()

    def _on_connection(self, events: int) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # the client disconnected before it was accepted
        pid, uid, _ = _credentials(connection)
        if len(self._clients) >= _CLIENTS or uid not in self._users:
            connection.close()
            return
        self._add(connection, pid)

    def _add(self, connection: socket.socket, pid: int) -> "_Client":
        connection.setblocking(False)
        client = _Client(connection, pid)
        self._clients[connection.fileno()] = client
        self._poller.add(connection.fileno(), READABLE, lambda events: self._on_client(client, events))
        return client

    def _on_client(self, client: "_Client", events: int) -> None:
        if events & WRITABLE:
            self._flush(client)
        if events & (READABLE | BROKEN) and client.is_open:
            self._read(client)

    def _read(self, client: "_Client") -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(
                client.connection, _READ_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            self._drop(client)
            return
        try:
            self._perform(client, data, descriptors)
        finally:
            _close(descriptors)

    def _perform(self, client: "_Client", data: bytes, descriptors: list[int]) -> None:
        """Perform the requests that are complete."""
        try:
            requests = list(client.reader.feed(data)) if data else None
        except WireError:
            requests = None
        if requests is None:
            self._drop(client)
            return
        for kind, payload in requests:
            try:
                answer = self._answer(client.connection.fileno(), kind, payload, descriptors)
            except WireError:
                self._drop(client)
                return
            self._send(client, answer.frame, answer.descriptors)
            if answer.is_change:
                self.notify(but_pid=client.pid)
            if not client.is_open:  # the client was disconnected
                return

    @property
    def descriptor(self) -> int:
        """The descriptor of the listener."""
        return self._listener.fileno()

    def _send(self, client: "_Client", frame: bytes, descriptors: tuple[int, ...] = ()) -> None:
        if not client.is_open:
            return
        if descriptors:
            try:
                if (
                    client.unsent
                ):  # descriptors belong to the first byte, and earlier bytes must be sent first
                    raise BlockingIOError
                frame = frame[socket.send_fds(client.connection, [frame], descriptors) :]
            except OSError:
                self._drop(client)
                return
        client.unsent += frame
        if len(client.unsent) > _UNSENT_BYTES:
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


def _close(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of the process at the other end of the connection."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
    pid, uid, gid = _PEER_CREDENTIALS.unpack(data)
    return pid, uid, gid
