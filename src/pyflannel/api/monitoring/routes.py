"""HTTP routes for monitoring: GET /healthz, GET /readyz, GET /metrics.

/healthz shows that the daemon runs. /readyz shows whether packets can flow and the leases are up to date, or
the condition that is missing. Readiness becomes false again if the store is unreachable, the lease is lost,
or a repair failed.
"""

from collections.abc import Mapping
from typing import Protocol

from pyflannel.http.server import TEXT, Request, Response, Routes
from pyflannel.model.status import Status


class Watched(Protocol):
    """The interface of the daemon that the health checks use."""

    @property
    def waiting_for(self) -> str | None:
        """The reason why the host is not ready, in one line; None if it is ready."""


class Measured(Protocol):
    """The interface of the daemon that the metrics use."""

    async def statuses(self) -> Mapping[str, Status]:
        """Return the status of each network by its name; "" is the name of a single network."""

    def utc(self) -> float:
        """Return seconds since the epoch."""


def health_routes(daemon: Watched) -> Routes:
    """Return the HTTP routes of health checks. The texts of the responses are the same as those of the
    original flannel, and end without a newline.
    """

    async def healthz(_: Request) -> Response:
        return _text(200, "flanneld is running")

    async def readyz(_: Request) -> Response:
        waiting_for = daemon.waiting_for
        if waiting_for is None:
            return _text(200, "flanneld is ready")
        return _text(503, f"flanneld is not ready yet: {waiting_for}")

    return {("GET", "/healthz"): healthz, ("GET", "/readyz"): readyz}


def metrics_routes(daemon: Measured) -> Routes:
    """Return the route of metrics. To save memory, the library that formats metrics is loaded at the first
    request.
    """

    async def metrics(_: Request) -> Response:
        from pyflannel.api.monitoring.metrics import CONTENT_TYPE, expose

        body = expose(await daemon.statuses(), daemon.utc())
        return Response(status=200, body=body, content_type=CONTENT_TYPE)

    return {("GET", "/metrics"): metrics}


def _text(status: int, text: str) -> Response:
    return Response(status=status, body=text.encode(), content_type=TEXT)
