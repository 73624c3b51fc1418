"""The control socket of the daemon: status, leases, events and network config by HTTP on a Unix socket.

GET /v1/status, GET /v1/leases, GET /v1/events, GET and PUT /v1/config, GET /v1/store-times, POST /v1/plan,
POST /v1/matrix, POST /v1/peer-bytes, POST /v1/wireguard-key.
wire.control_json defines the documents. Only root and the user of the daemon have access.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs

from pyflannel.errors import (
    BusyError,
    ConfigError,
    FlannelError,
    NotReadyError,
    StoreError,
    UsageError,
    WireError,
)
from pyflannel.http.server import HttpServer, Request, Response, Routes
from pyflannel.http.sockets import LOOK_S, UnixPlace, is_ours, serve_unix
from pyflannel.model.lease import Lease, LeaseEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.reach_matrix import Matrix
from pyflannel.model.status import JournalEntry, PlanPreview, Status, StoreTimes
from pyflannel.wire.control_json import (
    format_config_text,
    format_document,
    format_error,
    format_events,
    format_leases,
    format_peer_bytes,
    format_preview,
    format_public_key,
    format_status,
    format_store_times,
    parse_subnets,
)
from pyflannel.wire.network_config_json import parse_network_config


class Controlled(Protocol):
    """The interface of the daemon that the control socket uses. The daemon returns leases and config from
    memory.
    """

    async def status(self) -> Status:
        """Return the current status, within a bounded time."""

    def leases(self, most: int | None = None) -> Sequence[Lease]:
        """Return every known lease, including the lease of this host; with `most`, at most this number of
        random leases of other hosts.
        """

    def change_ages(self) -> Mapping[IpNetwork, float]:
        """Return the seconds since the last change of each peer that changed, by its subnet."""

    def events(self) -> Sequence[JournalEntry]:
        """Return the events of the passes in the order of time, with the latest event last."""

    async def preview(self, text: str | None) -> PlanPreview:
        """Return the changes that the next pass would make, with this network config, or with the config in
        force.

        Raises:
            ConfigError: the config is invalid, or this host would refuse it.
            NotReadyError: this host has no lease yet.
            TargetError: the state of the host cannot be read.
        """

    def config_text(self) -> str | None:
        """Return the network config in use; None if there is none."""

    async def set_config(self, text: str) -> None:
        """Write the network config to the store.

        Raises:
            StoreError: the config was not written, or the result of the write is unknown.
        """

    async def matrix(self, hosts: Sequence[IpNetwork]) -> Matrix:
        """Return which of these hosts reach which other hosts, within 3 s; of all hosts, if no host is named.

        Raises:
            UsageError: a host has no lease, there are too many hosts, or fewer than two.
        """

    async def peer_bytes(self, hosts: Sequence[IpNetwork]) -> Mapping[IpNetwork, int]:
        """Return the bytes that these hosts received from this host, as counted within the last second;
        without the hosts that do not count or do not answer.
        """

    async def store_times(self) -> StoreTimes:
        """Send some requests to the store and return how long the requests took, within a bounded time."""

    async def rotate_key(self) -> str:
        """Replace the WireGuard key of this host and return the new public key.

        Raises:
            NotReadyError: WireGuard is not in use, or the store is unreachable.
            TargetError: the key cannot be created or stored.
        """


async def serve_control(path: Path, daemon: Controlled, *, look_s: float = LOOK_S) -> None:
    """Serve the control socket at `path` until cancelled, then remove it.

    Raises:
        BusyError: another daemon serves a socket at `path`.
        TargetError: the socket cannot be created at `path`.
    """
    place = UnixPlace(
        path=path,
        name="control socket",
        consequence="flannelctl gets no answer",
        hint="Run as root, or choose a --run-dir that is writable and short enough for a socket path.",
    )
    await serve_unix(place, HttpServer(control_routes(daemon), admit=is_ours), look_s=look_s)


def control_routes(daemon: Controlled) -> Routes:
    """Return the routes of the control socket."""

    async def status(_: Request) -> Response:
        return Response(status=200, body=format_status(await daemon.status()))

    async def leases(request: Request) -> Response:
        try:
            known = daemon.leases(_most(request.query))
        except UsageError as error:
            return Response(status=_status_of(error), body=format_error(error))
        ages = daemon.change_ages()
        entries = [LeaseEntry.of(lease, change_age_s=ages.get(lease.subnet)) for lease in known]
        return Response(status=200, body=format_leases(entries))

    async def events(_: Request) -> Response:
        return Response(status=200, body=format_events(daemon.events()))

    async def config(_: Request) -> Response:
        return Response(status=200, body=format_config_text(daemon.config_text()))

    async def set_config(request: Request) -> Response:
        try:
            parse_network_config(request.body)
            text = request.body.decode()
            await daemon.set_config(text)
        except FlannelError as error:
            return Response(status=_status_of(error), body=format_error(error))
        return Response(status=200, body=format_config_text(text))

    async def plan(request: Request) -> Response:
        try:
            found = await daemon.preview(request.body.decode(errors="replace") or None)
        except FlannelError as error:
            return Response(status=_status_of(error), body=format_error(error))
        return Response(status=200, body=format_preview(found))

    async def matrix(request: Request) -> Response:
        try:
            found = await daemon.matrix(parse_subnets(request.body))
        except FlannelError as error:
            return Response(status=_status_of(error), body=format_error(error))
        return Response(status=200, body=format_document(found))

    async def peer_bytes(request: Request) -> Response:
        try:
            found = await daemon.peer_bytes(parse_subnets(request.body))
        except FlannelError as error:
            return Response(status=_status_of(error), body=format_error(error))
        return Response(status=200, body=format_peer_bytes(found))

    async def store_times(_: Request) -> Response:
        return Response(status=200, body=format_store_times(await daemon.store_times()))

    async def rotate_key(_: Request) -> Response:
        try:
            public_key = await daemon.rotate_key()
        except FlannelError as error:
            return Response(status=_status_of(error), body=format_error(error))
        return Response(status=200, body=format_public_key(public_key))

    return {
        ("POST", "/v1/wireguard-key"): rotate_key,
        ("POST", "/v1/plan"): plan,
        ("POST", "/v1/matrix"): matrix,
        ("POST", "/v1/peer-bytes"): peer_bytes,
        ("GET", "/v1/status"): status,
        ("GET", "/v1/leases"): leases,
        ("GET", "/v1/events"): events,
        ("GET", "/v1/config"): config,
        ("GET", "/v1/store-times"): store_times,
        ("PUT", "/v1/config"): set_config,
    }


def _most(query: str) -> int | None:
    """Return the value of `most` in a query; None for all leases.

    Raises:
        UsageError: the value is not a number.
    """
    value = parse_qs(query, keep_blank_values=True, max_num_fields=8).get("most", [None])[0]
    if value is None:
        return None
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise UsageError(f"most is {value!r}, and must be a number", hint="Omit it to get all leases.")
    return int(value)


def _status_of(error: FlannelError) -> int:
    match error:
        case ConfigError() | UsageError() | WireError():
            return 422
        case StoreError() | NotReadyError():
            return 503
        case BusyError():
            return 409
        case _:
            return 500
