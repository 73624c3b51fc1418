"""A connection from an address that the host has lost is replaced immediately, not after a deadline."""

import asyncio

import pytest

from pyflannel.errors import StoreError
from pyflannel.stores.etcd.cluster import Address, Cluster, Member, is_still_local
from pyflannel.stores.etcd.endpoint import Endpoint

FOREIGN = "192.0.2.1"
"""An address of TEST-NET-1 (RFC 5737), which no host has."""


async def listening() -> asyncio.Server:
    """Return a silent server on loopback that keeps connections open."""
    return await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("127.0.0.1", 40000), True),
        ((FOREIGN, 40000), False),
        (("2001:db8::1", 40000, 0, 0), False),
    ],
)
def test_an_address_belongs_to_the_host_while_a_socket_can_be_bound_to_it(
    address: Address, expected: bool
) -> None:
    assert is_still_local(address) is expected


@pytest.mark.parametrize("stays", [True, False])
def test_a_call_uses_a_new_connection_after_the_loss_of_the_local_address(stays: bool) -> None:
    async def test() -> None:
        server = await listening()
        cluster = Cluster([Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])])

        async def itself(member: Member) -> Member:
            return member

        first = await cluster.ask(itself)
        if not stays:
            first.channel._local = (FOREIGN, 40000)
        second = await cluster.ask(itself)
        cluster.close()
        server.close()

        assert (second is first) is stays
        assert second.channel.is_stranded is False

    asyncio.run(test())


def test_a_failing_new_connection_is_an_ordinary_error() -> None:
    async def test() -> None:
        server = await listening()
        cluster = Cluster([Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])])

        async def itself(member: Member) -> Member:
            return member

        member = await cluster.ask(itself)
        member.channel._local = (FOREIGN, 40000)
        server.close()

        with pytest.raises(StoreError, match="connection refused"):
            await cluster.ask(itself)

    asyncio.run(test())
