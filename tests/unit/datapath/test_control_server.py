"""No action of a client of the control socket ends the forwarder, which carries the packets."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.datapath.control import Answer, ControlServer
from pyflannel.datapath.relay import Poller
from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import Kind, encode_frame


class Server:
    """A control server that a daemon has just started, and the received requests."""

    def __init__(self, path: str) -> None:
        self.asked: list[int] = []
        self.left: list[int] = []
        self.given: list[int] = []
        self.poller = Poller()
        self.daemon, starter = socket.socketpair()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.control = ControlServer(starter, self.listener, self.poller, self.answer, self.left.append)

    def answer(self, client: int, kind: Kind, _: bytes, descriptors: list[int]) -> Answer:
        self.asked.append(client)
        self.given += descriptors
        if kind not in (Kind.READ_STATE, Kind.ATTACH):
            raise WireError("not well formed", hint="")
        return Answer(encode_frame(Kind.CHANGED))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(str(tmp_path / "s"))
    with server.daemon:
        yield server
        server.control.close()


def test_requests_of_a_client_that_left_after_them_end_nothing(server: Server, tmp_path: Path) -> None:
    """The answer to the first request fails. The server does not read the second request, which is
    invalid.
    """
    server.control.listen()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        client.sendall(encode_frame(Kind.READ_STATE) + encode_frame(Kind.READ_SUMMARY))

    server.poller.run_round()  # the connection
    server.poller.run_round()  # the requests of the client

    assert len(server.asked) == 1
    assert server.left == server.asked


def test_no_client_can_connect_before_it_listens(server: Server, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(ConnectionRefusedError):
        client.connect(str(tmp_path / "s"))


def test_a_descriptor_that_no_request_uses_is_closed(server: Server) -> None:
    """The daemon sends a device, and the request does not remove it from the list."""
    ours, theirs = os.pipe()
    socket.send_fds(server.daemon, [encode_frame(Kind.ATTACH)], [theirs])
    os.close(theirs)

    server.poller.run_round()

    (given,) = server.given
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(given)
    assert os.read(ours, 1) == b""  # the last writer is gone
    os.close(ours)
