"""HTTP routes of the page: GET / and its files, GET /v1/… for the documents, POST /v1/config/check
and /v1/plan.

The documents are the same as the documents of `flannelctl --json`. Nothing on the page changes the host or
the network. The time of flanneld for all requests is bounded: clients share documents, and flanneld prepares
each slow document at most once at a time.
"""

import asyncio
import json
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs
from weakref import WeakKeyDictionary

from msgspec.structs import replace

from pyflannel.api.page.access import PROTECTION, Access
from pyflannel.commands.reach import decisive_echoes, probe_path, targets_of
from pyflannel.errors import FlannelError
from pyflannel.http.server import TEXT, Request, Response, Routes
from pyflannel.model.lease import Lease, LeaseEntry, PeerEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.probe import Echo, EchoResult, milliseconds
from pyflannel.model.status import JournalEntry, Notice, PlanPreview, ReachStatus, Status, peer_entries
from pyflannel.plan.backends import config_warnings, difference_of, effects_of
from pyflannel.plan.doctor.ping import judged
from pyflannel.plan.peers import place_of_subnet
from pyflannel.wire.control_json import (
    format_config_text,
    format_error,
    format_events,
    format_peers,
    format_ping,
    format_preview,
    format_status,
)
from pyflannel.wire.json_values import fold
from pyflannel.wire.network_config_json import format_network_config, parse_network_config

STATUS_S = 1.0
"""Maximum age in seconds of a status that flanneld sends to a further client."""

SHARED_S, COSTS = 0.5, 20
"""Minimum time in seconds for which clients share a document, and ratio of this time to the preparation time
of the document."""

PREPARED = 16
"""Maximum number of responses that are prepared at the same time. Further requests get 503, so that probes
of health are always answered."""

PING_S, PLAN_S, DOCTOR_S = 0.5, 2.0, 30.0
"""Minimum intervals in seconds between two pings, between two plans, and between two runs of doctor."""

HIDDEN = "***"
"""The text that replaces a secret of the network config."""

_STATIC = Path(__file__).with_name("static")

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class ShownNetwork(Protocol):
    """The interface of one network that the page uses."""

    async def status(self) -> Status:
        """Return the current status, within a bounded time."""

    def leases(self) -> Sequence[Lease]:
        """Return every known lease, including the lease of this host."""

    def change_ages(self) -> Mapping[IpNetwork, float]:
        """Return the seconds since the last change of each peer that changed, by its subnet."""

    async def bytes_from_peers(self, status: Status, peers: Sequence[PeerEntry]) -> Mapping[IpNetwork, int]:
        """Return the bytes of the tunnel packets from each peer, without unknown values."""

    def events(self) -> Sequence[JournalEntry]:
        """Return the events of the passes in the order of time, with the latest event last."""

    def config_text(self) -> str | None:
        """Return the network config in use; None if there is none."""

    def probe(self, echoes: Mapping[IpNetwork, Echo]) -> Mapping[IpNetwork, EchoResult]:
        """Return the latest result of each probe by the subnet of the peer, and repeat the probes for some
        seconds.
        """

    @property
    def probe_trouble(self) -> Notice | None:
        """The reason why the kernel refuses the probes; None if they are sent."""

    async def preview(self, text: str | None) -> PlanPreview:
        """Return the changes that the next pass would make, with this network config, or with the config in
        force.

        Raises:
            FlannelError: the config is invalid or refused, or the host has no plan.
        """

    async def examine(self) -> bytes:
        """Return the document of doctor.

        Raises:
            TargetError: doctor is not available.
        """


class ShownDaemon(Protocol):
    """The interface of the daemon that the page uses."""

    @property
    def networks(self) -> Mapping[str, ShownNetwork]:
        """Return the running networks by their names; "" is the name of a single network."""


class _BusyError(Exception):
    """The document is being prepared for another client, so this client must try again."""


class _View:
    """The documents of one network, which all clients share."""

    def __init__(self, network: ShownNetwork) -> None:
        self._network = network
        self._lock = asyncio.Lock()
        self._status: tuple[float, Status] | None = None
        self._bodies: dict[str, tuple[float, bytes]] = {}
        self._examined: tuple[float, bytes] | None = None
        self._is_examining = False

    async def peers(self) -> bytes:
        """Return the document of `flannelctl peers --json`."""
        status = await self._recent()
        return await self._shared("peers", lambda: self._peers(status))

    async def status(self) -> bytes:
        """Return the document of `flannelctl status --json`."""
        status = await self._recent()
        return await self._shared("status", lambda: self._with_reach(status))

    async def events(self) -> bytes:
        """Return the document of `flannelctl events --json`."""
        return await self._shared("events", self._events)

    async def config(self) -> bytes:
        """Return the network config in use, without its secrets."""
        return format_config_text(_without_secret(self._network.config_text()))

    async def doctor(self) -> bytes:
        """Return the document of `flannelctl doctor --json`, which is at most DOCTOR_S seconds old.

        Raises:
            _BusyError: the document is being prepared for another client.
            TargetError: doctor is not available.
        """
        if self._examined is not None and time.monotonic() < self._examined[0] + DOCTOR_S:
            return self._examined[1]
        if self._is_examining:
            raise _BusyError
        self._is_examining = True
        try:
            self._examined = time.monotonic(), await self._network.examine()
        finally:
            self._is_examining = False
        return self._examined[1]

    async def ping(self, name: str) -> bytes:
        """Return the document of `flannelctl ping --json` for the first family, without the checks of this
        host.

        Raises:
            FlannelError: no host has this name, or the kernel refuses the probes.
        """
        status = await self._recent()
        first = targets_of(status, self._leases(), name)[0]
        steps = await probe_path(first.status, first.peer, first.container)
        is_container = first.container is not None
        report = judged(first.peer, steps, is_container=is_container, status=first.status, local=())
        return format_ping(report)

    async def plan(self, text: str) -> bytes:
        """Return the document of `flannelctl plan --json --config`.

        Raises:
            FlannelError: the config is invalid or refused, or the host has no plan.
        """
        return format_preview(await self._network.preview(_with_secret(text, self._network.config_text())))

    def checked(self, text: str) -> bytes:
        """Return the document of `flannelctl config set --dry-run --json`.

        Raises:
            ConfigError: the config is invalid.
        """
        stored = self._network.config_text()
        new = parse_network_config(_with_secret(text, stored))
        effects = [] if stored is None else effects_of(parse_network_config(stored), new, self._leases())
        document = {
            **json.loads(_without_secret(format_network_config(new)) or "{}"),
            "Warnings": list(config_warnings(new)),
            "Difference": difference_of(_without_secret(stored), text),
            "Effects": effects,
            "Written": False,
        }
        return json.dumps(document).encode()

    async def _recent(self) -> Status:
        async with self._lock:
            if self._status is None or time.monotonic() >= self._status[0] + STATUS_S:
                self._status = time.monotonic(), await self._network.status()
            return self._status[1]

    async def _shared(self, name: str, form: Callable[[], Awaitable[bytes]]) -> bytes:
        async with self._lock:
            until, body = self._bodies.get(name, (0.0, b""))
            if (started := time.monotonic()) >= until:
                body = await form()
                ended = time.monotonic()
                self._bodies[name] = ended + max(SHARED_S, COSTS * (ended - started)), body
            return body

    def _leases(self) -> list[LeaseEntry]:
        ages = self._network.change_ages()
        return [LeaseEntry.of(lease, change_age_s=ages.get(lease.subnet)) for lease in self._network.leases()]

    def _probed(self, status: Status, leases: Sequence[LeaseEntry]) -> Mapping[IpNetwork, EchoResult]:
        """Return the latest result of the probe of each peer, and let the probes continue."""
        return self._network.probe(decisive_echoes(status, leases))

    async def _events(self) -> bytes:
        return format_events(self._network.events())

    async def _peers(self, status: Status) -> bytes:
        leases = self._leases()
        known, probed = peer_entries(status, leases), self._probed(status, leases)
        received = await self._network.bytes_from_peers(status, known)
        entries = []
        for entry in known:
            if (size := received.get(entry.subnet)) is not None:
                entry = replace(entry, received_bytes=size)
            if (result := probed.get(entry.subnet)) is not None:
                entry = replace(entry, is_reached=result.state == "reached", rtt_ms=milliseconds(result))
            entries.append(entry)
        return format_peers(entries)

    async def _with_reach(self, status: Status) -> bytes:
        probed = self._probed(status, self._leases())
        silent = sorted(
            (subnet for subnet, one in probed.items() if one.state != "reached"), key=place_of_subnet
        )
        trouble = self._network.probe_trouble
        warnings = () if trouble is None else (f"peers are not probed: {trouble}",)
        if status.network is not None:
            status = replace(
                status, network=replace(status.network, text=_without_secret(status.network.text))
            )
        return format_status(
            replace(
                status,
                reach=ReachStatus(probed=len(probed), silent=tuple(silent)) if probed else None,
                warnings=(*status.warnings, *warnings),
            )
        )


def page_routes(daemon: ShownDaemon, access: Access) -> Routes:
    """Return the routes of the page."""
    page = _Page(daemon, access)
    return {
        **{("GET", path): page.file(name) for path, name in _files().items()},
        ("GET", "/v1/networks"): page.document(page.networks),
        ("GET", "/v1/status"): page.document(page.of_network(_View.status)),
        ("GET", "/v1/peers"): page.document(page.of_network(_View.peers)),
        ("GET", "/v1/events"): page.document(page.of_network(_View.events)),
        ("GET", "/v1/config"): page.document(page.of_network(_View.config)),
        ("GET", "/v1/doctor"): page.document(page.of_network(_View.doctor)),
        ("GET", "/v1/ping"): page.document(page.ping),
        ("POST", "/v1/config/check"): page.document(page.check),
        ("POST", "/v1/plan"): page.document(page.plan),
    }


def _files() -> Mapping[str, str]:
    """Return the file names of the page, keyed by their URL paths."""
    names = [file.name for file in _STATIC.iterdir()]
    return {"/": "index.html", **{f"/{name}": name for name in names if name != "index.html"}}


_Answer = Callable[[Request], Awaitable[bytes]]


class _Page:
    def __init__(self, daemon: ShownDaemon, access: Access) -> None:
        self._daemon = daemon
        self._access = access
        self._views: WeakKeyDictionary[ShownNetwork, _View] = WeakKeyDictionary()
        self._prepared = 0
        self._may_ping_at = self._may_check_at = self._may_plan_at = 0.0

    def file(self, name: str) -> Callable[[Request], Awaitable[Response]]:
        """Return the handler of a file of the page."""

        async def handler(request: Request) -> Response:
            if (refusal := self._access.objection_to_file(request)) is not None:
                return refusal
            path = _STATIC / name
            content_type = _TYPES[path.suffix]
            return Response(status=200, body=path.read_bytes(), content_type=content_type, headers=PROTECTION)

        return handler

    def document(self, answer: _Answer) -> Callable[[Request], Awaitable[Response]]:
        """Return the handler of a document. The handler checks the access, and reports errors."""

        async def handler(request: Request) -> Response:
            if (refusal := self._access.objection_to_document(request)) is not None:
                return refusal
            if self._prepared >= PREPARED:
                return _later()
            self._prepared += 1
            try:
                return Response(status=200, body=await answer(request), headers=PROTECTION)
            except _BusyError:
                return _later()
            except FlannelError as error:
                return Response(status=422, body=format_error(error), headers=PROTECTION)
            finally:
                self._prepared -= 1

        return handler

    def of_network(self, document: Callable[[_View], Awaitable[bytes]]) -> _Answer:
        """Return the function that prepares a document of the network that the query of the request names."""
        return lambda request: document(self._view(request))

    async def networks(self, _: Request) -> bytes:
        """Return the names of the networks."""
        return json.dumps({"networks": sorted(self._daemon.networks)}).encode()

    async def ping(self, request: Request) -> bytes:
        """Return the ping report about the host that the query names. The interval between two pings limits
        the load of the hosts.
        """
        view, now = self._view(request), time.monotonic()
        if now < self._may_ping_at:
            raise _BusyError
        self._may_ping_at = now + PING_S
        return await view.ping(_parameter(request, "host"))

    async def check(self, request: Request) -> bytes:
        """Return the computed values and the effects of the config in the request body. Checks use a limited
        part of flanneld's processor time.
        """
        text, view, started = _config_in(request), self._view(request), time.monotonic()
        if started < self._may_check_at:
            raise _BusyError
        try:
            return view.checked(text)
        finally:
            ended = time.monotonic()
            self._may_check_at = ended + COSTS * (ended - started)

    async def plan(self, request: Request) -> bytes:
        """Return the changes that the config in the request would cause on this host.

        The page calls this route only at long intervals, because the route reads the state of the host.
        """
        text, view = _config_in(request), self._view(request)
        if time.monotonic() < self._may_plan_at:
            raise _BusyError
        self._may_plan_at = math.inf
        try:
            return await view.plan(text)
        finally:
            self._may_plan_at = time.monotonic() + PLAN_S

    def _view(self, request: Request) -> _View:
        name = _parameter(request, "network")
        network = self._daemon.networks.get(name)
        if network is None:
            raise FlannelError(
                f"flanneld runs no network {name!r}", hint="GET /v1/networks lists the networks."
            )
        if network not in self._views:
            self._views[network] = _View(network)
        return self._views[network]


def _parameter(request: Request, name: str) -> str:
    try:
        return parse_qs(request.query, max_num_fields=8).get(name, [""])[0]
    except ValueError as error:
        raise FlannelError(f"the query is invalid: {error}", hint="Use at most eight fields.") from error


def _config_in(request: Request) -> str:
    """Return the network config in the body of a request.

    Raises:
        FlannelError: the request may come from the form of another site.
    """
    if request.headers.get("content-type") != "application/json":
        raise FlannelError("the content type is not application/json", hint="Send the header Content-Type.")
    return request.body.decode(errors="replace")


def _later() -> Response:
    return Response(
        status=503,
        body=b"flanneld is preparing other answers: try again\n",
        content_type=TEXT,
        headers=(("Retry-After", "1"), *PROTECTION),
    )


# The network config contains a secret if its backend is wireguard with a preshared key.


_SECRETS = frozenset({"psk"})
"""Keys of the network config whose value is a secret. Upper and lower case are equal in keys, as in the
original."""


def _without_secret(text: str | None) -> str | None:
    """Return the config with HIDDEN in place of its secrets; unchanged without secrets."""
    if text is None:
        return None
    try:
        config = json.loads(text)
        shown = _with_secrets(config, lambda _: HIDDEN)
    except (ValueError, RecursionError):
        return HIDDEN  # flanneld never uses an invalid config
    return text if shown == config else json.dumps(shown, indent=2)


def _with_secret(text: str, stored: str | None) -> str:
    """Return the text with the stored secrets in place of HIDDEN."""
    secrets: list[object] = []
    try:
        _with_secrets(json.loads(stored or "{}"), secrets.append)
        config = json.loads(text)
        whole = _with_secrets(config, lambda value: secrets[0] if value == HIDDEN and secrets else value)
    except (ValueError, RecursionError):
        return text  # the text is not a config, and the function that parses it reports the error
    return text if whole == config else json.dumps(whole)


def _with_secrets(value: object, change: Callable[[object], object]) -> object:
    """Return a copy of a JSON value in which `change` replaced each secret."""
    match value:
        case dict():
            return {
                key: change(one) if fold(key) in _SECRETS else _with_secrets(one, change)
                for key, one in value.items()
            }
        case list():
            return [_with_secrets(one, change) for one in value]
        case _:
            return value
