"""One connection to a forwarder's control socket."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from pyflannel.errors import TargetError, WireError, in_words, is_permanent
from pyflannel.wire.forwarder_control import FrameReader, Kind, decode_refusal, encode_frame

ANSWER_S = 5.0
"""How long a forwarder may take to answer; a busy one needs milliseconds."""

_READ_OCTETS = 65536
_NEXT_PASS = "It is started again by the next pass."
_STARVED = "See whether it is stopped or starved, or has more clients than it takes."


class AbsentError(TargetError):
    """No forwarder runs."""


class SilentError(TargetError):
    """The forwarder of process `pid` runs and does not answer."""

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"the forwarder, pid {pid}, did not answer for {ANSWER_S:.0f} s",
            hint="See whether it is stopped or starved; silent for as long again, it is replaced.",
        )
        self.pid = pid


class ForeignError(TargetError):
    """What answers at the socket, process `pid`, does not speak our language."""

    def __init__(self, pid: int, error: WireError) -> None:
        super().__init__(f"the forwarder, pid {pid}, answers in another language: {error}", hint=error.hint)
        self.pid = pid


class RefusedError(TargetError):
    """The forwarder could not do what it was asked; `errno` is the kernel's, or 0."""

    def __init__(self, message: str, *, errno: int, hint: str = "") -> None:
        super().__init__(message, hint=hint, is_permanent=is_permanent(errno))
        self.errno = errno


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator["ForwarderClient"]:
    """Connect to the forwarder that listens at `path`, for the length of a block.

    Raises:
        AbsentError: nobody listens there.
        TargetError: it does not take the connection.
    """
    loop, kind = asyncio.get_running_loop(), socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with ExitStack() as opened:
        try:
            connection = opened.enter_context(socket.socket(socket.AF_UNIX, kind))
            async with asyncio.timeout(ANSWER_S):
                await loop.sock_connect(connection, str(path))
            pid = _pid_of_peer(connection)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise AbsentError(f"no forwarder answers at {path}", hint=_NEXT_PASS) from error
        except OSError as error:
            raise TargetError.of(
                f"the forwarder at {path} takes no connection", error, hint=_STARVED
            ) from error
        yield ForwarderClient(connection, pid)


def _pid_of_peer(connection: socket.socket) -> int:
    form = struct.Struct("3i")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)
    return int(form.unpack(credentials)[0])


class ForwarderClient:
    """Asks, and hears of changes. One task at a time may use it.

    Attributes:
        pid: the forwarder's process.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self._frames = FrameReader()
        self._received: deque[tuple[Kind, bytes]] = deque()
        self.pid = pid

    async def ask(self, kind: Kind, payload: bytes = b"") -> bytes:
        """Send a request and return the payload of its answer.

        Raises:
            RefusedError: the forwarder refused.
            SilentError: it did not answer in time.
            ForeignError: it answered in another language.
            TargetError: it went away.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                frame = encode_frame(kind, payload)
                await asyncio.get_running_loop().sock_sendall(self._connection, frame)
                while (answer := await self._receive()) is not None and answer[0] is Kind.CHANGED:
                    pass
        except TimeoutError:
            raise SilentError(self.pid) from None
        except OSError as error:
            raise _gone(in_words(error)) from error
        if answer is None:
            raise _gone("end of the connection")
        if answer[0] is Kind.REFUSED:
            errno, text = decode_refusal(answer[1])
            raise RefusedError(text, errno=errno)
        return answer[1]

    async def wait_for_change(self) -> bool:
        """Return True when the forwarder says that something changed, False when the connection ended."""
        try:
            while (notice := await self._receive()) is not None:
                if notice[0] is Kind.CHANGED:
                    return True
        except (OSError, TargetError):
            return False
        return False

    async def _receive(self) -> tuple[Kind, bytes] | None:
        """Return the next frame, or None at the end of the connection."""
        while not self._received:
            octets = await asyncio.get_running_loop().sock_recv(self._connection, _READ_OCTETS)
            if not octets:
                return None
            try:
                self._received.extend(self._frames.feed(octets))
            except WireError as error:
                raise ForeignError(self.pid, error) from error
        return self._received.popleft()


def _gone(reason: str) -> TargetError:
    return TargetError(f"the forwarder went away: {reason}", hint=_NEXT_PASS)
