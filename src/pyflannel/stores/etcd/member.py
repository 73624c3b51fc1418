"""One endpoint of the cluster, and the connection to it."""

import asyncio
from dataclasses import dataclass

from grpclib.client import Channel, Handler
from grpclib.config import Configuration
from grpclib.protocol import H2Protocol

from pyflannel.errors import StoreError
from pyflannel.stores.etcd.call import within
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.etcd.local_address import Address, is_still_ours
from pyflannel.stores.etcd.tls import TlsFiles
from pyflannel.stores.etcd.tls_errors import SSLError

_ALERT_S = 1.5
"""How long a member that just ended a connection may take to say why."""

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


class _Protocol(H2Protocol):
    """Takes whatever arrives as a sign of life, and knows where it goes out from.

    grpclib waits for the answer to its ping alone, which stands behind all that was sent before it: many
    megabytes, when a watch catches up over a slow line.
    """

    local: Address | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.local = transport.get_extra_info("sockname")
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.connection.ping_ack_process()


class Connection(Channel):
    """A gRPC channel that opens again by itself, each time with the TLS files as they are then."""

    def __init__(self, endpoint: Endpoint, tls: TlsFiles | None) -> None:
        super().__init__(endpoint.host, endpoint.port, config=_CONFIGURATION)
        self._tls = tls
        self._local: Address | None = None

    @property
    def is_open(self) -> bool:
        """Return whether a call can be sent at once."""
        return self._connected

    @property
    def is_stranded(self) -> bool:
        """Return whether the host has lost the address that the connection goes out from."""
        return self._connected and self._local is not None and not is_still_ours(self._local)

    def _protocol_factory(self) -> H2Protocol:
        return _Protocol(Handler(), self._config, self._h2_config)

    async def _create_connection(self) -> H2Protocol:
        # grpclib takes one context for all connections; from outside it cannot be given another.
        if self._tls is not None:
            self._ssl = self._tls.context()
            self._scheme = "https"
        protocol = await super()._create_connection()
        assert isinstance(protocol, _Protocol)
        self._local = protocol.local
        return protocol


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """One endpoint, and the connection to it."""

    endpoint: Endpoint
    tls: TlsFiles | None
    channel: Connection

    @classmethod
    def at(cls, endpoint: Endpoint, tls: TlsFiles | None) -> "Member":
        """Return the member at `endpoint`; nothing is connected yet."""
        return cls(endpoint, tls, Connection(endpoint, tls))

    async def alert(self) -> SSLError | None:
        """Return how the member refuses our certificate, if it does.

        In TLS 1.3 it does so when the handshake is over for us. By then we have spoken, and a connection that
        is closed with octets unread takes the alert with it: here nothing is said, so that it can be heard.
        """
        if self.tls is None:
            return None
        try:
            await within(_ALERT_S, self._listen(self.tls))
        except SSLError as error:
            return error
        except (OSError, StoreError):
            return None
        return None

    async def _listen(self, tls: TlsFiles) -> None:
        reader, writer = await asyncio.open_connection(
            self.endpoint.host, self.endpoint.port, ssl=tls.context()
        )
        try:
            await reader.read(1)
        finally:
            writer.transport.abort()
