"""What a forwarder takes over from the one that runs: its sockets, its device, its peers, its counters."""

import os
import socket
from collections.abc import Mapping
from errno import EOPNOTSUPP

from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import (
    SOCKET_NAME,
    FrameReader,
    Kind,
    decode_counters,
    decode_handed,
    decode_refusal,
    encode_frame,
)

_ANSWER_S = 3.0
"""Less than the process that started the forwarder waits."""

_READ_OCTETS = 65536
_DESCRIPTORS = 3


class Inheritance:
    """Descriptors of a running forwarder, which goes on with them until `take`.

    Both hold the same sockets and device then, and the kernel gives each packet to one of them: none is lost
    in between, and if we end without `take` nothing has happened.

    Attributes:
        listener: the control socket's.
        udp: the tunnel's socket.
        device: the attachment to the device, or None.
        state: what the running one says of itself.

    Raises:
        OSError: EOPNOTSUPP when it does not hand over, or what connecting to it gives; EBUSY when another
            process is about to take over.
    """

    def __init__(self, run_dir: str, link: str) -> None:
        path = os.path.join(run_dir, SOCKET_NAME)
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._connection.settimeout(_ANSWER_S)
        self._frames = FrameReader()
        self._descriptors: list[int] = []
        try:
            self._connection.connect(path)
            count, self.state = decode_handed(self._ask(Kind.HAND_OVER, Kind.HANDED))
            if len(self._descriptors) != count or not 2 <= count <= _DESCRIPTORS:
                raise WireError(f"{len(self._descriptors)} descriptors came, not {count}", hint="")
            if self.state.settings.link != link:
                raise WireError(f"it is that of {self.state.settings.link}", hint="")
        except (WireError, ConnectionError, TimeoutError) as error:
            raise OSError(EOPNOTSUPP, f"the forwarder at {path} does not hand over: {error}") from error
        self.listener, self.udp, *device = self._descriptors
        self.device = device[0] if device else None

    def take(self) -> Mapping[str, int]:
        """Let the other one end, and return its final counters; none when it ended by itself meanwhile.

        Raises:
            OSError: it does not let go.
        """
        try:
            return decode_counters(self._ask(Kind.TAKEN, Kind.COUNTERS))
        except (ConnectionError, WireError):
            return {}
        finally:
            self._connection.close()

    def _ask(self, kind: Kind, answer: Kind) -> bytes:
        """Send a request and return the payload of its answer.

        Raises:
            ConnectionError: the connection ended.
            TimeoutError: no answer came.
            OSError: it refused.
            WireError: it is another one.
        """
        self._connection.sendall(encode_frame(kind))
        while True:
            octets, descriptors, _, _ = socket.recv_fds(
                self._connection, _READ_OCTETS, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
            self._descriptors += descriptors
            if not octets:
                raise ConnectionResetError("the connection ended")
            for answered, payload in self._frames.feed(octets):
                if answered is answer:
                    return payload
                if answered is Kind.REFUSED:
                    raise OSError(*decode_refusal(payload))
                if answered is not Kind.CHANGED:
                    raise WireError(f"{answered.name} answers {kind.name}", hint="")
