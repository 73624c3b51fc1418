"""Nothing that one client of the control socket does ends the forwarder, which carries the packets."""

import socket
from pathlib import Path

from pyflannel.datapath.control import Answer, ControlServer, listen
from pyflannel.datapath.relay import Poller
from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import Kind, encode_frame


def test_requests_of_a_client_that_left_after_them_end_nothing(tmp_path: Path) -> None:
    """The answer to the first finds the client gone. The second, a bad one, is not performed."""
    asked: list[int] = []
    left: list[int] = []

    def answer(client: int, kind: Kind, _: bytes) -> Answer:
        asked.append(client)
        if kind is not Kind.READ_STATE:
            raise WireError("not well formed", hint="")
        return Answer(encode_frame(Kind.CHANGED))

    poller = Poller()
    server = ControlServer(listen(str(tmp_path / "s")), poller, answer, left.append)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(tmp_path / "s"))
        client.sendall(encode_frame(Kind.READ_STATE) + encode_frame(Kind.READ_SUMMARY))

    poller.run_round()  # the connection
    poller.run_round()  # its requests
    server.close()

    assert len(asked) == 1
    assert left == asked
