"""One endpoint of the cluster, and the connection to it."""

import ssl
from dataclasses import dataclass
from typing import Any

from grpclib.client import Channel, Handler
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol

from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.etcd.tls import TlsFiles

# A stopped or unplugged member leaves its connections standing: only pings tell. etcd's servers drop clients
# that ping more often than every 5 s (--grpc-keepalive-min-time) or without calls.
# The connection's window is larger than a stream's, so that a watch nobody reads cannot starve the calls.
_CONFIGURATION = Configuration(
    _keepalive_time=6,
    _keepalive_timeout=4,
    _http2_max_pings_without_data=0,
    _http2_min_sent_ping_interval_without_data=5.5,
    http2_stream_window_size=1 << 20,
    http2_connection_window_size=1 << 24,
)


class Connection(Channel):
    """A gRPC channel that opens again by itself, each time with the TLS files as they are then.

    Attributes:
        lost: what ended the last connection, when TLS did: a member tells in this way that it refuses us.
    """

    def __init__(self, endpoint: Endpoint, tls: TlsFiles | None) -> None:
        super().__init__(endpoint.host, endpoint.port, config=_CONFIGURATION)
        self._tls = tls
        self.lost: ssl.SSLError | None = None

    # What grpclib lets nobody say from outside: a context for each connection, and why one ended.

    async def _create_connection(self) -> H2Protocol:
        self.lost = None
        if self._tls is not None:
            self._ssl = self._tls.context()
            self._scheme = "https"
        return await super()._create_connection()

    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(self, Handler(), self._config, self._h2_config)


class _Protocol(H2Protocol):
    def __init__(self, owner: Connection, *args: Any) -> None:
        super().__init__(*args)
        self._owner = owner

    def connection_lost(self, exc: BaseException | None) -> None:
        if isinstance(exc, ssl.SSLError):
            self._owner.lost = exc
        super().connection_lost(exc)


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One endpoint, and the connection to it."""

    endpoint: Endpoint
    channel: Connection

    def cause_of(self, error: Exception) -> Exception:
        """Return why a call ended without an answer: what the call itself saw, or TLS below it."""
        return self.channel.lost or error
