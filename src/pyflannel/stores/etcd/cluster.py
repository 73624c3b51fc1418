"""One etcd cluster behind several endpoints: the last that answered is asked first."""

from collections.abc import Callable, Coroutine, Sequence
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
    """The members, at most one connection to each, in the order in which they are asked."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, tls: TlsFiles | None = None, user: User | None = None
    ) -> None:
        """Speak to `endpoints` over TLS when there is `tls`, and as `user` when there is one."""
        self._given = tuple(endpoints)
        self._endpoints = list(endpoints)
        self._tls = tls
        self._login = None if user is None else Login(user)
        self._members: dict[Endpoint, Member] = {}

    async def ask(
        self,
        call: Callable[[Member], Coroutine[Any, Any, _Answer]],
        *,
        about: str = "",
        once: bool = False,
    ) -> _Answer:
        """Return what `call` returns at the first member that answers.

        `about`: the keys that are asked for, as a refusal names them.
        `once`: what may have reached one member is not sent to another, since it must not happen twice.

        Raises:
            RefusedError: a member refused; nothing took effect.
            StoreError: no member answered; with `once`, it may have taken effect all the same. Or a file of
                ours, a certificate or a password, cannot be used; nothing was sent then.
        """
        failures: list[tuple[Endpoint, Exception]] = []
        for endpoint in tuple(self._endpoints):
            member = self._member(endpoint)
            try:
                # Apart from the call: when this fails, surely nothing was sent.
                if not member.channel.is_open:
                    await within(CONNECT_S, member.channel.__connect__())
            except OSError as error:
                failures.append((endpoint, error))
                continue
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
        # In the order given, not by who answers first: the same trouble has the same text and is logged once.
        failures.sort(key=lambda failure: self._given.index(failure[0]))
        raise StoreError(
            f"etcd did not answer: {'; '.join(f'{where}: {explain(error)}' for where, error in failures)}",
            hint=hint_of(failures[0][1]),
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

    async def _answer(
        self, member: Member, call: Callable[[Member], Coroutine[Any, Any, _Answer]]
    ) -> _Answer:
        """Return the answer; a token that was refused, since it expired for example, is renewed once."""
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
        standing = self._members.get(endpoint)
        if standing is not None and standing.channel.is_stranded:
            # Nothing would be heard until the call's time is over.
            standing.channel.close()
            del self._members[endpoint]
        if endpoint not in self._members:
            member = Member.at(endpoint, self._tls)
            if self._login is not None:
                self._login.accompany(member)
            self._members[endpoint] = member
        return self._members[endpoint]


async def _cause(member: Member, error: Exception) -> Exception:
    """Return why a call ended without an answer: what it saw itself, or that our certificate is refused."""
    if isinstance(error, TimeoutError | GRPCError):
        return error
    return await member.alert() or error
