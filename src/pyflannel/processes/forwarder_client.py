"""Client of a forwarder's control socket, and the status of a forwarder."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from pyflannel.errors import TargetError, WireError, in_words, is_permanent, remedy
from pyflannel.model.status import ForwarderStatus
from pyflannel.processes.forwarder_descriptors import pid_of_peer
from pyflannel.wire.forwarder_control import (
    SOCKET_NAME,
    FrameReader,
    Kind,
    decode_counters,
    decode_refusal,
    decode_state,
    decode_summary,
    encode_frame,
)

ANSWER_S = 5.0
"""Deadline in seconds for an answer of the forwarder. A busy forwarder needs milliseconds."""

_READ_BYTES = 65536
_DESCRIPTORS = 3
"""Number of descriptors in HANDED: listener, UDP socket, device."""

_STATUS_S = 1.0
"""Deadline in seconds for a status, because a status must not wait for a forwarder that hangs."""

_NEXT_PASS = "The next pass starts the forwarder again."
_STARVED = "Check whether the process is stopped or gets no processor time, or has too many clients."


class AbsentError(TargetError):
    """No forwarder runs."""


class EndedError(TargetError):
    """The forwarder closed the connection."""


class SilentError(TargetError):
    """The forwarder with process ID `pid`, or 0 if the ID is unknown, runs and does not respond."""

    def __init__(self, pid: int) -> None:
        super().__init__(
            f"the forwarder{f' (pid {pid})' if pid else ''} did not respond for {ANSWER_S:.0f} s",
            hint="Check whether the forwarder is stopped, or gets no processor time. flanneld replaces a "
            "forwarder that does not respond.",
        )
        self.pid = pid


class ForeignError(TargetError):
    """The process `pid` that serves the socket does not use the protocol of the forwarder."""

    def __init__(self, pid: int, error: WireError) -> None:
        super().__init__(f"the forwarder (pid {pid}) uses another protocol: {error}", hint=error.hint)
        self.pid = pid


class RefusedError(TargetError):
    """The forwarder refused a request; `errno` is the error of the kernel, or 0."""

    def __init__(self, message: str, *, errno: int) -> None:
        hint = remedy(OSError(errno, message), "Read the log of the forwarder.")
        super().__init__(message, hint=hint, is_permanent=is_permanent(errno))


@asynccontextmanager
async def connected(path: Path) -> AsyncIterator["ForwarderClient"]:
    """Connect to the forwarder that listens at `path`, for the length of a block.

    Raises:
        AbsentError: no process listens at `path`.
        TargetError: the forwarder does not accept the connection.
    """
    loop, kind = asyncio.get_running_loop(), socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with ExitStack() as opened:
        try:
            connection = opened.enter_context(socket.socket(socket.AF_UNIX, kind))
            async with asyncio.timeout(ANSWER_S):
                await loop.sock_connect(connection, str(path))
            pid = pid_of_peer(connection)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise AbsentError(f"no forwarder listens at {path}", hint=_NEXT_PASS) from error
        except OSError as error:
            raise TargetError.of(
                f"the forwarder at {path} accepts no connection", error, hint=_STARVED
            ) from error
        client = ForwarderClient(connection, pid)
        opened.callback(client.close)
        yield client


class ForwarderClient:
    """Sends requests and receives notifications of changes. Only one task at a time may use a client.

    Attributes:
        pid: process ID of the forwarder.
        descriptors: the received descriptors. `close` closes these descriptors.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self._frames = FrameReader()
        self._received: deque[tuple[Kind, bytes]] = deque()
        self.descriptors: list[int] = []
        self.pid = pid

    def close(self) -> None:
        """Close the connection and the descriptors that were received."""
        self._connection.close()
        while self.descriptors:
            os.close(self.descriptors.pop())

    async def ask(self, kind: Kind, payload: bytes = b"", descriptors: Sequence[int] = ()) -> bytes:
        """Send a request, together with descriptors, and return the payload of its answer.

        Raises:
            RefusedError: the forwarder refused.
            SilentError: the forwarder did not respond in time.
            ForeignError: the process uses another protocol.
            TargetError: the connection ended.
        """
        try:
            async with asyncio.timeout(ANSWER_S):
                frame = encode_frame(kind, payload)
                # Descriptors arrive together with the first byte. The buffer is empty, because each answer is
                # awaited.
                if descriptors:
                    frame = frame[socket.send_fds(self._connection, [frame], descriptors) :]
                await asyncio.get_running_loop().sock_sendall(self._connection, frame)
                while (answer := await self._receive()) is not None and answer[0] is Kind.CHANGED:
                    pass
        except TimeoutError:
            raise SilentError(self.pid) from None
        except OSError as error:
            raise _gone(in_words(error)) from error
        if answer is None:
            raise _gone("it closed the connection")
        if answer[0] is Kind.REFUSED:
            errno, text = decode_refusal(answer[1])
            raise RefusedError(text, errno=errno)
        return answer[1]

    async def wait_for_change(self) -> bool:
        """Return True if the forwarder reports a change, False if the connection ended."""
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
            try:
                data, descriptors, _, _ = socket.recv_fds(
                    self._connection, _READ_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                await self._wait_readable()
                continue
            self.descriptors += descriptors
            if not data:
                return None
            try:
                self._received.extend(self._frames.feed(data))
            except WireError as error:
                raise ForeignError(self.pid, error) from error
        return self._received.popleft()

    async def _wait_readable(self) -> None:
        """Wait until the connection can be read. asyncio has no call that receives descriptors."""
        loop, readable = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._connection, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._connection)


def _gone(reason: str) -> EndedError:
    return EndedError(f"the connection to the forwarder ended: {reason}", hint=_NEXT_PASS)


async def forwarder_status(run_dir: Path) -> ForwarderStatus | None:
    """Return the status of the forwarder of a run directory; None if it does not respond within the deadline.

    The table of peers is not read, because it may be long, and packets would have to wait.
    """
    try:
        async with asyncio.timeout(_STATUS_S), connected(run_dir / SOCKET_NAME) as client:
            summary = decode_summary(await client.ask(Kind.READ_SUMMARY))
            counters = decode_counters(await client.ask(Kind.READ_COUNTERS))
            return ForwarderStatus(
                pid=client.pid,
                is_attached=summary.is_attached,
                restrictions=summary.restrictions.names,
                counters=counters,
            )
    except (TargetError, WireError, TimeoutError):
        return None


async def forwarder_link(run_dir: Path) -> str | None:
    """Return the device of the forwarder of a run directory; None if it does not respond within the
    deadline.
    """
    try:
        async with asyncio.timeout(_STATUS_S), connected(run_dir / SOCKET_NAME) as client:
            return decode_state(await client.ask(Kind.READ_STATE)).settings.link
    except (TargetError, WireError, TimeoutError):
        return None
