"""A cluster without a responding member."""

import asyncio
from contextlib import AsyncExitStack
from ipaddress import IPv4Address

import pytest

from pyflannel.errors import StoreError
from pyflannel.stores.etcd.cluster import Cluster
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.etcd.rpc_grpc import KVStub
from pyflannel.stores.etcd.rpc_pb2 import RangeRequest


async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def test_a_host_name_is_shown_with_its_address() -> None:
    """Before a connection, only numeric addresses in the endpoints are known. IPv6 is not used here."""

    async def ask_once() -> list[tuple[IPv4Address, ...]]:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        async with server, asyncio.timeout(60):
            port = server.sockets[0].getsockname()[1]
            cluster = Cluster([Endpoint("localhost", port), Endpoint("10.9.0.7", 1), Endpoint("fd00::7", 1)])
            before = cluster.addresses()
            with pytest.raises(StoreError):
                await cluster.ask(
                    lambda member: KVStub(member.channel).Range(RangeRequest(key=b"config")), once=True
                )
            cluster.close()
            return [before, cluster.addresses()]

    given = IPv4Address("10.9.0.7")
    assert asyncio.run(ask_once()) == [(given,), (IPv4Address("127.0.0.1"), given)]


def test_the_same_failure_has_the_same_text_in_any_order_of_members() -> None:
    """Failed members are tried last. If the text named the members in the order of the attempts, the log
    would have a line for each order.
    """

    async def ask_often() -> tuple[list[str], list[str]]:
        async with AsyncExitStack() as servers, asyncio.timeout(60):
            ports = []
            for _ in range(3):
                server = await servers.enter_async_context(
                    await asyncio.start_server(hang_up, "127.0.0.1", 0)
                )
                ports.append(server.sockets[0].getsockname()[1])
            cluster = Cluster([Endpoint("127.0.0.1", port) for port in ports])
            said = []
            for once in (True, False, True):
                with pytest.raises(StoreError) as caught:
                    await cluster.ask(
                        lambda member: KVStub(member.channel).Range(RangeRequest(key=b"config")), once=once
                    )
                said.append(str(caught.value))
            cluster.close()
            return said, [f"127.0.0.1:{port}" for port in ports]

    (first, all_of_them, second), names = asyncio.run(ask_often())

    assert names[0] in first
    assert names[1] not in first
    assert [part.strip().rpartition(": ")[0] for part in all_of_them.partition(": ")[2].split(";")] == names
    assert first != second
