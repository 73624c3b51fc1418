"""Metrics over HTTP: GET /metrics.

The library that writes them is loaded by the first who asks: a daemon that nobody asks pays nothing for it.
"""

from collections.abc import Mapping
from typing import Protocol

from pyflannel.http.server import Request, Response, Routes
from pyflannel.model.status import Status


class Measured(Protocol):
    """What the door needs from the daemon."""

    async def statuses(self) -> Mapping[str, Status]:
        """Return how each network is now, by its name; "" is that of a daemon with one network only."""

    def utc(self) -> float:
        """Return seconds since the epoch."""


def metrics_routes(daemon: Measured) -> Routes:
    """Return what is answered."""

    async def metrics(_: Request) -> Response:
        from pyflannel.api.metrics.exposition import CONTENT_TYPE, expose

        body = expose(await daemon.statuses(), daemon.utc())
        return Response(status=200, body=body, content_type=CONTENT_TYPE)

    return {("GET", "/metrics"): metrics}
