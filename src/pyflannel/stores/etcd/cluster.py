"""An etcd cluster with several endpoints. The endpoint that answered last is tried first."""

from collections.abc import Callable, Coroutine, Sequence
from ipaddress import IPv4Address
from typing import Any, TypeVar

from grpclib.exceptions import GRPCError

from pyflannel.errors import StoreError
from pyflannel.stores.etcd.endpoint import Endpoint, TlsFiles
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
from pyflannel.stores.etcd.member import Login, Member, User

_Answer = TypeVar("_Answer")


class Cluster:
    """The members, with at most one connection to each, in the order in which they are tried."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, tls: TlsFiles | None = None, user: User | None = None
    ) -> None:
        """Use `endpoints`, over TLS if `tls` is given, and as `user` if one is given."""
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

        `about`: the requested keys, for the message of a refusal.
        `once`: do not send a request to another member after it may have reached one, so that it is not
        performed twice.

        Raises:
            RefusedError: a member refused the request, which had no effect.
            StoreError: no member answered. With `once`, the request may have had its effect. Or a certificate
                or password file is unusable, and nothing was sent.
        """
        failures: list[tuple[Endpoint, Exception]] = []
        for endpoint in tuple(self._endpoints):
            member = self._member(endpoint)
            try:
                # Separate from the call: if this fails, nothing was sent.
                if not member.channel.is_open:
                    await within(CONNECT_S, member.channel.__connect__())
            except OSError as error:
                failures.append((endpoint, error))
                continue
            if (address := member.channel.remote) is not None:
                self._reached[endpoint] = address
            try:
                answer = await self._answer(member, call)
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
        # In the given order, so that the same failure has the same text and is logged once.
        failures.sort(key=lambda failure: self._given.index(failure[0]))
        raise StoreError(
            f"etcd does not respond: {'; '.join(f'{where}: {explain(error)}' for where, error in failures)}",
            hint=hint_of(failures[0][1]),
        )

    def distrust(self, member: Member) -> None:
        """Try this member last from now on, over a new connection. Calls over the old connection end."""
        self._endpoints.remove(member.endpoint)
        self._endpoints.append(member.endpoint)
        if self._members.get(member.endpoint) is member:
            del self._members[member.endpoint]
        member.channel.close()

    def addresses(self) -> tuple[IPv4Address, ...]:
        """Return the members' IPv4 addresses: of a name, the one that it led to last."""
        known = (self._reached.get(endpoint, endpoint.ipv4) for endpoint in self._given)
        return tuple(address for address in known if address is not None)

    def close(self) -> None:
        """Close all connections."""
        for member in self._members.values():
            member.channel.close()
        self._members.clear()

    async def _answer(
        self, member: Member, call: Callable[[Member], Coroutine[Any, Any, _Answer]]
    ) -> _Answer:
        """Return the answer. A refused token, for example an expired one, is renewed once."""
        if self._login is None:
            return await within(CALL_S, call(member))
        token = await self._login.token(member)
        try:
            return await within(CALL_S, call(member))
        except GRPCError as error:
            if not needs_login(error, has_token=bool(token)):
                raise
        await self._login.renew(member, token)
        return await within(CALL_S, call(member))

    def _asked(self, about: str) -> str:
        return f"user {self._login.user.name!r} {about}" if self._login is not None else about

    def _member(self, endpoint: Endpoint) -> Member:
        existing = self._members.get(endpoint)
        if existing is not None and existing.channel.is_stranded:
            # A call would get no answer until its deadline.
            existing.channel.close()
            del self._members[endpoint]
        if endpoint not in self._members:
            member = Member.at(endpoint, self._tls)
            if self._login is not None:
                self._login.accompany(member)
            self._members[endpoint] = member
        return self._members[endpoint]


async def _cause(member: Member, error: Exception) -> Exception:
    """Return the cause of a call without an answer, or the TLS alert that refuses the client certificate."""
    if isinstance(error, TimeoutError | GRPCError):
        return error
    return await member.alert() or error
