"""Where HTTP is served over TCP, for as long as the process runs."""

import asyncio
import logging
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from pyflannel.errors import BusyError, TargetError
from pyflannel.http.server import HttpServer, Routes
from pyflannel.http.tcp_socket import format_address, listen_tcp

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""How soon an address or a port that cannot be had is tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """An address and a port.

    Attributes:
        name: what the log calls it.
        asked_by: the flag or variable with its value, as it was written.
    """

    name: str
    ip: IPv4Address | IPv6Address
    port: int
    asked_by: str


async def serve_endpoint(endpoint: Endpoint, routes: Routes, *, retry_s: float = RETRY_S) -> None:
    """Serve until cancelled; while it cannot be had, say so and try again."""
    listener = await _listen(endpoint, retry_s)
    log.info("Start %s server on %s", endpoint.name, format_address(endpoint.ip, endpoint.port))
    await HttpServer(routes).serve(listener)


async def _listen(endpoint: Endpoint, retry_s: float) -> socket.socket:
    said = ""
    while True:
        try:
            return listen_tcp(endpoint.ip, endpoint.port)
        except (BusyError, TargetError) as error:
            if str(error) != said:
                log.error("%s is not served, and tried again: %s. %s", endpoint.asked_by, error, error.hint)
            said = str(error)
        await asyncio.sleep(retry_s)
