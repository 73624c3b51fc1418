"""Health over HTTP has the texts of the original, and states the current readiness at each request."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest

from pyflannel.api.monitoring.routes import health_routes
from pyflannel.errors import BusyError, TargetError
from pyflannel.http.server import HttpServer, Request
from pyflannel.http.sockets import format_address, listen_tcp

LOOPBACK = IPv4Address("127.0.0.1")


class Host:
    """A daemon whose readiness the test sets."""

    waiting_for: str | None = None


def answer(host: Host, path: str) -> tuple[int, bytes]:
    response = asyncio.run(health_routes(host)["GET", path](Request(method="GET", path=path)))
    return response.status, response.body


def test_readiness_becomes_false_again() -> None:
    host = Host()
    answers = [answer(host, "/readyz")]

    host.waiting_for = "a lease"
    answers.append(answer(host, "/readyz"))
    host.waiting_for = None
    answers.append(answer(host, "/readyz"))

    assert answers == [
        (200, b"flanneld is ready"),
        (503, b"flanneld is not ready yet: a lease"),
        (200, b"flanneld is ready"),
    ]


def test_healthz_does_not_depend_on_readiness() -> None:
    host = Host()
    host.waiting_for = "everything"

    assert answer(host, "/healthz") == (200, b"flanneld is running")


@pytest.mark.parametrize("ip", ["127.0.0.1", "::1", "0.0.0.0", "::"])
def test_health_is_served_on_every_kind_of_address(ip: str) -> None:
    """`::` also serves IPv4, as in Go."""
    listener = listen_tcp(ip_address(ip), 0)
    port = listener.getsockname()[1]
    loopback = "127.0.0.1" if ip != "::1" else ip

    async def ask() -> bytes:
        task = asyncio.create_task(HttpServer(health_routes(Host())).serve(listener))
        async with asyncio.timeout(30):
            reader, writer = await asyncio.open_connection(loopback, port)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            said = await reader.read()
            writer.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return said

    said = asyncio.run(ask())

    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert said.endswith(b"\r\n\r\nflanneld is ready")
    assert listener.fileno() == -1


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(BusyError, match=f"TCP port 127.0.0.1:{port} is in use") as caught:
            listen_tcp(LOOPBACK, port)

    assert str(port) in caught.value.hint


def test_an_address_of_another_host_is_reported() -> None:
    with pytest.raises(TargetError, match=r"203\.0\.113\.1:8081 cannot be opened"):
        listen_tcp(IPv4Address("203.0.113.1"), 8081)


def test_addresses_are_written_as_in_urls() -> None:
    assert format_address(LOOPBACK, 8081) == "127.0.0.1:8081"
    assert format_address(IPv6Address("::1"), 8081) == "[::1]:8081"
