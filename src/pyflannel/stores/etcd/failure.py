"""One call to a member within its time, and the reasons why it failed."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import h2.exceptions
from google.protobuf.message import DecodeError
from grpclib.const import Status
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError

from pyflannel.errors import StoreError
from pyflannel.stores.etcd.endpoint import Endpoint, SSLCertVerificationError, SSLError

NONSENSE = (DecodeError, ValueError, LookupError)
"""What the client's layers raise when a member does not speak the protocol: a message, a header, a status."""

BROKEN = (
    OSError,
    GRPCError,
    ProtocolError,
    StreamTerminatedError,
    h2.exceptions.H2Error,
    AssertionError,
    *NONSENSE,
)
"""Whatever ends a call before its answer: a broken connection shows in several layers of the client.

grpclib asserts that a message is there, and whole, when the stream has ended.
"""

_REFUSALS = {
    Status.INVALID_ARGUMENT: "See etcd's log: the request does not suit it.",
    Status.NOT_FOUND: "Try again: what the request named is gone.",
    Status.OUT_OF_RANGE: "Try again from a fresh listing.",
    Status.PERMISSION_DENIED: "Grant the user a role that may read and write all keys below the prefix.",
    Status.UNAUTHENTICATED: "Check the user, and that the cluster's members agree on its users.",
    Status.RESOURCE_EXHAUSTED: "etcd is full or overloaded: compact, defragment, then disarm its alarm.",
    Status.UNIMPLEMENTED: "etcd 3.4 or newer is needed.",
}
"""What every member would say alike, and surely without effect; and what to do about it."""

_HINTS = {
    "user name is empty": "This etcd wants to know its users: give --etcd-username and a password.",
    "authentication failed": "Check user and password; a password file is read again at each try.",
    "permission denied": _REFUSALS[Status.PERMISSION_DENIED],
}
"""Where etcd's message says more than its status."""

_NEEDS_LOGIN = ("invalid auth token", "user name is empty", "revision of auth store is old")
"""What etcd says when the token is missing, expired, or older than the last change of its users."""

_NOT_RUNNING = "Is etcd running, and are these the addresses where it serves clients?"
_NOT_TRUSTED = "Check the CA file, and the names and dates in the certificate of that member."
_NOT_LET_IN = "Check our certificate: the member's CA must have signed it for client authentication."
_NO_TLS = "Say http:// (or etcd://) where etcd serves without TLS."


class RefusedError(StoreError):
    """A member understood the request and refused it: nothing took effect."""

    def __init__(self, endpoint: Endpoint, status: Status, message: str | None, about: str = "") -> None:
        reason = (message or status.name).rpartition("etcdserver: ")[2]
        hints = (hint for text, hint in _HINTS.items() if text in reason)
        super().__init__(
            f"etcd at {endpoint} refused{about and f' {about}'}: {reason}",
            hint=next(hints, _REFUSALS.get(status, "See etcd's log.")),
        )
        self.status = status


def is_refusal(error: BaseException) -> bool:
    """Return whether a member understood and refused, as every other would."""
    return isinstance(error, GRPCError) and error.status in _REFUSALS


def needs_login(error: GRPCError, *, has_token: bool) -> bool:
    """Return whether the call may go through with another token.

    Without one, a client with a certificate is the user in its common name, which may have no rights.
    """
    if error.status is Status.PERMISSION_DENIED:
        return not has_token
    return error.status is Status.UNAUTHENTICATED or any(
        text in (error.message or "") for text in _NEEDS_LOGIN
    )


def explain(error: BaseException) -> str:
    """Return in a few words why a member gave no answer."""
    match error:
        case SSLCertVerificationError():
            return f"its certificate is not accepted: {error.verify_message.rstrip('.')}"
        case SSLError():
            reason = (error.reason or "TLS failed").lower().replace("_", " ")
            return f"it refused our TLS: {_alert(reason)}" if "alert" in reason else f"no TLS: {reason}"
        case TimeoutError():
            return "no answer in time"
        case ConnectionRefusedError():
            return "connection refused"
        case OSError():
            return error.strerror or str(error)
        case GRPCError():
            return error.message or error.status.name
        case _ if isinstance(error, NONSENSE):
            return f"it does not speak etcd's protocol: {error}"
        case _ if isinstance(error, BROKEN):
            return "connection lost"
        case _:
            return f"{type(error).__name__}: {error}"


def hint_of(error: BaseException) -> str:
    """Return what to do about a member that gave no answer."""
    match error:
        case SSLCertVerificationError():
            return _NOT_TRUSTED
        case SSLError() if "ALERT" in (error.reason or ""):
            return _NOT_LET_IN
        case SSLError():
            return _NO_TLS
        case _:
            return _NOT_RUNNING


def _alert(reason: str) -> str:
    """Return the name of the alert alone: OpenSSL puts the version before it."""
    return reason.partition("alert ")[2]


CONNECT_S = 2
"""How long an endpoint may take to accept a connection, with TLS where there is."""

CALL_S = 5
"""How long an endpoint may take to answer; etcd itself gives a request up after about 7 s."""

_TICKS = 20
"""In so many parts a time is counted."""

_Answer = TypeVar("_Answer")


async def within(seconds: float, call: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Return what `call` does, or raise TimeoutError after `seconds` in which this process ran."""
    async with patience(seconds):
        return await apart(call)


@asynccontextmanager
async def patience(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError in the body after `seconds` that were lived through.

    A process that stood still, as one of many on a busy machine does, would else blame an endpoint for an
    answer that lay there unread; and whoever then connects anew makes the machine busier. So the time is
    counted in ticks, of which each counts once, however late it comes.
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
                deadline.reschedule(loop.time())  # what has arrived by now is seen first

        try:
            yield
        finally:
            timer.cancel()


async def apart(call: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Await `call` in a task of its own.

    grpclib 0.4 wakes a task whose connection broke by cancelling it and does not take that back
    (`Task.uncancel`): in the caller's own task, timeouts and task groups would go wrong from then on.
    For the same reason the error leaves the group as a value: the groups of Python 3.11 do likewise.
    """
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_answer_or_error(call))
    if task.cancelled():  # by grpclib: had it been the caller, we would not be here
        raise StreamTerminatedError("the connection was lost")
    match task.result():
        case _Failed(error):
            raise error
        case answer:
            return answer


@dataclass(frozen=True, slots=True)
class _Failed:
    error: Exception


async def _answer_or_error(call: Coroutine[Any, Any, _Answer]) -> _Answer | _Failed:
    try:
        return await call
    except (*BROKEN, StoreError) as error:
        return _Failed(error)
