"""Requests to the Kubernetes API: HTTP/1.1 on asyncio, with one connection for each request.

A host sends four requests when it starts, and one request every few minutes for its watch. A connection for
each request costs less than a permanent connection, and uses renewed credentials.
"""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

import h11

from pyflannel import VERSION
from pyflannel.errors import StoreError, in_words
from pyflannel.model.network_config import IpAddress
from pyflannel.ports import Clock
from pyflannel.stores.kubernetes.access import Access, Connection
from pyflannel.wire.kubernetes_node import parse_failure

CALL_S = 10.0
"""Deadline in seconds for an answer, and for the start of a watch."""

THROTTLED_TRIES = 3
"""Number of attempts of a call. If the server throttles all attempts, the call fails."""

LONGEST_WAIT_S = 10.0
"""Longest pause in seconds that the server can require with Retry-After."""

LONGEST_LINE = 2 * 1024 * 1024
"""Maximum length of a line of a watch, in bytes: etcd limits an object to 1.5 MB."""

LONGEST_BODY: Final = 256 * 1024 * 1024
"""Maximum length of an answer, in bytes: enough for 10,000 Nodes with long lists of images."""

_READ = 64 * 1024
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""The kernel detects within 30 s that the server of a silent watch is unreachable."""

_DENIED = re.compile("denied (the )?request")
"""The start of the message if a policy or a webhook refused the request."""

JSON = "application/json"
PATCH = "application/strategic-merge-patch+json"


class RefusedError(StoreError):
    """The server refused a request. `status` is the HTTP status."""

    def __init__(self, message: str, *, hint: str, status: int) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class Client:
    """Sends requests to the API server that `access` names."""

    def __init__(self, access: Access, clock: Clock) -> None:
        self._access = access
        self._clock = clock
        self._address: IpAddress | None = None

    @property
    def address(self) -> IpAddress | None:
        """The address of the latest connection, otherwise the address in the URL; None if unknown."""
        if self._address is None:
            with contextlib.suppress(StoreError):
                return self._access.connection().server.address
        return self._address

    async def call(self, method: str, path: str, body: bytes = b"") -> bytearray:
        """Return the body of the answer. A throttled request is repeated when the server allows it.

        Raises:
            StoreError: no answer arrived in time, or the server refused the request (RefusedError).
        """
        for attempt in range(THROTTLED_TRIES):
            async with self._exchange(method, path, body) as answer:
                throttled_s = answer.retry_after_s
                if throttled_s is None or attempt == THROTTLED_TRIES - 1:
                    async with _deadline(answer.connection):
                        return await answer.body()
            await self._clock.sleep(throttled_s)
        raise AssertionError("unreachable")

    @asynccontextmanager
    async def lines(self, path: str) -> AsyncIterator["Answer"]:
        """Keep a watch open during the block.

        Raises:
            StoreError: no answer arrived in time, or the server refused the request (RefusedError).
        """
        async with self._exchange("GET", path, b"") as answer:
            async with _deadline(answer.connection):
                await answer.check()
            yield answer

    @asynccontextmanager
    async def _exchange(self, method: str, path: str, body: bytes) -> AsyncIterator["Answer"]:
        """Send a request on a new connection and yield its answer, whose head has arrived."""
        connection = self._access.connection()
        server = connection.server
        tls = connection.tls()
        async with contextlib.AsyncExitStack() as opened:
            async with _deadline(connection):
                reader, writer = await asyncio.open_connection(
                    server.host,
                    server.port,
                    limit=_READ,
                    ssl=tls,
                    server_hostname=(connection.config.server_name or server.host) if tls else None,
                )
                opened.callback(writer.transport.abort)
                self._note_address(writer)
                answer = Answer(connection, reader, f"{method} {path.partition('?')[0]}")
                writer.write(answer.request(method, path, body))
                await writer.drain()
                await answer.head()
            yield answer

    def _note_address(self, writer: asyncio.StreamWriter) -> None:
        raw = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                raw.setsockopt(socket.IPPROTO_TCP, option, value)
        with contextlib.suppress(ValueError, TypeError):
            self._address = ip_address(writer.get_extra_info("peername")[0])


class Answer:
    """The answer to one request."""

    def __init__(self, connection: Connection, reader: asyncio.StreamReader, request: str) -> None:
        self.connection = connection
        self._reader = reader
        self._shown = request
        self._h11 = h11.Connection(h11.CLIENT)
        self._response: h11.Response | None = None
        self._rest = bytearray()

    def request(self, method: str, path: str, body: bytes) -> bytes:
        """Return the bytes of the request."""
        server = self.connection.server
        host = f"[{server.host}]" if ":" in server.host else server.host
        headers = [
            ("Host", f"{host}:{server.port}"),
            ("Accept", JSON),
            ("User-Agent", f"pyflannel/{VERSION}"),
            ("Connection", "close"),
            *self.connection.headers(),
        ]
        if body:
            kind = PATCH if method == "PATCH" else JSON
            headers += [("Content-Type", kind), ("Content-Length", str(len(body)))]
        head = self._h11.send(h11.Request(method=method, target=server.path + path, headers=headers))
        content = self._h11.send(h11.Data(data=body)) if body else b""
        return (head or b"") + (content or b"") + (self._h11.send(h11.EndOfMessage()) or b"")

    async def head(self) -> None:
        """Read status and headers of the answer."""
        while self._response is None:
            event = await self._next()
            if isinstance(event, h11.Response):
                self._response = event
            elif not isinstance(event, h11.InformationalResponse):
                raise self._failed("the connection ended before the answer")

    @property
    def status(self) -> int:
        """The status of the answer."""
        return 0 if self._response is None else self._response.status_code

    @property
    def retry_after_s(self) -> float | None:
        """The seconds after which the server will accept the request; None if it was not throttled."""
        if self._response is None or self.status not in (429, 503):
            return None
        for name, value in self._response.headers:
            if name == b"retry-after" and value.isdigit():
                return min(float(value), LONGEST_WAIT_S)
        return 1.0 if self.status == HTTPStatus.TOO_MANY_REQUESTS else None

    async def check(self) -> None:
        """Raise unless the server accepted the request.

        Raises:
            RefusedError: the server refused the request.
        """
        if self.status // 100 != 2:
            raise _refusal(self, parse_failure(await self._whole()).message)

    async def body(self) -> bytearray:
        """Return the whole body of an accepted request. The text is not copied, because a list may have
        many MB.
        """
        await self.check()
        return await self._whole()

    async def _whole(self) -> bytearray:
        body = bytearray()
        while (event := await self._data()) is not None:
            body += event
            if len(body) > LONGEST_BODY:
                raise self._failed(f"the answer is longer than {LONGEST_BODY} bytes")
        return body

    async def lines(self) -> list[bytes]:
        """Return the next complete lines of a watch; an empty list at the end of the watch."""
        while True:
            data = await self._data()
            if data is None:
                return []
            self._rest += data
            if b"\n" in data:  # the rest of the previous call contains no line end
                break
            if len(self._rest) > LONGEST_LINE:
                raise self._failed(f"a line is longer than {LONGEST_LINE} bytes")
        whole, _, rest = bytes(self._rest).rpartition(b"\n")
        self._rest = bytearray(rest)
        return [line for line in whole.split(b"\n") if line.strip()]

    async def _data(self) -> bytes | None:
        event = await self._next()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            return None
        raise self._failed("the connection ended")

    async def _next(self) -> object:
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                self._h11.receive_data(await self._reader.read(_READ))
        except h11.RemoteProtocolError as error:
            raise self._failed(f"the answer is not HTTP: {error}") from error
        except OSError as error:
            raise self._failed(in_words(error)) from error
        return event

    def _failed(self, why: str) -> StoreError:
        return StoreError(f"{self.connection.server.url}: {self._shown}: {why}", hint="flanneld tries again.")


@asynccontextmanager
async def _deadline(connection: Connection) -> AsyncIterator[None]:
    """Limit the time of the block, and raise its failures as StoreError."""
    url = connection.server.url
    hint = "Check the URL, and that the API server runs and is reachable from this host."
    try:
        async with asyncio.timeout(CALL_S):
            yield
    except TimeoutError as error:
        raise StoreError(f"the API server {url} did not answer within {CALL_S:g} s", hint=hint) from error
    except OSError as error:
        if (reason := getattr(error, "verify_message", "")) or "certificate" in str(error).lower():
            is_time = any(word in reason for word in ("expired", "not yet valid"))
            raise StoreError(
                f"the certificate of the API server {url} is not valid: {reason or error}",
                hint="Compare the clock of this host with that of the API server, or renew the certificate."
                if is_time
                else "Use the certificate authority of the cluster: certificate-authority in the kubeconfig.",
            ) from error
        raise StoreError(f"the API server {url} cannot be reached: {in_words(error)}", hint=hint) from error


def _refusal(answer: Answer, message: str) -> RefusedError:
    """Return the error of a refused request, with its remedy."""
    url, credentials = answer.connection.server.url, answer.connection.credentials
    match answer.status:
        case 401:
            text = f"the API server {url} does not accept {credentials} (401 Unauthorized)"
            hint = (
                "Renew the credentials: they are expired, or belong to another cluster. flanneld reads them "
                "at each attempt."
            )
        case 400 | 403 | 422 if _DENIED.search(message):
            text = f"the admission control of {url} rejects the request: {message}"
            hint = "Let this policy or webhook of the cluster accept the changes of flanneld."
        case 403:
            text = f"the API server {url} forbids the request: {message}"
            hint = "Grant flanneld the role in deploy/kubernetes/rbac.yaml."
        case 404:
            text, hint = f"{message or 'not found'}", "Check the name of the Node: NODE_NAME."
        case 500 if "failed calling webhook" in message:
            text = f"a webhook of {url} does not answer: {message}"
            hint = "Repair this webhook of the cluster, or let it ignore nodes/status."
        case status:
            text = f"the API server {url} answered {status}: {message}"
            hint = "flanneld tries again. The log of the API server contains the reason."
    return RefusedError(text, hint=hint, status=answer.status)
