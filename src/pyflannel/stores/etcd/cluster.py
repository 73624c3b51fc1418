"""One etcd cluster behind several endpoints: the last good one is asked first, the next when it fails."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import h2.exceptions
from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from pyflannel.errors import StoreError

CONNECT_S = 2
"""How long an endpoint may take to accept a connection."""

CALL_S = 5
"""How long an endpoint may take to answer; etcd itself gives a request up after about 7 s."""

BROKEN = (OSError, GRPCError, ProtocolError, StreamTerminatedError, h2.exceptions.H2Error, AssertionError)
"""Whatever ends a call before its answer: a broken connection shows in several layers of the client.

grpclib asserts that a message is there, and whole, when the stream has ended.
"""

_REFUSALS = {
    Status.INVALID_ARGUMENT: "See etcd's log: the request does not suit it.",
    Status.NOT_FOUND: "Try again: what the request named is gone.",
    Status.OUT_OF_RANGE: "Try again from a fresh listing.",
    Status.PERMISSION_DENIED: "Give the user a role that may read and write the prefix.",
    Status.UNAUTHENTICATED: "This etcd wants to know its users.",
    Status.RESOURCE_EXHAUSTED: "etcd is full or overloaded: compact, defragment, then disarm its alarm.",
    Status.UNIMPLEMENTED: "etcd 3.4 or newer is needed.",
}
"""What every member would say alike, and surely without effect; and what to do about it."""

# A stopped or unplugged member leaves its connections standing: only pings tell. etcd's servers drop clients
# that ping more often than every 5 s (--grpc-keepalive-min-time) or without calls.
# The connection's window is larger than a stream's, so that a watch nobody reads cannot starve the calls.
_CONFIGURATION = Configuration(
    _keepalive_time=6,
    _keepalive_timeout=4,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=5.5,
    http2_stream_window_size=1 << 20,
    http2_connection_window_size=1 << 24,
)

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where one member serves clients."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One endpoint, and the connection to it, which opens again by itself."""

    endpoint: Endpoint
    channel: Channel


class RefusedError(StoreError):
    """A member understood the request and refused it: nothing took effect."""

    def __init__(self, endpoint: Endpoint, status: Status, message: str | None) -> None:
        super().__init__(f"etcd at {endpoint} refused: {message or status.name}", hint=_REFUSALS[status])
        self.status = status


class Cluster:
    """The members, at most one connection to each, in the order in which they are asked."""

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = list(endpoints)
        self._members: dict[Endpoint, Member] = {}

    async def ask(
        self, call: Callable[[Member], Coroutine[Any, Any, _Answer]], *, once: bool = False
    ) -> _Answer:
        """Return what `call` returns at the first member that answers.

        `once`: what may have reached one member is not sent to another, since it must not happen twice.

        Raises:
            RefusedError: a member refused; nothing took effect.
            StoreError: no member answered; with `once`, it may have taken effect all the same.
        """
        failures = []
        for endpoint in tuple(self._endpoints):
            member = self._member(endpoint)
            try:
                # Apart from the call: when this fails, surely nothing was sent.
                await _within(CONNECT_S, member.channel.__connect__())
            except OSError as error:
                failures.append(f"{endpoint}: {explain(error)}")
                continue
            try:
                answer = await _within(CALL_S, call(member))
            except BROKEN as error:
                if isinstance(error, GRPCError) and error.status in _REFUSALS:
                    raise RefusedError(endpoint, error.status, error.message) from error
                failures.append(f"{endpoint}: {explain(error)}")
                self.distrust(member)
                if once:
                    break
            else:
                self._endpoints.remove(endpoint)
                self._endpoints.insert(0, endpoint)
                return answer
        raise StoreError(
            f"etcd did not answer: {'; '.join(failures)}",
            hint="Is etcd running, and are these the addresses where it serves clients?",
        )

    def distrust(self, member: Member) -> None:
        """Ask this member last from now on, over a new connection; all that uses the old one ends too."""
        self._endpoints.remove(member.endpoint)
        self._endpoints.append(member.endpoint)
        if self._members.get(member.endpoint) is member:
            del self._members[member.endpoint]
        member.channel.close()

    def close(self) -> None:
        """Close all connections."""
        for member in self._members.values():
            member.channel.close()
        self._members.clear()

    def _member(self, endpoint: Endpoint) -> Member:
        if endpoint not in self._members:
            channel = Channel(endpoint.host, endpoint.port, config=_CONFIGURATION)
            self._members[endpoint] = Member(endpoint, channel)
        return self._members[endpoint]


def explain(error: Exception) -> str:
    """Return in a few words why a member gave no answer."""
    match error:
        case TimeoutError():
            return "no answer in time"
        case ConnectionRefusedError():
            return "connection refused"
        case OSError():
            return error.strerror or str(error)
        case GRPCError():
            return error.message or error.status.name
        case _:
            return "connection lost"


async def apart(call: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Await `call` in a task of its own.

    grpclib 0.4 wakes a task whose connection broke by cancelling it and does not take that back
    (`Task.uncancel`): in the caller's own task, timeouts and task groups would go wrong from then on.
    For the same reason the error leaves the group as a value: the groups of Python 3.11 do likewise.
    """
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_answer_or_error(call))
    match task.result():
        case _Broken(error):
            raise error
        case answer:
            return answer


@dataclass(frozen=True, slots=True)
class _Broken:
    error: Exception


async def _answer_or_error(call: Coroutine[Any, Any, _Answer]) -> _Answer | _Broken:
    try:
        return await call
    except BROKEN as error:
        return _Broken(error)


async def _within(seconds: float, call: Coroutine[Any, Any, _Answer]) -> _Answer:
    async with asyncio.timeout(seconds):
        return await apart(call)
