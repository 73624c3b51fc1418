"""Two netlink sockets of one network namespace: one for requests, one for notifications."""

import asyncio
import ctypes
import errno
import itertools
import os
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from pyflannel.errors import TargetError, WireError, remedy
from pyflannel.ports import in_thread
from pyflannel.wire.netlink.message import (
    DONE,
    DUMP_INTERRUPTED,
    ERROR,
    Acknowledgement,
    Message,
    Request,
    pack,
    parse_acknowledgement,
    split,
)

# linux/netlink.h and asm-generic/socket.h; the socket module does not define them.
_SOL_NETLINK = 270
_CAP_ACK = 10
_EXT_ACK = 11
_GET_STRICT_CHECK = 12
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33

# The kernel answers during the send call, so the receive buffer must hold all answers of a batch. Each answer
# counts as about 800 bytes.
_BATCH = 256
_FEW = 10
"""Number of requests that the kernel performs in less time than a thread needs to start."""

_REQUEST_BUFFER = 1 << 20
NOTIFICATION_BUFFER = 4 << 20
_DATAGRAM = 1 << 16  # in bytes; the kernel fills at most 32 KiB
_DATAGRAMS_A_TURN = 200  # number of notifications that are read before other tasks run

# Errors that mean that a table is empty. A namespace has no main table before its first route, a kernel may
# not support IPv6, and a link may be removed during a dump.
_NOTHING_THERE = frozenset({errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.ENODEV})

_DEADLINE_S = 10.0
_DUMP_ATTEMPTS = 10

_MESSAGES_A_TURN = 50
"""Number of messages of a dump that are parsed before other tasks run: about half a millisecond of work."""

_Value = TypeVar("_Value")


class RequestSocket:
    """Sends requests to the kernel, one request or batch at a time.

    Args:
        protocol: NETLINK_* (linux/netlink.h).

    Raises:
        TargetError: the socket cannot be created.
    """

    def __init__(self, protocol: int = socket.NETLINK_ROUTE) -> None:
        self._socket = _open(_REQUEST_BUFFER, 0, protocol)
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHECK):
            _try_option(self._socket, _SOL_NETLINK, option, 1)
        try:
            self.port: int = self._socket.getsockname()[0]
        except OSError as error:
            self._socket.close()
            raise failed("the name of a netlink socket", error) from error
        self._sequence = 0
        self._turn = asyncio.Lock()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    async def transact(self, requests: Sequence[Request]) -> list[Acknowledgement]:
        """Perform requests that ask for an acknowledgement, in order. After a failed request, continue with
        the next request.

        Returns:
            One acknowledgement for each request, in the order of the requests.

        Raises:
            TargetError: the kernel did not answer, so the result of the requests is unknown.
        """
        answers: list[Acknowledgement] = []
        for start in range(0, len(requests), _BATCH):
            async with self._turn:
                answers += await self._transact_batch(requests[start : start + _BATCH])
            await asyncio.sleep(0)  # let other tasks run between two batches
        return answers

    async def dump(self, request: Request, read: Callable[[bytes], _Value | None]) -> list[_Value]:
        """Return the result of `read` for each message's body, in the kernel's order, omitting None.

        If the kernel's tables change during a dump, the dump is repeated.

        Raises:
            TargetError: the kernel refused or did not answer, its tables changed during every dump, or `read`
                raised WireError.
        """
        for _ in range(_DUMP_ATTEMPTS):
            async with self._turn:
                try:
                    values, is_whole = await self._dump_once(request, read)
                except WireError as error:
                    raise TargetError(str(error), hint=error.hint) from error
            if is_whole:
                return values
        raise TargetError(
            f"netlink dump was interrupted by changes {_DUMP_ATTEMPTS} times",
            hint="Find the program that constantly changes links, addresses or routes: `ip monitor`.",
        )

    async def ask(self, request: Request) -> Message | Acknowledgement:
        """Return the single message that answers a request, or the refusal of the kernel.

        Raises:
            TargetError: the kernel did not answer.
        """
        async with self._turn:
            first = self._send([request])
            async with _deadline():
                while True:
                    for message in await self._receive():
                        if message.sequence == first:
                            return parse_acknowledgement(message) if message.kind == ERROR else message

    async def transact_whole(self, requests: Sequence[Request]) -> Acknowledgement | None:
        """Perform all requests or none. The first and the last request delimit the batch and do not request
        an answer.

        Returns:
            The first refusal, in which case no request took effect; None if all requests took effect.

        Raises:
            TargetError: the kernel did not answer, so the result of the requests is unknown.
        """
        async with self._turn:
            first = await self._send_apart(requests)
            left = set(range(first + 1, first + len(requests) - 1))
            refusal: Acknowledgement | None = None
            async with _deadline():
                while left:
                    for message in await self._receive():
                        if message.kind != ERROR or not first <= message.sequence <= self._sequence:
                            continue
                        answer = parse_acknowledgement(message)
                        left.discard(answer.sequence)
                        if answer.errno:
                            refusal = refusal or answer
                        if answer.sequence == first:  # the kernel refused the batch itself
                            left.clear()
            return refusal

    async def _transact_batch(self, requests: Sequence[Request]) -> list[Acknowledgement]:
        first = await self._send_apart(requests) if len(requests) > _FEW else self._send(requests)
        answers: dict[int, Acknowledgement] = {}
        async with _deadline():
            while len(answers) < len(requests):
                for message in await self._receive():
                    if message.kind == ERROR and first <= message.sequence <= self._sequence:
                        answers[message.sequence] = parse_acknowledgement(message)
        return [answers[sequence] for sequence in range(first, first + len(requests))]

    async def _dump_once(
        self, request: Request, read: Callable[[bytes], _Value | None]
    ) -> tuple[list[_Value], bool]:
        sequence = self._send([request])
        values: list[_Value] = []
        is_whole, is_finished = True, False
        try:
            async with _deadline():
                while not is_finished:
                    for number, message in enumerate(await self._receive(), start=1):
                        if message.sequence != sequence:
                            continue
                        if number % _MESSAGES_A_TURN == 0:
                            await asyncio.sleep(0)  # let other tasks run during a long dump
                        is_whole = is_whole and not message.flags & DUMP_INTERRUPTED
                        if message.kind in (ERROR, DONE):
                            is_finished = True
                            _raise_refused_dump(parse_acknowledgement(message))
                        elif (value := read(message.body)) is not None:
                            values.append(value)
                    await asyncio.sleep(0)
        finally:
            if not is_finished:
                self._drain()
        return values, is_whole

    def _send(self, requests: Sequence[Request]) -> int:
        """Send the requests in one datagram and return the sequence number of the first request."""
        first, data = self._packed(requests)
        self._put(data)
        return first

    async def _send_apart(self, requests: Sequence[Request]) -> int:
        """Send the requests in a thread, so that other tasks run while the kernel performs the requests."""
        first, data = self._packed(requests)
        await in_thread(self._put, data)
        return first

    def _packed(self, requests: Sequence[Request]) -> tuple[int, bytes]:
        first = self._sequence + 1
        self._sequence += len(requests)
        return first, b"".join(pack(request, first + number) for number, request in enumerate(requests))

    def _put(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise failed("netlink request", error) from error

    async def _receive(self) -> list[Message]:
        try:
            data = await asyncio.get_running_loop().sock_recv(self._socket, _DATAGRAM)
            return list(split(data))
        except OSError as error:
            raise failed("netlink answer", error) from error
        except WireError as error:
            raise TargetError(str(error), hint=error.hint) from error

    def _drain(self) -> None:
        """Read an aborted dump to its end, because the kernel does not start another dump on the socket
        before the end.
        """
        while True:
            try:
                self._socket.recv(_DATAGRAM)
            except OSError:
                return


Field = tuple[int, tuple[bytes, ...]]
"""The offset of a field in a message that includes the header, and values of the field."""

# linux/filter.h, struct sock_filter and sock_fprog; linux/bpf_common.h
_INSTRUCTION = struct.Struct("=HBBI")
_PROGRAM = struct.Struct("@HP")
_LOAD = {1: 0x30, 2: 0x28, 4: 0x20}  # BPF_LD | BPF_ABS | BPF_B, BPF_H, BPF_W
_JUMP_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K with the number of bytes of the message to accept
_WHOLE = 0xFFFFFFFF


def _program(fields: Sequence[Field]) -> list[tuple[int, int, int, int]]:
    """Return the instructions that drop a message in which each field has one of its values."""
    pass_at = sum(1 + len(values) for _, values in fields) + 1
    program: list[tuple[int, int, int, int]] = []
    for offset, values in fields:
        program.append((_LOAD[len(values[0])], 0, 0, offset))
        for others, value in zip(range(len(values) - 1, -1, -1), values, strict=True):
            is_other = 0 if others else pass_at - len(program) - 1
            program.append((_JUMP_IF_EQUAL, others, is_other, int.from_bytes(value, "big")))
    return [*program, (_RETURN, 0, 0, 0), (_RETURN, 0, 0, _WHOLE)]


class NotificationSocket:
    """Receives notifications of the kernel: messages of multicast groups, beginning with its construction.

    Args:
        groups: mask of RTMGRP_* (linux/rtnetlink.h), or of another protocol's groups.
        protocol: NETLINK_* (linux/netlink.h).
        buffer_bytes: size of the receive buffer, in bytes. The kernel adds overhead to each message in the
            buffer, and drops messages that do not fit.

    Raises:
        TargetError: the socket cannot be created.
    """

    def __init__(
        self, groups: int, protocol: int = socket.NETLINK_ROUTE, buffer_bytes: int = NOTIFICATION_BUFFER
    ) -> None:
        self._socket = _open(buffer_bytes, groups, protocol)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def ignore(self, fields: Sequence[Field]) -> None:
        """Let the kernel drop all further messages in which each field has one of its values.

        The filter is a classic BPF program, which needs no rights. If the kernel refuses the filter, all
        messages are received.
        """
        program = _program(fields)
        data = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*each) for each in program))
        described = _PROGRAM.pack(len(program), ctypes.addressof(data))
        _try_option(self._socket, socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)

    async def wait(self, concerns: Callable[[Message], bool]) -> None:
        """Return when a message has arrived that `concerns` accepts, or when messages were lost."""
        loop = asyncio.get_running_loop()
        for number in itertools.count(1):
            try:
                data = await loop.sock_recv(self._socket, _DATAGRAM)
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    return  # the buffer was full: any message may have been lost
                raise failed("netlink notification", error) from error
            try:
                if any(concerns(message) for message in split(data)):
                    return
            except WireError:
                return  # an unreadable message may announce any change
            if number % _DATAGRAMS_A_TURN == 0:
                await asyncio.sleep(0)  # queued messages are received without waiting

    async def forget(self) -> None:
        """Discard all queued messages; let other tasks run in the meantime."""
        while not self._forget_some():
            await asyncio.sleep(0)

    def queued(self) -> Iterator[Message]:
        """Yield the queued messages, without waiting. Unreadable and lost messages are omitted."""
        while True:
            try:
                yield from split(self._socket.recv(_DATAGRAM))
            except WireError:
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return

    def drain(self) -> None:
        """Discard all queued messages."""
        while not self._forget_some():
            pass

    def _forget_some(self) -> bool:
        """Discard as many messages as one millisecond allows; return whether the queue is empty."""
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                self._socket.recv(_DATAGRAM)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return True  # the next wait() raises this error
        return False


@asynccontextmanager
async def _deadline() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_DEADLINE_S):
            yield
    except TimeoutError as error:
        raise TargetError(
            f"the kernel did not answer a netlink request within {_DEADLINE_S:.0f} s",
            hint="See the kernel's log (dmesg): another task holds the lock of the network configuration.",
        ) from error


def _open(buffer_bytes: int, groups: int, protocol: int = socket.NETLINK_ROUTE) -> socket.socket:
    try:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        opened = socket.socket(socket.AF_NETLINK, kind, protocol)
    except OSError as error:
        raise failed("netlink socket", error) from error
    # SO_RCVBUFFORCE needs CAP_NET_ADMIN. SO_RCVBUF is limited by net.core.rmem_max.
    _try_option(opened, socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    _try_option(opened, socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
    try:
        opened.bind((0, groups))
    except OSError as error:  # some groups need CAP_NET_ADMIN
        opened.close()
        raise failed("listening to the kernel's netlink groups", error) from error
    return opened


def _try_option(opened: socket.socket, level: int, option: int, value: int | bytes) -> None:
    """Set an option that is useful, but not required: the kernel may not support it, or this process may
    have no right to set it.
    """
    try:
        opened.setsockopt(level, option, value)
    except OSError:
        return


def _raise_refused_dump(answer: Acknowledgement) -> None:
    if answer.errno > 0 and answer.errno not in _NOTHING_THERE:
        raise failed("netlink dump", OSError(answer.errno, answer.text or os.strerror(answer.errno)))


def failed(what: str, error: OSError) -> TargetError:
    """Return the error for a failed system call."""
    hint = remedy(error, "See the kernel's log (dmesg) for the reason.")
    return TargetError.of(f"{what} failed", error, hint=hint)
