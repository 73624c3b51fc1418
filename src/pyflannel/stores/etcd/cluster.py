"""An etcd cluster: its members, their connections, and the token of the user.

The endpoint that answered last is tried first.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

from grpclib.client import Channel, Handler
from grpclib.config import Configuration
from grpclib.const import Status
from grpclib.events import SendRequest, listen
from grpclib.exceptions import GRPCError
from grpclib.protocol import H2Protocol
from msgspec import Struct

from pyflannel.errors import StoreError, StoreTimeoutError
from pyflannel.model.store_record import Secret
from pyflannel.stores.etcd.endpoint import Endpoint, SSLError, TlsFiles
from pyflannel.stores.etcd.failure import (
    BROKEN,
    CALL_S,
    CONNECT_S,
    RefusedError,
    explain,
    hint_of,
    is_refusal,
    needs_login,
    within,
)
from pyflannel.stores.etcd.rpc_grpc import AuthStub
from pyflannel.stores.etcd.rpc_pb2 import AuthenticateRequest

log = logging.getLogger(__name__)

Address = tuple[str, int] | tuple[str, int, int, int]
"""The address of a bound socket, IPv4 or IPv6."""


def is_still_local(address: Address) -> bool:
    """Return whether this host still has the address: a socket can be bound to it."""
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            probe.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True


_ALERT_S = 1.5
"""Maximum time in seconds to wait for the TLS alert of a member that has just closed a connection."""

# The connections of a stopped or unplugged member stay open, and only pings detect this. etcd drops clients
# that ping more often than every 5 s (--grpc-keepalive-min-time) or that ping without calls. The window of
# the connection is larger than the window of a stream, so that an unread watch does not block calls.
_CONFIGURATION = Configuration(
    _keepalive_time=6,
    _keepalive_timeout=4,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=5.5,
    http2_stream_window_size=1 << 20,
    http2_connection_window_size=1 << 24,
)


class _Protocol(H2Protocol):
    """Counts all received data as a sign of life, and stores the addresses of both ends of the connection.

    grpclib accepts only the answer to its ping as a sign of life. This answer follows all data that was sent
    before, which may be many megabytes if a watch catches up over a slow connection.
    """

    local: Address | None = None
    remote: Address | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.local = transport.get_extra_info("sockname")
        self.remote = transport.get_extra_info("peername")
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.connection.ping_ack_process()


class Connection(Channel):
    """A gRPC channel that reopens automatically, each time with the current TLS files.

    Attributes:
        remote: the member's IPv4 address at the last connection; None before that, or if it has no IPv4
            address.
    """

    def __init__(self, endpoint: Endpoint, tls: TlsFiles | None) -> None:
        super().__init__(endpoint.host, endpoint.port, config=_CONFIGURATION)
        self._tls = tls
        self._local: Address | None = None
        self.remote: IPv4Address | None = None

    @property
    def is_open(self) -> bool:
        """Return whether a call can be sent immediately."""
        return self._connected

    @property
    def is_stranded(self) -> bool:
        """Return whether the host has lost the local address of the connection."""
        return self._connected and self._local is not None and not is_still_local(self._local)

    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(Handler(), self._config, self._h2_config)

    async def _create_connection(self) -> H2Protocol:
        # grpclib uses one context for all connections, and has no way to replace it.
        if self._tls is not None:
            self._ssl = self._tls.context()
            self._scheme = "https"
        protocol = await super()._create_connection()
        assert isinstance(protocol, _Protocol)
        self._local = protocol.local
        remote = protocol.remote
        self.remote = IPv4Address(remote[0]) if remote is not None and len(remote) == 2 else None
        return protocol


class Member(Struct, frozen=True, eq=False):
    """An endpoint and the connection to it."""

    endpoint: Endpoint
    tls: TlsFiles | None
    channel: Connection

    @classmethod
    def at(cls, endpoint: Endpoint, tls: TlsFiles | None) -> "Member":
        """Return the member at `endpoint`, not connected yet."""
        return cls(endpoint, tls, Connection(endpoint, tls))

    async def alert(self) -> SSLError | None:
        """Return the TLS alert with which the member refuses the client certificate, or None.

        In TLS 1.3 the alert follows the handshake. At that time the client has already sent data, and a
        connection that is closed with unread bytes loses the alert. Therefore this connection sends nothing
        and only reads the alert.
        """
        if self.tls is None:
            return None
        try:
            await within(_ALERT_S, self._listen(self.tls))
        except SSLError as error:
            return error
        except (OSError, StoreError):
            return None
        return None

    async def _listen(self, tls: TlsFiles) -> None:
        reader, writer = await asyncio.open_connection(
            self.endpoint.host, self.endpoint.port, ssl=tls.context()
        )
        try:
            await reader.read(1)
        finally:
            writer.transport.abort()


_NO_USERS = ""
"""The token for a cluster without users: calls contain no token."""


class User(Struct, frozen=True, kw_only=True):
    """A user of etcd.

    Attributes:
        password: the password, or the path of a file that contains it in the first line and is read at each
            login.
    """

    name: str
    password: Secret | Path

    def read_password(self) -> Secret:
        """Return the current password.

        Raises:
            StoreError: the file is unreadable, or contains no password.
        """
        if isinstance(self.password, Secret):
            return self.password
        try:
            line = self.password.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise StoreError(
                f"the password file {self.password} cannot be read: {cause}",
                hint="Create the file, and make it readable for flanneld. flanneld reads the file at each "
                "login.",
            ) from None
        if not line:
            raise StoreError(
                f"the password file {self.password} has an empty first line",
                hint="Write the password of the etcd user in the first line.",
            )
        return Secret(line)


class Login:
    """The token of a user at a cluster, which is valid at all members."""

    def __init__(self, user: User) -> None:
        self.user = user
        self._token: str | None = None
        self._turn = asyncio.Lock()

    def accompany(self, member: Member) -> None:
        """Add the token, if the client has a token, to every call to `member`."""

        async def add_token(event: SendRequest) -> None:
            if self._token:
                event.metadata["token"] = self._token

        listen(member.channel, SendRequest, add_token)

    async def token(self, member: Member, call_s: float) -> str:
        """Return the token. Log in at `member` if the client has no token yet.

        Raises:
            StoreError: the password is unreadable, or etcd refused it.
        """
        return await self.renew(member, None, call_s) if self._token is None else self._token

    async def renew(self, member: Member, refused: str | None, call_s: float) -> str:
        """Return a token that differs from the refused token. Of several concurrent calls, only the first
        call logs in. `call_s`: deadline for the login.
        """
        async with self._turn:
            if self._token is None or self._token == refused:
                self._token = None  # the login must not contain the old token
                self._token = await self._log_in(member, call_s)
            return self._token

    async def _log_in(self, member: Member, call_s: float) -> str:
        request = AuthenticateRequest(name=self.user.name, password=self.user.read_password().reveal())
        try:
            answer = await within(call_s, AuthStub(member.channel).Authenticate(request))
        except GRPCError as error:
            if error.status is Status.FAILED_PRECONDITION:
                log.debug("Logged in without a user: etcd has no users endpoint=%s", member.endpoint)
                return _NO_USERS
            if is_refusal(error):
                about = f"user {self.user.name!r}"
                raise RefusedError(member.endpoint, error.status, error.message, about) from error
            raise
        log.debug("Logged in at etcd endpoint=%s user=%s", member.endpoint, self.user.name)
        return str(answer.token)


_Answer = TypeVar("_Answer")


class Cluster:
    """The members, with at most one connection to each, in the order in which they are tried."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        tls: TlsFiles | None = None,
        user: User | None = None,
        call_s: float = CALL_S,
    ) -> None:
        """Use `endpoints`, over TLS if `tls` is given, and as `user` if `user` is given.

        `call_s`: deadline for the answer of a member, after which the next member is asked.
        """
        self._call_s = call_s
        self._given = tuple(endpoints)
        self._endpoints = list(endpoints)
        self._tls = tls
        self._login = None if user is None else Login(user)
        self._members: dict[Endpoint, Member] = {}
        self._reached: dict[Endpoint, IPv4Address] = {}

    async def ask(
        self,
        call: Callable[[Member], Coroutine[Any, Any, _Answer]],
        *,
        about: str = "",
        once: bool = False,
    ) -> _Answer:
        """Return the result of `call` at the first member that answers.

        `about`: the requested keys, for the message of a refusal. `once`: if a request may have reached a
        member, do not send the request to another member, so that it is not performed twice.

        Raises:
            RefusedError: a member refused the request, and the request had no effect.
            StoreError: no member answered. With `once`, the request may have had its effect. This error is
                also raised if a certificate or password file is unusable; then nothing was sent.
        """
        failures: list[tuple[Endpoint, Exception]] = []
        for endpoint in tuple(self._endpoints):
            member = self._member(endpoint)
            try:
                # The connection is opened before the call. If the connection fails, no request was sent.
                if not member.channel.is_open:
                    await within(min(CONNECT_S, self._call_s), member.channel.__connect__())
            except OSError as error:
                failures.append((endpoint, error))
                continue
            if (address := member.channel.remote) is not None:
                self._reached[endpoint] = address
            try:
                answer = await self._answer(member, call, CALL_S if once else self._call_s)
            except BROKEN as error:
                if isinstance(error, GRPCError) and is_refusal(error):
                    raise RefusedError(endpoint, error.status, error.message, self._asked(about)) from error
                failures.append((endpoint, await _cause(member, error)))
                self.distrust(member)
                if once:
                    break
            else:
                self._endpoints.remove(endpoint)
                self._endpoints.insert(0, endpoint)
                return answer
        # The causes are in the given order, so that the same failure has the same text and is logged once.
        failures.sort(key=lambda failure: self._given.index(failure[0]))
        is_late = any(isinstance(error, TimeoutError) for _, error in failures)
        raise (StoreTimeoutError if is_late else StoreError)(
            f"etcd does not respond: {'; '.join(f'{where}: {explain(error)}' for where, error in failures)}",
            hint=hint_of(failures[0][1]),
        )

    def distrust(self, member: Member) -> None:
        """From now on, try this member last, over a new connection. Calls over the old connection end."""
        self._endpoints.remove(member.endpoint)
        self._endpoints.append(member.endpoint)
        if self._members.get(member.endpoint) is member:
            del self._members[member.endpoint]
        member.channel.close()

    def addresses(self) -> tuple[IPv4Address, ...]:
        """Return the members' IPv4 addresses; for a member with a name, the address of the latest
        connection.
        """
        known = (self._reached.get(endpoint, endpoint.ipv4) for endpoint in self._given)
        return tuple(address for address in known if address is not None)

    def close(self) -> None:
        """Close all connections."""
        for member in self._members.values():
            member.channel.close()
        self._members.clear()

    async def _answer(
        self, member: Member, call: Callable[[Member], Coroutine[Any, Any, _Answer]], call_s: float
    ) -> _Answer:
        """Return the answer. A refused token, for example an expired token, is renewed once."""
        if self._login is None:
            return await within(call_s, call(member))
        token = await self._login.token(member, call_s)
        try:
            return await within(call_s, call(member))
        except GRPCError as error:
            if not needs_login(error, has_token=bool(token)):
                raise
        await self._login.renew(member, token, call_s)
        return await within(call_s, call(member))

    def _asked(self, about: str) -> str:
        return f"user {self._login.user.name!r} {about}" if self._login is not None else about

    def _member(self, endpoint: Endpoint) -> Member:
        existing = self._members.get(endpoint)
        if existing is not None and existing.channel.is_stranded:
            # Without this check, a call on the old connection would wait until its deadline.
            existing.channel.close()
            del self._members[endpoint]
        if endpoint not in self._members:
            member = Member.at(endpoint, self._tls)
            if self._login is not None:
                self._login.accompany(member)
            self._members[endpoint] = member
        return self._members[endpoint]


async def _cause(member: Member, error: Exception) -> Exception:
    """Return the reason why a call got no answer, or the TLS alert that refuses the client certificate."""
    if isinstance(error, TimeoutError | GRPCError):
        return error
    return await member.alert() or error
