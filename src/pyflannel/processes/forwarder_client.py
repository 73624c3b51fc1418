"""One connection to a forwarder's control socket."""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from pyflannel.errors import TargetError, WireError
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
        super().__init__(message, hint=hint)
        self.errno = errno


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator["ForwarderClient"]:
    """Connect to the forwarder that listens at `path`, for the length of a block.

    Raises:
        AbsentError: nobody listens there.
        TargetError: it does not take the connection.
    """
    try:
        async with asyncio.timeout(ANSWER_S):
            reader, writer = await asyncio.open_unix_connection(path)
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise AbsentError(f"no forwarder answers at {path}", hint=_NEXT_PASS) from error
    except OSError as error:
        raise TargetError(f"the forwarder at {path} takes no connection: {error}", hint=_STARVED) from error
    try:
        yield ForwarderClient(reader, writer)
    finally:
        writer.close()


class ForwarderClient:
    """Asks, and hears of changes. One task at a time may use it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._frames = FrameReader()
        self._received: deque[tuple[Kind, bytes]] = deque()

    @property
    def pid(self) -> int:
        """The forwarder's process."""
        credentials = self._writer.get_extra_info("socket").getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
        return int(struct.unpack("3i", credentials)[0])

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
                self._writer.write(encode_frame(kind, payload))
                await self._writer.drain()
                while (answer := await self._receive()) is not None and answer[0] is Kind.CHANGED:
                    pass
        except TimeoutError:
            raise SilentError(self.pid) from None
        except OSError as error:
            raise _gone(error) from error
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
            octets = await self._reader.read(_READ_OCTETS)
            if not octets:
                return None
            try:
                self._received.extend(self._frames.feed(octets))
            except WireError as error:
                raise ForeignError(self.pid, error) from error
        return self._received.popleft()


def _gone(reason: object) -> TargetError:
    return TargetError(f"the forwarder went away: {reason}", hint=_NEXT_PASS)
