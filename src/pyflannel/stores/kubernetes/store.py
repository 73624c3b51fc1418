"""The store of a Kubernetes cluster: its Nodes, and the network config in a file."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from pyflannel.errors import CompactedError, StoreError, WireError, in_words, remedy
from pyflannel.model.kubernetes_node import NodeEvent
from pyflannel.model.network_config import IpAddress
from pyflannel.model.store_record import (
    Change,
    Conflict,
    Delete,
    Listing,
    Put,
    PutSeen,
    Record,
    StoreChanges,
    Written,
)
from pyflannel.ports import Clock, Watcher, in_thread
from pyflannel.stores.kubernetes.access import read
from pyflannel.stores.kubernetes.client import Answer, Client, RefusedError
from pyflannel.wire.kubernetes_node import (
    NODES,
    ApiFailure,
    Bookmark,
    format_event,
    parse_event,
    parse_has_items,
    parse_node,
    parse_nodes,
    parse_pod_node,
    rfc3339,
)
from pyflannel.wire.lease_record import CONFIG

LOOK_S = 5.0
"""Interval in seconds at which the file of the network config is read."""

_API = "/api/v1"
_GONE, _TOO_NEW = 410, 504
_SHORTEST_WATCH_S, _LONGEST_WATCH_S = 300, 599
"""Range of the random time after which a watch ends, so that the watches of many hosts do not end at the
same time."""

_SILENCE_S = 30.0
"""Seconds that a watch may last longer than requested. A watch that lasts longer is overdue, and counts as
broken."""


class KubernetesStore:
    """Two kinds of records: `config`, the content of a file, and `nodes/NAME`, the Nodes of the cluster.

    A Node is written by a patch: the value of a Put contains the changed parts of the Node, and no condition.
    """

    def __init__(self, client: Client, clock: Clock, *, config: Path, prefix: str) -> None:
        """`prefix`: the records contain the annotations whose names begin with this text."""
        self._client = client
        self._clock = clock
        self._config = config
        self._prefix = prefix
        self._text: bytes | None = None
        self._revision = 0
        self._seen = 0

    async def get(self, key: str) -> Record | None:
        """Return the record at exactly this key, or None."""
        if key == CONFIG:
            return self._read_config()
        try:
            return self._node(await self._client.call("GET", f"{_API}/{_path(key)}"))
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, prefix: str) -> Listing:
        """Return the config for the prefix `config`, and all Nodes for any other prefix."""
        if prefix == CONFIG:
            record = self._read_config()
            return Listing((record,), record.revision)
        try:
            # The server may answer from its memory, which must not be older than the known changes.
            body = await self._client.call("GET", f"{_API}/nodes?resourceVersion={self._seen}")
        except RefusedError as error:
            if error.status in (_GONE, _TOO_NEW):
                self._seen = 0  # a restored cluster continues from an older revision
            raise
        try:
            listing = await in_thread(parse_nodes, body, self._prefix)
        except WireError as error:
            raise StoreError(str(error), hint=error.hint) from error
        except OSError as error:
            raise StoreError(
                f"the Nodes cannot be read: {in_words(error)}", hint=remedy(error, "")
            ) from error
        self._seen = listing.revision
        return listing

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Patch the status of a Node."""
        if isinstance(operation, Delete) or operation.key == CONFIG:
            raise StoreError(
                f"{operation.key} cannot be written in Kubernetes",
                hint=f"Edit {self._config}. In a cluster, edit the ConfigMap that contains this file.",
            )
        path = f"{_API}/{_path(operation.key)}/status"
        return Written(self._node(await self._client.call("PATCH", path, operation.value)).revision)

    async def announce(self, node: str, event: NodeEvent) -> None:
        """Create an Event of a Node.

        Raises:
            StoreError: the server does not answer, or forbids the Event.
        """
        utc = self._clock.utc()
        body = format_event(node, event, rfc3339(utc), int(utc * 1e9))
        await self._client.call("POST", f"{_API}/namespaces/default/events", body)

    async def has_network_policies(self) -> bool:
        """Return whether the cluster has a NetworkPolicy.

        Raises:
            StoreError: the server does not answer, or forbids the request.
        """
        body = await self._client.call("GET", "/apis/networking.k8s.io/v1/networkpolicies?limit=1")
        try:
            return parse_has_items(body)
        except WireError as error:
            raise StoreError(str(error), hint=error.hint) from error

    @asynccontextmanager
    async def watch(self, prefix: str, after: int) -> AsyncIterator[Watcher]:
        """Watch the config, or all Nodes, for changes after revision `after`, during the block."""
        if prefix == CONFIG:
            yield _ConfigWatcher(self, after)
            return
        async with AsyncExitStack() as opened:
            watcher = _NodeWatcher(self, opened, after)
            await watcher.open()
            yield watcher

    async def time_to_live(self, record: Record) -> float | None:
        """Return None, because neither a Node nor the config expires."""
        return None

    async def age(self, record: Record) -> float | None:
        """Return None, because no record has a TTL."""
        return None

    def addresses(self) -> tuple[IpAddress, ...]:
        """Return the address of the API server, if it is known."""
        address = self._client.address
        return () if address is None else (address,)

    async def close(self) -> None:
        """Do nothing, because no connection remains open."""

    def _node(self, body: bytearray) -> Record:
        try:
            return parse_node(body, self._prefix)
        except WireError as error:
            raise StoreError(str(error), hint=error.hint) from error

    def _read_config(self) -> Record:
        text = read(self._config, "network config").encode()
        if text != self._text:
            self._text, self._revision = text, self._revision + 1
        return Record(key=CONFIG, value=text, revision=self._revision)


async def node_of_pod(client: Client, namespace: str, pod: str) -> str:
    """Return the name of the Node on which a pod runs.

    Raises:
        StoreError: the server does not answer, or the pod runs on no Node.
    """
    path = f"{_API}/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}"
    try:
        if name := parse_pod_node(await client.call("GET", path)):
            return name
    except WireError as error:
        raise StoreError(str(error), hint=error.hint) from error
    except RefusedError as error:
        if error.status != 403:
            raise
        hint = "Set NODE_NAME to the name of the Node, or let flanneld get its pod (resource pods, verb get)."
        raise StoreError(str(error), hint=hint) from error
    raise StoreError(
        f"node name not present in pod spec '{namespace}/{pod}'",
        hint="Set NODE_NAME to the name of the Node.",
    )


def _path(key: str) -> str:
    """Return the path of the record `nodes/NAME` in the API."""
    return NODES + quote(key.removeprefix(NODES), safe="")


class _ConfigWatcher:
    """Reads the file at intervals, because the volume of a ConfigMap replaces a link in its path."""

    def __init__(self, store: KubernetesStore, after: int) -> None:
        self._store = store
        self._after = after
        self._is_new = True

    async def next(self) -> StoreChanges:
        """Wait until the file changes, and return its content."""
        if self._is_new:
            self._is_new = False
            return StoreChanges((), self._after)
        while True:
            record = self._store._read_config()
            if record.revision != self._after:
                self._after = record.revision
                return StoreChanges((PutSeen(record),), record.revision)
            await self._store._clock.sleep(LOOK_S)


class _NodeWatcher:
    """A watch of all Nodes. When the server ends the watch, it is opened again at its last revision."""

    def __init__(self, store: KubernetesStore, opened: AsyncExitStack, after: int) -> None:
        self._store = store
        self._opened = opened
        self._after = after
        self._answer: Answer | None = None
        self._limit_s = 0.0
        self._is_new = True

    async def open(self) -> None:
        """Open the watch at the last revision.

        Raises:
            CompactedError: the server no longer has the changes since the last revision.
            StoreError: the watch cannot be opened.
        """
        await self._opened.aclose()
        seconds = random.randint(_SHORTEST_WATCH_S, _LONGEST_WATCH_S)
        self._limit_s = seconds + _SILENCE_S
        query = f"allowWatchBookmarks=true&resourceVersion={self._after}&timeoutSeconds={seconds}&watch=true"
        try:
            self._answer = await self._opened.enter_async_context(
                self._store._client.lines(f"{_API}/nodes?{query}")
            )
        except RefusedError as error:
            raise self._compacted(error.status) or error from error

    async def next(self) -> StoreChanges:
        """Wait for changes and return the changes."""
        if self._is_new:
            self._is_new = False
            return StoreChanges((), self._after)
        while True:
            assert self._answer is not None
            try:
                async with asyncio.timeout(self._limit_s):
                    lines = await self._answer.lines()
            except TimeoutError as error:
                raise StoreError("the watch is overdue", hint="flanneld opens another watch.") from error
            if not lines:
                await self.open()
                continue
            changes = self._changes(lines)
            if changes:
                return StoreChanges(changes, self._after)

    def _changes(self, lines: list[bytes]) -> tuple[Change, ...]:
        changes: list[Change] = []
        for line in lines:
            try:
                event = parse_event(line, self._store._prefix)
            except WireError as error:
                raise StoreError(str(error), hint=error.hint) from error
            match event:
                case ApiFailure(code, message):
                    raise self._compacted(code) or StoreError(
                        f"the API server ended the watch: {message}", hint="flanneld opens another watch."
                    )
                case Bookmark(revision):
                    self._note(revision)
                case change:
                    changes.append(change)
                    self._note(change.revision)
        return tuple(changes)

    def _note(self, revision: int) -> None:
        self._after = self._store._seen = revision

    def _compacted(self, status: int) -> CompactedError | None:
        return CompactedError(self._after, self._after + 1) if status == _GONE else None
