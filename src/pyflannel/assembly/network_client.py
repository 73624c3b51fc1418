"""Whom to ask about the network: a store that was named, the running daemon, or the environment's store."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from pyflannel.assembly.control_client import ControlClient
from pyflannel.assembly.options import store_url_from_environment
from pyflannel.assembly.store_client import store_client
from pyflannel.assembly.store_flags import etcd_password_of
from pyflannel.errors import NotReadyError, StoreError, UsageError
from pyflannel.model.lease_entry import LeaseEntry
from pyflannel.model.secret import Secret

log = logging.getLogger(__name__)


class NetworkClient(Protocol):
    """The network as its store holds it, or as the daemon knows it."""

    async def config_text(self) -> str | None:
        """Return the network config, or None."""

    async def set_config(self, text: str) -> None:
        """Check and write the network config."""

    async def leases(self) -> list[LeaseEntry]:
        """Return every lease."""


class _Daemon:
    """The daemon; but its store is read while that answers.

    Only the store knows when leases expire, and a config that the daemon does not take.
    """

    def __init__(self, daemon: ControlClient, store_url: str | None, password: Secret | None) -> None:
        self._daemon = daemon
        self._store_url = store_url
        self._password = password
        self.set_config = daemon.set_config

    async def config_text(self) -> str | None:
        if self._store_url is not None:
            try:
                async with store_client(self._store_url, self._password) as client:
                    return await client.config_text()
            except (StoreError, UsageError) as error:
                log.warning("asked flanneld, which knows the config that it runs with: %s", error)
        return await self._daemon.config_text()

    async def leases(self) -> list[LeaseEntry]:
        if self._store_url is not None:
            try:
                async with store_client(self._store_url, self._password) as client:
                    return await client.leases()
            except (StoreError, UsageError) as error:
                log.warning("asked flanneld, which does not know when leases expire: %s", error)
        return await self._daemon.leases()


@asynccontextmanager
async def network_client(
    store_url: str | None, socket: Path, environ: Mapping[str, str], *, only_daemon: bool = False
) -> AsyncIterator[NetworkClient]:
    """Choose whom to ask, for the length of a block.

    Args:
        store_url: asked whenever it is given.
        socket: of the daemon, asked when it answers.
        environ: its FLANNELD_ variables name the store that is asked otherwise, and hold etcd's password.
        only_daemon: the user named the daemon, so nobody else will do.

    Raises:
        NotReadyError: `only_daemon`, and it does not answer.
        UsageError: the store's URL makes no sense.
    """
    password = etcd_password_of(environ)
    if store_url is None:
        daemon = ControlClient(socket)
        try:
            status = await daemon.status()
        except NotReadyError:
            if only_daemon:
                raise
            store_url = store_url_from_environment(environ)
        else:
            yield _Daemon(daemon, status.store.url if status.store else None, password)
            return
    async with store_client(store_url, password) as client:
        yield client
