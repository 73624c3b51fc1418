"""A user of etcd: shows the password for a token, which then goes with each call."""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path

from grpclib.const import Status
from grpclib.events import SendRequest, listen
from grpclib.exceptions import GRPCError

from pyflannel.errors import StoreError
from pyflannel.model.secret import Secret
from pyflannel.stores.etcd.call import CALL_S, within
from pyflannel.stores.etcd.failure import RefusedError, is_refusal
from pyflannel.stores.etcd.member import Member
from pyflannel.stores.etcd.rpc_grpc import AuthStub
from pyflannel.stores.etcd.rpc_pb2 import AuthenticateRequest

log = logging.getLogger(__name__)

_NO_USERS = ""
"""The token at a cluster that does not ask for its users: none goes with the calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who logs in.

    Attributes:
        password: itself, or the file in whose first line it stands, read at each login.
    """

    name: str
    password: Secret | Path

    def read_password(self) -> Secret:
        """Return the password as it is now.

        Raises:
            StoreError: the file cannot be read, or has no password in it.
        """
        if isinstance(self.password, Secret):
            return self.password
        try:
            line = self.password.read_text(encoding="utf-8").partition("\n")[0].rstrip("\r")
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise StoreError(
                f"the password file {self.password} cannot be read: {cause}",
                hint="It is read at each login: put it there, and let flanneld read it.",
            ) from None
        if not line:
            raise StoreError(
                f"the password file {self.password} has an empty first line",
                hint="Write the password of the etcd user into its first line.",
            )
        return Secret(line)


class Login:
    """The token of one user at one cluster, valid at all members."""

    def __init__(self, user: User) -> None:
        self.user = user
        self._token: str | None = None
        self._turn = asyncio.Lock()

    def accompany(self, member: Member) -> None:
        """Let the token, when there is one, go with every call to `member`."""

        async def add_token(event: SendRequest) -> None:
            if self._token:
                event.metadata["token"] = self._token

        listen(member.channel, SendRequest, add_token)

    async def token(self, member: Member) -> str:
        """Return the token, after logging in at `member` if there was none yet.

        Raises:
            StoreError: the password cannot be read, or is refused.
        """
        return await self.renew(member, None) if self._token is None else self._token

    async def renew(self, member: Member, refused: str | None) -> str:
        """Return another token than the one that was refused; of several calls only the first logs in."""
        async with self._turn:
            if self._token is None or self._token == refused:
                self._token = None  # an old one is not sent along
                self._token = await self._log_in(member)
            return self._token

    async def _log_in(self, member: Member) -> str:
        request = AuthenticateRequest(name=self.user.name, password=self.user.read_password().reveal())
        try:
            answer = await within(CALL_S, AuthStub(member.channel).Authenticate(request))
        except GRPCError as error:
            if error.status is Status.FAILED_PRECONDITION:
                log.debug("etcd does not ask for its users endpoint=%s", member.endpoint)
                return _NO_USERS
            if is_refusal(error):
                about = f"user {self.user.name!r}"
                raise RefusedError(member.endpoint, error.status, error.message, about) from error
            raise
        log.debug("Logged in at etcd endpoint=%s user=%s", member.endpoint, self.user.name)
        return str(answer.token)
