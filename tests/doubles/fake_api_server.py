"""A Kubernetes API server for Nodes only, as strict as the real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

import h11

from pyflannel.model.kubernetes_node import DEFAULT_PREFIX

PATCH = "application/strategic-merge-patch+json"


class FakeApiServer:
    """Nodes with revisions, a watch with bookmarks and history, patches of their status, and faults.

    Attributes:
        host: the address on which it listens.
        requests: verb and path of each request, as in the audit log: list, watch, get, patch.
        patches: bodies of the accepted patches.
        events: the created Events.
        token: the only accepted token.
        forbidden: verbs that are answered with 403.
        failure: status and message by which every request fails, if not None.
        throttled: number of requests that are answered with 429 next.
        sends_bookmarks: True to end each watch with a bookmark.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.nodes: dict[str, dict[str, Any]] = {}
        self.revision = 100
        self.oldest = 0
        self.requests: list[tuple[str, str]] = []
        self.patches: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.token = "good"
        self.forbidden: set[str] = set()
        self.failure: tuple[int, str] | None = None
        self.throttled = 0
        self.port = 0
        self._history: list[tuple[int, str, dict[str, Any]]] = []
        self._news = asyncio.Condition()
        self._ended = 0
        self._conversations: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["FakeApiServer"]:
        server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._conversations:
                task.cancel()
            await asyncio.gather(*self._conversations, return_exceptions=True)

    def verbs(self) -> list[str]:
        return [verb for verb, _ in self.requests]

    # Methods that act as the operator.

    async def put(
        self, name: str, cidr: str | None = None, *, prefix: str = DEFAULT_PREFIX, **notes: str
    ) -> None:
        """Create a Node with flannel's annotations; underscores stand for dashes. Commas join podCIDRs."""
        cidrs = [] if cidr is None else cidr.split(",")
        spec = {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {}
        found = {prefix + key.replace("_", "-"): text for key, text in notes.items()}
        known = self.nodes.get(name)
        uid = f"uid-{self.revision}" if known is None else known["metadata"]["uid"]
        metadata = {"name": name, "uid": uid, "annotations": found}
        kind = "ADDED" if known is None else "MODIFIED"
        await self._change(kind, {"metadata": metadata, "spec": spec, "status": {}})

    async def annotate(self, name: str, **notes: str | None) -> None:
        node = json.loads(json.dumps(self.nodes[name]))
        for key, text in notes.items():
            full = DEFAULT_PREFIX + key.replace("_", "-")
            if text is None:
                node["metadata"]["annotations"].pop(full, None)
            else:
                node["metadata"]["annotations"][full] = text
        await self._change("MODIFIED", node)

    async def delete(self, name: str) -> None:
        await self._change("DELETED", self.nodes[name])

    async def end_watches(self) -> None:
        """End all watches, as the server does when their time is over."""
        async with self._news:
            self._ended += 1
            self._news.notify_all()

    def compact(self) -> None:
        """Forget the history, as a restart does."""
        self.oldest = self.revision

    def annotations(self, name: str) -> dict[str, str]:
        found = self.nodes[name]["metadata"]["annotations"]
        return {key.removeprefix(DEFAULT_PREFIX): text for key, text in found.items()}

    async def _change(self, kind: str, node: dict[str, Any]) -> dict[str, Any]:
        async with self._news:
            self.revision += 1
            metadata = {**node["metadata"], "resourceVersion": str(self.revision)}
            node = {"kind": "Node", "apiVersion": "v1", **node, "metadata": metadata}
            if kind == "DELETED":
                del self.nodes[metadata["name"]]
            else:
                self.nodes[metadata["name"]] = node
            self._history.append((self.revision, kind, node))
            self._news.notify_all()
        return node

    # Methods that answer requests of the API.

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        try:
            await self._answer(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._conversations.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        request, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                break
        assert request is not None
        parts = urlsplit(request.target.decode())
        query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        headers = dict(request.headers)
        verb = {"GET": "get", "PATCH": "patch", "POST": "create"}[request.method.decode()]
        if parts.path == "/api/v1/nodes":
            verb = "watch" if query.get("watch") == "true" else "list"
        self.requests.append((verb, request.target.decode()))

        def send(status: int, document: object, extra: list[tuple[str, str]] | None = None) -> None:
            data = json.dumps(document).encode()
            head = [("Content-Type", "application/json"), ("Content-Length", str(len(data)))]
            for piece in (
                h11.Response(status_code=status, headers=[*head, *(extra or [])]),
                h11.Data(data=data),
                h11.EndOfMessage(),
            ):
                writer.write(connection.send(piece) or b"")

        def refuse(status: int, message: str, extra: list[tuple[str, str]] | None = None) -> None:
            send(status, {"kind": "Status", "code": status, "message": message}, extra)

        if self.throttled:
            self.throttled -= 1
            return refuse(429, "too many requests", [("Retry-After", "1")])
        if headers.get(b"authorization") != f"Bearer {self.token}".encode():
            return refuse(401, "Unauthorized")
        if self.failure is not None:
            return refuse(*self.failure)
        if verb in self.forbidden:
            return refuse(403, f'nodes is forbidden: User "u" cannot {verb} resource "nodes"')
        match verb:
            case "list":
                if int(query.get("resourceVersion", "0")) > self.revision:
                    return refuse(504, "Too large resource version")
                metadata = {"resourceVersion": str(self.revision)}
                return send(200, {"kind": "NodeList", "metadata": metadata, "items": [*self.nodes.values()]})
            case "watch":
                return await self._watch(connection, writer, int(query["resourceVersion"]))
            case "get":
                if parts.path.startswith("/api/v1/namespaces/"):
                    return send(200, {"kind": "Pod", "spec": {"nodeName": "n1"}})
                name = parts.path.removeprefix("/api/v1/nodes/")
                return send(200, self.nodes[name]) if name in self.nodes else refuse(404, "not found")
            case "create":
                event = json.loads(body)
                if (
                    parts.path != "/api/v1/namespaces/default/events"
                    or event["metadata"]["namespace"] != "default"
                ):
                    return refuse(404, "Events of Nodes are in the namespace default")
                self.events.append(event)
                return send(201, event)
            case _:
                name, _, rest = parts.path.removeprefix("/api/v1/nodes/").partition("/")
                if rest != "status" or headers.get(b"content-type") != PATCH.encode():
                    return refuse(415, "only strategic merge patches of the status")
                if name not in self.nodes:
                    return refuse(404, f'nodes "{name}" not found')
                patch = json.loads(body)
                if patch["metadata"].pop("uid", None) not in (None, self.nodes[name]["metadata"]["uid"]):
                    return refuse(
                        409, f'Operation cannot be fulfilled on nodes "{name}": Precondition failed'
                    )
                self.patches.append(patch)
                return send(200, await self._patch(self.nodes[name], patch))

    async def _patch(self, node: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
        assert patch.keys() <= {"metadata", "status"}
        notes = patch.get("metadata", {}).get("annotations", {})
        conditions = {one["type"]: one for one in node["status"].get("conditions", [])}
        conditions |= {one["type"]: one for one in patch.get("status", {}).get("conditions", [])}
        notes = {**node["metadata"]["annotations"], **notes}
        kept = {name: text for name, text in notes.items() if text is not None}
        metadata = {**node["metadata"], "annotations": kept}
        return await self._change(
            "MODIFIED", {**node, "metadata": metadata, "status": {"conditions": [*conditions.values()]}}
        )

    async def _watch(self, connection: h11.Connection, writer: asyncio.StreamWriter, after: int) -> None:
        head = [("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")]
        writer.write(connection.send(h11.Response(status_code=200, headers=head)) or b"")

        def event(kind: str, document: object) -> None:
            line = json.dumps({"type": kind, "object": document}).encode() + b"\n"
            writer.write(connection.send(h11.Data(data=line)) or b"")

        if after < self.oldest:
            event("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
            writer.write(connection.send(h11.EndOfMessage()) or b"")
            return
        ended = self._ended
        while ended == self._ended:
            for revision, kind, node in list(self._history):
                if revision > after:
                    event(kind, node)
                    after = revision
            await writer.drain()
            async with self._news:
                while self.revision <= after and self._ended == ended:
                    await self._news.wait()
        event("BOOKMARK", {"kind": "Node", "metadata": {"resourceVersion": str(self.revision)}})
        writer.write(connection.send(h11.EndOfMessage()) or b"")
