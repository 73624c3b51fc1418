"""The source of a command's answers: the running daemon, or the store."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from msgspec.structs import replace

from pyflannel.assembly.store_flags import etcd_password_of, store_url_from_environment
from pyflannel.assembly.stores import EmbeddedAddress, KubernetesAddress, open_store, parse_store_url
from pyflannel.errors import (
    FlannelError,
    NoStoreError,
    NotReadyError,
    StoreError,
    UsageError,
    WireError,
)
from pyflannel.http.server import Response
from pyflannel.http.sockets import request
from pyflannel.model.lease import Lease, LeaseEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.reach_matrix import Matrix
from pyflannel.model.status import JournalEntry, PlanPreview, Status, StoreTimes
from pyflannel.model.store_record import Conflict, Put, Record, Secret
from pyflannel.ports import Store
from pyflannel.processes.forwarder_client import forwarder_status
from pyflannel.wire.control_json import (
    format_subnets,
    parse_config_text,
    parse_error,
    parse_events,
    parse_leases,
    parse_matrix,
    parse_peer_bytes,
    parse_preview,
    parse_public_key,
    parse_status,
    parse_store_times,
)
from pyflannel.wire.lease_record import ALLOW_LIST, CONFIG, SUBNETS, lease_of
from pyflannel.wire.network_config_json import parse_network_config

DEADLINE_S = 2.0
"""Deadline in seconds for an answer that the daemon gives from memory. The daemon is never busy for this
time.

flannelctl itself needs up to 2 s to start on a busy host, and must answer within 5 s.
"""

READ_S, EXPIRIES_S = 1.2, 0.8
"""Deadlines in seconds for a read of the store, and for reading the expiries of the leases."""

MATRIX_S = 3.3
"""Deadline in seconds for the rows of other hosts; a little longer than the daemon's own deadline."""

WRITE_DEADLINE_S = 40.0
"""Deadline in seconds for an answer that depends on the store; longer than the daemon's own deadline."""


class ControlClient:
    """Client of the daemon at a control socket.

    Every call raises NotReadyError if no daemon answers in time, WireError if the answer is not from a
    daemon, and the error that the daemon reports.
    """

    def __init__(self, socket: Path, deadline_s: float = DEADLINE_S) -> None:
        """Use `socket`; each call opens a new connection to it. `deadline_s`: deadline for an answer that
        the daemon gives from memory.
        """
        self._socket = socket
        self._deadline_s = deadline_s

    async def status(self) -> Status:
        """Return the status of the daemon."""
        return parse_status(await self._ask("GET", "/v1/status"))

    async def leases(self, most: int | None = None) -> list[LeaseEntry]:
        """Return the leases that the daemon knows, without their expiry; with `most`, the lease of the host
        and at most this number of random others.
        """
        return parse_leases(
            await self._ask("GET", "/v1/leases" if most is None else f"/v1/leases?most={most}")
        )

    async def events(self) -> list[JournalEntry]:
        """Return the events of the daemon's passes, with the latest event last."""
        return parse_events(await self._ask("GET", "/v1/events"))

    async def config_text(self) -> str | None:
        """Return the network config that the daemon uses, or None."""
        return parse_config_text(await self._ask("GET", "/v1/config"))

    async def preview(self, text: str | None) -> PlanPreview:
        """Return the changes that the next pass would make, with this network config, or with the config
        in force.
        """
        return parse_preview(await self._ask("POST", "/v1/plan", body=(text or "").encode()))

    async def matrix(self, hosts: Sequence[IpNetwork]) -> Matrix:
        """Return which of these hosts reach which other hosts; of all hosts, if no host is named."""
        body = format_subnets(hosts)
        return parse_matrix(await self._ask("POST", "/v1/matrix", body=body, deadline_s=MATRIX_S))

    async def peer_bytes(self, hosts: Sequence[IpNetwork]) -> dict[IpNetwork, int]:
        """Return the bytes that these hosts received from this host, without unknown values."""
        body = format_subnets(hosts)
        return parse_peer_bytes(await self._ask("POST", "/v1/peer-bytes", body=body))

    async def store_times(self) -> StoreTimes:
        """Let the daemon send requests to its store, and return how long the requests took."""
        return parse_store_times(await self._ask("GET", "/v1/store-times"))

    async def set_config(self, text: str) -> None:
        """Let the daemon check the network config and write it to the store."""
        await self._ask("PUT", "/v1/config", body=text.encode(), deadline_s=WRITE_DEADLINE_S)

    async def rotate_key(self) -> str:
        """Let the daemon replace its WireGuard key; return the new public key."""
        return parse_public_key(await self._ask("POST", "/v1/wireguard-key", deadline_s=WRITE_DEADLINE_S))

    async def _ask(
        self, method: str, target: str, *, body: bytes = b"", deadline_s: float | None = None
    ) -> bytes:
        deadline_s = self._deadline_s if deadline_s is None else deadline_s
        try:
            answer = await request(self._socket, method, target, body=body, deadline_s=deadline_s)
        except OSError as error:
            raise NotReadyError(
                f"flanneld does not respond at {self._socket}: {_reason(error, deadline_s)}",
                hint=_hint(error),
            ) from error
        if answer.status != 200:
            raise _error_of(answer, f"{method} {target}")
        return answer.body


async def live_status(socket: Path) -> Status:
    """Return the status of the daemon at a control socket, and of its forwarder.

    flannelctl queries the forwarder itself if the daemon could not do so.

    Raises:
        NotReadyError: the daemon does not respond.
    """
    found = await ControlClient(socket).status()
    if found.forwarder is not None:
        return found
    return replace(found, forwarder=await forwarder_status(socket.parent))


def _error_of(answer: Response, question: str) -> Exception:
    try:
        return parse_error(answer.body)
    except WireError:
        text = answer.body.decode(errors="replace").strip()
        return WireError(
            f"flanneld answered {question} with status {answer.status}: {text}",
            hint="Check that flannelctl and flanneld have the same version.",
        )


def _reason(error: OSError, deadline_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {deadline_s:g} s"
    return (error.strerror or str(error)).lower()


def _hint(error: OSError) -> str:
    if isinstance(error, PermissionError):
        return "Run flannelctl as root, or as the user of flanneld."
    if isinstance(error, TimeoutError):
        return "Read the log of flanneld, and restart flanneld if it hangs."
    return "Start flanneld, or select its socket with --socket or --run-dir."


log = logging.getLogger(__name__)

_QUESTIONS_AT_ONCE = 32
"""Concurrent requests for expiries: enough requests to hide the latency of the store, but too few to
overload it."""


class StoreClient:
    """Reads and writes a network in a store. Every call raises StoreError if the store does not respond."""

    def __init__(self, store: Store) -> None:
        """Use `store`, which the caller must close."""
        self._store = store

    async def config_text(self) -> str | None:
        """Return the network config as it is stored, or None."""
        record = await self._store.get(CONFIG)
        return None if record is None else record.value.decode(errors="replace")

    async def set_config(self, text: str) -> None:
        """Write the network config.

        Raises:
            ConfigError: the config is invalid; nothing was written.
        """
        parse_network_config(text)
        await self._store.write(Put(key=CONFIG, value=text.encode(), ttl_s=None, expected=None))

    async def allow_list(self) -> Record | None:
        """Return the allow-list as it is stored, or None."""
        return await self._store.get(ALLOW_LIST)

    async def set_allow_list(self, text: bytes, expected: int) -> None:
        """Write the allow-list if the stored list has the revision `expected`; 0 if there was no list.

        Raises:
            StoreError: another program wrote a list in the meantime.
        """
        outcome = await self._store.write(Put(key=ALLOW_LIST, value=text, ttl_s=None, expected=expected))
        if isinstance(outcome, Conflict):
            raise StoreError(
                "the allow-list was changed by another program in the meantime",
                hint="Compare both lists, and try again.",
            )

    async def leases(self) -> list[LeaseEntry]:
        """Return every lease. Keys without a valid lease are logged and skipped.

        If the store does not report all expiries in time, the missing expiries are unknown.
        """
        listing = await self._store.list(SUBNETS)
        leases = [(record, lease) for record in listing.records if (lease := _lease(record)) is not None]
        expiries: dict[str, float | None] = {}
        turns = asyncio.Semaphore(_QUESTIONS_AT_ONCE)
        try:
            async with asyncio.timeout(EXPIRIES_S), asyncio.TaskGroup() as tasks:
                for record, lease in leases:
                    if lease.has_ttl:
                        tasks.create_task(self._ask_expiry(record, turns, expiries))
        except* TimeoutError:
            log.warning("the store has not reported the expiry of all leases within %g s", EXPIRIES_S)
        except* StoreError as failures:
            raise failures.exceptions[0] from None  # all failures have the same cause
        return [LeaseEntry.of(lease, expires_in_s=expiries.get(record.key)) for record, lease in leases]

    async def _ask_expiry(
        self, record: Record, turns: asyncio.Semaphore, expiries: dict[str, float | None]
    ) -> None:
        async with turns:
            expiries[record.key] = await self._store.time_to_live(record)


def is_missing(url: str) -> bool:
    """Return whether the URL names a database file that does not exist. Opening the store would create the
    file.

    Raises:
        UsageError: the URL is invalid.
    """
    address = parse_store_url(url).store
    return isinstance(address, EmbeddedAddress) and not address.path.exists()


@asynccontextmanager
async def opened_store(
    url: str, password: Secret | None = None, *, creates: bool = False
) -> AsyncIterator[Store]:
    """Open the store at `url` for the length of a block.

    Raises:
        NoStoreError: the file of the store does not exist, and `creates` is false.
        UsageError: the URL is invalid, or its user has no password.
    """
    if not creates and is_missing(url):
        raise NoStoreError(
            f"the store {url} does not exist",
            hint="Correct the path. If the path is right, 'flannelctl config set' creates the store.",
        )
    store = open_store(url, password, answer_s=READ_S)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def store_client(
    url: str, password: Secret | None = None, *, creates: bool = False
) -> AsyncIterator[StoreClient]:
    """Open the store at `url` as a client for the length of a block. The errors are the same as in
    `opened_store`.
    """
    async with opened_store(url, password, creates=creates) as store:
        yield StoreClient(store)


def _lease(record: Record) -> Lease | None:
    try:
        return lease_of(record)
    except WireError as error:
        log.warning("skipped a key without a valid lease: %s", error)
        return None


class NetworkClient(Protocol):
    """A network as the store contains it, or as the daemon knows it."""

    async def config_text(self) -> str | None:
        """Return the network config, or None."""

    async def set_config(self, text: str) -> None:
        """Check and write the network config."""

    async def leases(self) -> list[LeaseEntry]:
        """Return every lease."""


class _Daemon:
    """The daemon, and its store as long as the store responds.

    Only the store knows the expiry of leases, and a network config that the daemon rejected.
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
            except (StoreError, UsageError, NoStoreError) as error:
                log.warning("read the config that flanneld uses, because the store cannot be read: %s", error)
        return await self._daemon.config_text()

    async def leases(self) -> list[LeaseEntry]:
        if self._store_url is not None:
            try:
                async with store_client(self._store_url, self._password) as client:
                    return await client.leases()
            except (StoreError, UsageError, NoStoreError) as error:
                log.warning(
                    "read the leases from flanneld, without their expiry, because the store cannot be "
                    "read: %s",
                    error,
                )
        return await self._daemon.leases()


_SELECTION_S = 1.0
"""Deadline in seconds for the daemon to report the URL of its store. After this deadline, flannelctl uses the
store in the environment variables."""


@asynccontextmanager
async def network_client(
    store_url: str | None,
    socket: Path,
    environ: Mapping[str, str],
    *,
    only_daemon: bool = False,
    creates: bool = False,
) -> AsyncIterator[NetworkClient]:
    """Open the daemon or a store, for the length of a block.

    Args:
        store_url: the URL of the store, if the user gave one.
        socket: control socket of the daemon, which is used if no store is given and the daemon responds.
        environ: the environment, whose FLANNELD_ variables select the store to use if no daemon responds. The
            variables also contain etcd's password.
        only_daemon: the user selected the daemon, so no store is used instead.
        creates: True to create the file of an embedded store.

    Raises:
        NoStoreError: the file of the store does not exist, and `creates` is false.
        NotReadyError: `only_daemon` is true, and the daemon does not respond.
        UsageError: the store URL is invalid.
    """
    password = etcd_password_of(environ)
    if store_url is None:
        daemon = ControlClient(socket)
        try:
            status = await ControlClient(socket, _SELECTION_S).status()
        except NotReadyError as error:
            if only_daemon:
                raise
            store_url = _store_without_daemon(environ, error)
        else:
            url = status.store.url if status.store else None
            if url is not None and isinstance(parse_store_url(url).store, KubernetesAddress):
                url = None  # only flanneld can read this store
            yield _Daemon(daemon, url, password)
            return
    async with store_client(store_url, password, creates=creates) as client:
        yield client


def _store_without_daemon(environ: Mapping[str, str], error: NotReadyError) -> str:
    """Return the URL of the store that the variables select, and warn if they select none.

    `error`: the error of the request to the daemon, which knows its store.
    """
    url = store_url_from_environment(environ)
    if not any(name.startswith(("FLANNELD_STORE", "FLANNELD_ETCD_")) for name in environ):
        log.warning(
            "%s. flannelctl doctor shows the cause. Using the default store %s; select another store with "
            "--store",
            error,
            url,
        )
    return url


@asynccontextmanager
async def network_store(
    store_url: str | None,
    socket: Path,
    environ: Mapping[str, str],
    *,
    only_daemon: bool = False,
    creates: bool = False,
    whole: bool = False,
) -> AsyncIterator[Store]:
    """Open the store directly, for the length of a block; without a URL, open the store of the daemon.

    The arguments and errors are the same as those of `network_client`. With `whole`, a network in the URL is
    ignored.

    Raises:
        FlannelError: the store is Kubernetes, which keeps leases in Nodes.
    """
    if store_url is None:
        try:
            status = await ControlClient(socket, _SELECTION_S).status()
        except NotReadyError as error:
            if only_daemon:
                raise
            store_url = _store_without_daemon(environ, error)
        else:
            store_url = status.store.url if status.store else store_url_from_environment(environ)
    if whole:
        store_url = store_url.partition("#")[0]
    if isinstance(parse_store_url(store_url).store, KubernetesAddress):
        raise FlannelError(
            "the leases of this network are Nodes of Kubernetes, which this command neither reads nor "
            "changes",
            hint="Use kubectl get nodes -o yaml: the lease of a host is in the annotations of its Node.",
        )
    async with opened_store(store_url, etcd_password_of(environ), creates=creates) as store:
        yield store
