"""Deadlines of calls to an etcd member, and the causes of their failures."""

import asyncio
import errno
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import h2.exceptions
from google.protobuf.message import DecodeError
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from msgspec import Struct

from pyflannel.errors import StoreError
from pyflannel.stores.etcd.endpoint import Endpoint, SSLCertVerificationError, SSLError

NONSENSE = (DecodeError, ValueError, LookupError)
"""Errors of grpclib and its libraries for a message, a header or a status that violates the protocol."""

BROKEN = (
    OSError,
    GRPCError,
    ProtocolError,
    StreamTerminatedError,
    h2.exceptions.H2Error,
    AssertionError,
    *NONSENSE,
)
"""Errors that end a call before the answer arrives. grpclib and its libraries raise different errors for a
broken connection.

grpclib asserts that a complete message has arrived when the stream has ended.
"""

_REFUSALS = {
    Status.INVALID_ARGUMENT: "Read etcd's log: it rejects the request as invalid.",
    Status.NOT_FOUND: "Try again: the object of the request no longer exists.",
    Status.OUT_OF_RANGE: "Try again from a fresh listing.",
    Status.PERMISSION_DENIED: "Grant the user a role that may read and write all keys below the prefix.",
    Status.UNAUTHENTICATED: "Check the user, and that all members of the cluster have the same users.",
    Status.RESOURCE_EXHAUSTED: "etcd is full or overloaded: compact, defragment, then disarm its alarm.",
    Status.UNIMPLEMENTED: "Use etcd 3.4 or newer.",
}
"""The statuses of refusals, with their remedies. Every member would refuse the request. A refused request had
no effect."""

_HINTS = {
    "user name is empty": "This etcd requires a user: set --etcd-username and a password.",
    "authentication failed": "Check user and password. A password file is read again at each attempt.",
    "permission denied": _REFUSALS[Status.PERMISSION_DENIED],
}
"""Remedies for messages of etcd. A message is more specific than its status."""

_NEEDS_LOGIN = ("invalid auth token", "user name is empty", "revision of auth store is old")
"""Messages of etcd if the token is missing, expired, or older than the last change of its users."""

_NOT_RUNNING = "Check that etcd runs, and that the endpoints are its client addresses."
_NOT_TRUSTED = "Check the CA file, and the names and dates in the certificate of the member."
_NOT_LET_IN = (
    "Check the client certificate: the CA of the member must have signed it for client authentication."
)
_NO_PORT = (
    "This host has no free local port or address. Check with: sysctl net.ipv4.ip_local_port_range"
    " net.ipv4.ip_local_reserved_ports; ss -s. The defaults of the kernel: sysctl -w"
    " 'net.ipv4.ip_local_port_range=32768 60999' net.ipv4.ip_local_reserved_ports="
)
_NO_TLS = "If etcd serves without TLS, use http:// (or etcd://)."


class RefusedError(StoreError):
    """A member understood and refused the request, and the request had no effect."""

    def __init__(self, endpoint: Endpoint, status: Status, message: str | None, about: str = "") -> None:
        reason = (message or status.name).rpartition("etcdserver: ")[2]
        hints = (hint for text, hint in _HINTS.items() if text in reason)
        super().__init__(
            f"etcd at {endpoint} refused{about and f' {about}'}: {reason}",
            hint=next(hints, _REFUSALS.get(status, "Read etcd's log.")),
        )
        self.status = status


def is_refusal(error: BaseException) -> bool:
    """Return whether a member understood and refused the request, as every other member would."""
    return isinstance(error, GRPCError) and error.status in _REFUSALS


def needs_login(error: GRPCError, *, has_token: bool) -> bool:
    """Return whether the call may succeed with another token.

    Without a token, a client with a certificate is the user in its common name, possibly without permissions.
    """
    if error.status is Status.PERMISSION_DENIED:
        return not has_token
    return error.status is Status.UNAUTHENTICATED or any(
        text in (error.message or "") for text in _NEEDS_LOGIN
    )


def explain(error: BaseException) -> str:
    """Return the reason why a member gave no answer, as a short text."""
    match error:
        case SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
        case SSLError():
            reason = (error.reason or "TLS failed").lower().replace("_", " ")
            return f"it refused TLS: {_alert(reason)}" if "alert" in reason else f"TLS failed: {reason}"
        case TimeoutError():
            return "no answer in time"
        case ConnectionRefusedError():
            return "connection refused"
        case OSError():
            return error.strerror or str(error)
        case GRPCError():
            return error.message or error.status.name
        case _ if isinstance(error, NONSENSE):
            return f"it does not use etcd's protocol: {error}"
        case _ if isinstance(error, BROKEN):
            return "connection lost"
        case _:
            return f"{type(error).__name__}: {error}"


def hint_of(error: BaseException) -> str:
    """Return the remedy for a member that gave no answer."""
    match error:
        case SSLCertVerificationError():
            return _NOT_TRUSTED
        case SSLError() if "ALERT" in (error.reason or ""):
            return _NOT_LET_IN
        case SSLError():
            return _NO_TLS
        case OSError(errno=errno.EADDRNOTAVAIL):
            return _NO_PORT
        case _:
            return _NOT_RUNNING


def _alert(reason: str) -> str:
    """Return the name of the TLS alert, without the TLS version that OpenSSL adds before the name."""
    return reason.partition("alert ")[2]


CONNECT_S = 2
"""Deadline in seconds for a connection, including TLS."""

CALL_S = 5
"""Deadline in seconds for an answer. etcd itself cancels a request after about 7 s."""

_TICKS = 20
"""Number of ticks into which `patience` divides a deadline."""

_Answer = TypeVar("_Answer")


async def within(seconds: float, call: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Return the result of `call`. Raise TimeoutError after `seconds`, counted in the same way as in
    `patience`.
    """
    async with patience(seconds):
        return await apart(call)


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError in the body after `seconds` of time in which this process was scheduled.

    On a busy machine a process may not run for a while, although the answer has arrived. An ordinary timeout
    would report an error of the endpoint, and a new connection would increase the load. Therefore the time is
    counted in ticks. Each tick counts once, regardless of its delay.
    """
    loop = asyncio.get_running_loop()
    tick_s = seconds / _TICKS
    async with asyncio.timeout(None) as deadline:
        timer = loop.call_later(tick_s, lambda: count(_TICKS - 1))

        def count(left: int) -> None:
            nonlocal timer
            if left:
                timer = loop.call_later(tick_s, count, left - 1)
            else:
                deadline.reschedule(loop.time())  # the loop first handles data that has arrived

        try:
            yield
        finally:
            timer.cancel()


async def apart(call: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Await `call` in a separate task.

    If a connection breaks, grpclib 0.4 cancels the waiting task without `Task.uncancel`. In the caller's
    task, later timeouts and task groups would then fail. The task groups of Python 3.11 also omit
    `Task.uncancel`, so the error is returned from the group as a value.
    """
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_answer_or_error(call))
    if task.cancelled():  # grpclib cancelled the task; a cancellation of the caller does not reach this line
        raise StreamTerminatedError("the connection was lost")
    match task.result():
        case _Failed(error):
            raise error
        case answer:
            return answer


class _Failed(Struct, frozen=True):
    error: Exception


async def _answer_or_error(call: Coroutine[Any, Any, _Answer]) -> _Answer | _Failed:
    try:
        return await call
    except (*BROKEN, StoreError) as error:
        return _Failed(error)
