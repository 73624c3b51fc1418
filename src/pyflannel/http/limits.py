"""How much of the daemon one client may use."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of a server: all are choices of ours, wide for honest clients.

    Attributes:
        connections: open at once; more are answered with 503.
        head_octets: request line and headers together, also one chunk header or the trailers.
        body_octets: of a request.
        idle_s: from one answer, or the connection, to the first octet of a request.
        request_s: from a request's first octet to its last.
        handler_s: for the answer to be made.
        response_s: for the client to take the answer.
        linger_s: for a client that was refused to stop sending, so that it can read why.
    """

    connections: int = 64
    head_octets: int = 16 * 1024
    body_octets: int = 1024 * 1024
    idle_s: float = 60.0
    request_s: float = 10.0
    handler_s: float = 30.0
    response_s: float = 10.0
    linger_s: float = 1.0
