"""An endpoint that cannot be opened is logged and retried, and does not stop the daemon."""

import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest

from pyflannel.errors import TargetError
from pyflannel.http.server import Request, Response
from pyflannel.http.sockets import Endpoint, listen_tcp, serve_endpoint

DEADLINE_S = 30.0
LOOPBACK = IPv4Address("127.0.0.1")


async def hello(_: Request) -> Response:
    return Response.text(200, "hello")


def endpoint(port: int, ip: IPv4Address = LOOPBACK) -> Endpoint:
    return Endpoint(name="http", ip=ip, port=port, asked_by=f"--http={ip}:{port}")


async def ask(port: int) -> bytes:
    """Return the answer as soon as a server listens."""
    while True:
        try:
            reader, writer = await asyncio.open_connection(str(LOOPBACK), port)
        except ConnectionRefusedError:
            await asyncio.sleep(0)
            continue
        writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        said = await reader.read()
        writer.close()
        return said


def test_a_port_in_use_is_logged_once_and_served_when_it_is_free(caplog: pytest.LogCaptureFixture) -> None:
    async def live() -> tuple[int, bytes]:
        with socket.create_server((str(LOOPBACK), 0)) as holder:
            port = holder.getsockname()[1]
            serving = asyncio.create_task(
                serve_endpoint(endpoint(port), {("GET", "/hello"): hello}, retry_s=0)
            )
            for _ in range(100):  # one attempt in each turn
                await asyncio.sleep(0)
        async with asyncio.timeout(DEADLINE_S):
            said = await ask(port)
        serving.cancel()
        return port, said

    caplog.set_level("INFO")
    port, said = asyncio.run(live())

    assert said.endswith(b"hello\n")
    assert caplog.messages == [
        f"Could not serve --http=127.0.0.1:{port}, retrying: TCP port 127.0.0.1:{port} is in use."
        f" Find the process that uses the port: ss -ltnp 'sport = :{port}'.",
        f"Start http server on 127.0.0.1:{port}",
    ]
    assert caplog.records[0].levelname == "ERROR"


def test_an_address_of_another_host_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def live() -> None:
        serving = asyncio.create_task(serve_endpoint(endpoint(8471, IPv4Address("203.0.113.1")), {}))
        await asyncio.sleep(0)
        assert not serving.done()
        serving.cancel()

    asyncio.run(live())

    assert caplog.messages == [
        "Could not serve --http=203.0.113.1:8471, retrying: TCP port 203.0.113.1:8471 cannot be opened"
        ": Cannot assign requested address. Use an address of this host, or 0.0.0.0 for all addresses, and a"
        " port that flanneld may open."
    ]


def test_all_addresses_on_a_kernel_without_ipv6_are_refused_with_a_cause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error of Python differs from the error of the kernel."""
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)

    with pytest.raises(TargetError, match="IPv6"):
        listen_tcp(IPv6Address("::"), 0)


def test_an_endpoint_refuses_a_large_request() -> None:
    """Any program may connect. Health and metrics need no body, so a large request must need no memory."""

    async def live() -> bytes:
        with socket.create_server((str(LOOPBACK), 0)) as free:
            port = free.getsockname()[1]
        serving = asyncio.create_task(serve_endpoint(endpoint(port), {("GET", "/hello"): hello}, retry_s=0))
        async with asyncio.timeout(DEADLINE_S):
            await ask(port)
            reader, writer = await asyncio.open_connection(str(LOOPBACK), port)
            writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n")
            writer.write_eof()
            answer = await reader.read()
            writer.close()
        serving.cancel()
        return answer

    assert asyncio.run(live()).startswith(b"HTTP/1.1 413")
