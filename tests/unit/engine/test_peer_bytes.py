"""A host learns the bytes to its peers from the counters of the peers. An answer without a valid signature
does not count, and hosts of earlier versions ignore the records.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address, IPv4Network

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.engine.list_watch import follow
from pyflannel.engine.peer_bytes import COUNTS_S, INTERVAL_S, PeerBytes
from pyflannel.engine.reach_matrix import ReachMatrix
from pyflannel.errors import TargetError
from pyflannel.model.lease import Lease, LeaseAttributes, LeaseKey
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.reach_matrix import ByteCount, most_hosts
from pyflannel.model.store_record import Put, PutSeen, Secret, StoreChanges
from pyflannel.wire.reach_record import (
    COUNT_REQUEST,
    COUNTS,
    count_key,
    format_count,
    format_request,
    is_authentic_count,
    is_authentic_request,
    parse_count,
    parse_request,
)

PREFIX = "/coreos.com/network"


def subnet(number: int) -> IPv4Network:
    return IPv4Network((10 << 24 | 100 << 16 | number << 8, 24))


def key(number: int) -> LeaseKey:
    private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return LeaseKey(private.public_key().public_bytes_raw(), Secret(private.private_bytes_raw().hex()))


def lease(number: int, *, is_original: bool = False) -> Lease:
    attributes = LeaseAttributes(
        public_ip=IPv4Address(f"192.0.2.{number}"),
        owner=None if is_original else f"owner{number}",
        signing_key=key(number).public,
    )
    return Lease(subnet=subnet(number), attributes=attributes)


class Signatures:
    """Signs with the key of a host, or with another key."""

    prefix = PREFIX

    def __init__(self, number: int) -> None:
        self._number = number

    def key(self, owner: str) -> LeaseKey:
        return key(self._number)


class Host:
    """One host, and the bytes that it counted by the subnet of the sender."""

    def __init__(self, number: int, hosts: "Hosts", signer: int | None) -> None:
        self.own: Lease | None = lease(number)
        self.leases = hosts.leases
        self.counted: dict[IpNetwork, int] = {}
        self.reads = 0
        self.refuses = False
        signatures = None if signer is None else Signatures(signer)
        self.bytes = PeerBytes(store=hosts.store, clock=hosts.clock, network=self, signatures=signatures)

    async def received(self, peer: Lease) -> int | None:
        self.reads += 1
        if self.refuses:
            raise TargetError("cannot read", hint="Run as root.")
        return self.counted.get(peer.subnet)


class Hosts:
    """Hosts with one store, whose keys they watch, and with a clock."""

    def __init__(
        self, *numbers: int, signed: bool = True, thief: int | None = None, originals: tuple[int, ...] = ()
    ) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.leases = LeaseSet.of(
            [*map(lease, numbers), *(lease(number, is_original=True) for number in originals)]
        )
        self.hosts = {
            number: Host(number, self, (number + 100 if number == thief else number) if signed else None)
            for number in numbers
        }
        self.off: set[int] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for number, host in self.hosts.items():
                if number not in self.off:
                    await stack.enter_async_context(self.clock.running(host.bytes.run()))
                    await stack.enter_async_context(self.clock.running(self._watch(host.bytes)))
            yield

    async def _watch(self, reader: PeerBytes | ReachMatrix) -> None:
        async def see(changes: StoreChanges) -> None:
            for change in changes.changes:
                if isinstance(change, PutSeen):
                    reader.see(change.record)

        await follow(self.store, "", 0, see)

    async def ask(self, number: int, *named: int) -> dict[int, int]:
        """Return the bytes by the number of the peer. The time advances until the host has an answer."""
        asking = asyncio.ensure_future(self.hosts[number].bytes.ask([subnet(one) for one in named]))
        await self.clock.settle()
        if not asking.done():
            await self.clock.advance(COUNTS_S)
        found: Mapping[IpNetwork, int] = await asking
        return {int(one.network_address) >> 8 & 0xFF: size for one, size in found.items()}


@pytest.mark.parametrize("signed", [True, False])
def test_a_host_learns_the_bytes_that_each_peer_counted_from_it(signed: bool) -> None:
    async def life() -> tuple[dict[int, int], dict[int, int], float]:
        hosts = Hosts(1, 2, 3, signed=signed)
        hosts.hosts[2].counted = {subnet(1): 1000, subnet(3): 7}
        hosts.hosts[3].counted = {subnet(1): 0}
        hosts.hosts[1].counted = {subnet(2): 5}
        async with hosts.running():
            began = hosts.clock.now()
            first = await hosts.ask(1, 1, 2, 3)
            took = hosts.clock.now() - began
            await hosts.clock.advance(INTERVAL_S)
            return first, await hosts.ask(2, 1), took

    assert asyncio.run(life()) == ({2: 1000, 3: 0}, {1: 5}, 0)


def test_a_peer_that_counts_nothing_or_fails_is_missing_and_the_others_are_known() -> None:
    async def life() -> dict[int, int]:
        hosts = Hosts(1, 2, 3, 4)
        hosts.hosts[3].refuses = True
        hosts.hosts[4].counted = {subnet(1): 9}
        async with hosts.running():
            return await hosts.ask(1, 2, 3, 4)

    assert asyncio.run(life()) == {4: 9}


def test_a_version_without_this_request_ignores_its_records_and_is_missing() -> None:
    async def life() -> tuple[dict[int, int], list[str]]:
        hosts = Hosts(1, 2, 3)
        hosts.off = {2}
        hosts.hosts[3].counted = {subnet(1): 9}
        old = ReachMatrix(
            store=hosts.store, clock=hosts.clock, send=None, network=OldNetwork(hosts), signatures=None
        )
        async with hosts.running(), hosts.clock.running(old.run()), hosts.clock.running(hosts._watch(old)):
            found = await hosts.ask(1, 2, 3)
            await hosts.clock.advance(10)
        listing = await hosts.store.list("")
        return found, sorted(record.key for record in listing.records)

    assert asyncio.run(life()) == ({3: 9}, [COUNT_REQUEST, f"{COUNTS}10.100.3.0-24"])


class OldNetwork:
    """The host 2, as an earlier version sees it."""

    def __init__(self, hosts: Hosts) -> None:
        self.own: Lease | None = lease(2)
        self.leases = hosts.leases

    def ends(self, subnets: object) -> Mapping[IpNetwork, IPv4Address]:
        raise AssertionError(f"an earlier version probes {subnets}")


def test_an_original_flannel_is_not_asked() -> None:
    async def life() -> int:
        hosts = Hosts(1, originals=(2,))
        async with hosts.running():
            assert await hosts.ask(1, 2) == {}
        return len((await hosts.store.list("")).records)

    assert asyncio.run(life()) == 0


def test_an_answer_that_another_key_signed_does_not_count() -> None:
    async def life() -> dict[int, int]:
        hosts = Hosts(1, 2, 3, thief=2)
        for number in (2, 3):
            hosts.hosts[number].counted = {subnet(1): number}
        async with hosts.running():
            return await hosts.ask(1, 2, 3)

    assert asyncio.run(life()) == {3: 3}


def test_a_request_that_another_key_signed_reads_no_counter() -> None:
    async def life() -> int:
        hosts = Hosts(1, 2, thief=1)
        async with hosts.running():
            assert await hosts.ask(1, 2) == {}
        return hosts.hosts[2].reads

    assert asyncio.run(life()) == 0


def test_an_answer_to_an_earlier_request_does_not_count() -> None:
    async def life() -> dict[int, int]:
        hosts = Hosts(1, 2)
        hosts.off = {2}
        old = format_count(ByteCount(id="earlier", host=subnet(2), received=5), PREFIX, key(2))
        async with hosts.running():
            asking = asyncio.ensure_future(hosts.ask(1, 2))
            await hosts.clock.settle()
            await hosts.store.write(Put(key=count_key(subnet(2)), value=old, ttl_s=30, expected=None))
            return await asking

    assert asyncio.run(life()) == {}


def test_an_answer_of_a_host_that_was_not_asked_does_not_count() -> None:
    async def life() -> dict[int, int]:
        hosts = Hosts(1, 2, 3)
        hosts.off = {2, 3}
        async with hosts.running():
            asking = asyncio.ensure_future(hosts.ask(1, 2))
            await hosts.clock.settle()
            request = await hosts.store.get(COUNT_REQUEST)
            assert request is not None
            for number in (3, 2):
                count = ByteCount(id=parse_request(request.value).id, host=subnet(number), received=number)
                value = format_count(count, PREFIX, key(number))
                await hosts.store.write(
                    Put(key=count_key(subnet(number)), value=value, ttl_s=30, expected=None)
                )
            return await asking

    assert asyncio.run(life()) == {2: 2}


def test_an_answer_in_the_record_of_another_host_does_not_count() -> None:
    """The permissions of the store may give each host only its own record."""

    async def life() -> dict[int, int]:
        hosts = Hosts(1, 2, 3, signed=False)
        hosts.off = {2, 3}
        async with hosts.running():
            asking = asyncio.ensure_future(hosts.ask(1, 2))
            await hosts.clock.settle()
            request = await hosts.store.get(COUNT_REQUEST)
            assert request is not None
            count = ByteCount(id=parse_request(request.value).id, host=subnet(2), received=5)
            value = format_count(count, PREFIX, None)
            await hosts.store.write(Put(key=count_key(subnet(3)), value=value, ttl_s=30, expected=None))
            return await asking

    assert asyncio.run(life()) == {}


def test_many_requests_cost_a_host_one_record_in_an_interval() -> None:
    async def life() -> int:
        hosts = Hosts(1, 2)
        async with hosts.running():
            for _ in range(50):
                asking = asyncio.ensure_future(hosts.hosts[1].bytes.ask([subnet(2)]))
                await hosts.clock.settle()
                asking.cancel()
            await hosts.clock.advance(100 * INTERVAL_S)
        return hosts.hosts[2].reads

    assert asyncio.run(life()) == 5  # the first request, and the four requests that waited


def test_without_the_store_the_bytes_are_unknown() -> None:
    async def life() -> dict[int, int]:
        hosts = Hosts(1, 2)
        async with hosts.running():
            hosts.store.fail_next()
            return await hosts.ask(1, 2)

    assert asyncio.run(life()) == {}


def test_a_request_names_at_most_as_many_hosts_as_a_matrix() -> None:
    numbers = range(1, 60)

    async def life() -> int:
        hosts = Hosts(*numbers)
        for number in numbers:
            hosts.hosts[number].counted = {subnet(1): 1}
        async with hosts.running():
            return len(await hosts.ask(1, *numbers))

    assert asyncio.run(life()) == most_hosts(59) - 1


def test_unreadable_records_are_ignored() -> None:
    async def life() -> dict[int, int]:
        hosts = Hosts(1, 2)
        hosts.hosts[2].counted = {subnet(1): 3}
        async with hosts.running():
            for name in (COUNT_REQUEST, f"{COUNTS}10.100.2.0-24", f"{COUNTS}x"):
                for value in (b"{", b"[]", b'{"Id":"a","Host":"10.100.2.0/24","Received":-1}', b"\xff"):
                    await hosts.store.write(Put(key=name, value=value, ttl_s=30, expected=None))
            await hosts.clock.settle()
            return await hosts.ask(1, 2)

    assert asyncio.run(life()) == {2: 3}


counts = st.builds(
    ByteCount,
    id=st.text(max_size=64),
    host=st.integers(0, 255).map(subnet),
    received=st.none() | st.integers(0, 2**63 - 1),
)


@given(count=counts, signer=st.none() | st.integers(1, 9))
def test_an_answer_is_read_as_it_was_written_also_with_fields_of_later_versions(
    count: ByteCount, signer: int | None
) -> None:
    value = format_count(count, PREFIX, None if signer is None else key(signer))
    later = msgspec.json.encode(msgspec.json.decode(value) | {"Later": [1, 2]})

    for written in (value, later):
        assert parse_count(written) == count
        assert is_authentic_count(written, PREFIX, key(signer or 1).public) == (signer is not None)
        assert not is_authentic_count(written, "/another", key(signer or 1).public)


def test_a_signed_request_for_rows_is_no_request_for_bytes() -> None:
    """A client of the store cannot use the signature of one kind of request for the other kind."""
    request = msgspec.json.encode(
        {"Id": "a", "Asker": "10.100.1.0/24", "Hosts": ["10.100.1.0/24", "10.100.2.0/24"]}
    )
    value = format_request(parse_request(request), PREFIX, key(1))

    assert is_authentic_request(value, PREFIX, key(1).public)
    assert not is_authentic_request(value, PREFIX, key(1).public, name=COUNT_REQUEST)
