"""Health over HTTP, for whoever watches the host: GET /healthz and GET /readyz.

/healthz says that the daemon answers at all; /readyz whether packets can flow and the leases are known to be
true, and what is missing if not. It becomes false again: when the store is away, the lease is lost, or a pass
could not mend what it found.
"""

from typing import Protocol

from pyflannel.http.server import TEXT, Request, Response, Routes


class Watched(Protocol):
    """What the door needs from the daemon."""

    @property
    def waiting_for(self) -> str | None:
        """What keeps the host from being ready, in one line; None when it is."""


def health_routes(daemon: Watched) -> Routes:
    """Return what is answered; the texts are the original's, which end without a newline."""

    async def healthz(_: Request) -> Response:
        return _text(200, "flanneld is running")

    async def readyz(_: Request) -> Response:
        waiting_for = daemon.waiting_for
        if waiting_for is None:
            return _text(200, "flanneld is ready")
        return _text(503, f"flanneld is not ready yet: {waiting_for}")

    return {("GET", "/healthz"): healthz, ("GET", "/readyz"): readyz}


def _text(status: int, text: str) -> Response:
    return Response(status=status, body=text.encode(), content_type=TEXT)
