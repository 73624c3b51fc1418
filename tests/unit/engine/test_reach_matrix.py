"""Hosts report through the store which other hosts they reach. A report without a valid signature does not
count.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address, IPv4Network

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.engine.list_watch import follow
from pyflannel.engine.reach_matrix import ROUND_S, ROWS_S, ReachMatrix
from pyflannel.errors import TargetError, UsageError
from pyflannel.model.lease import Lease, LeaseAttributes, LeaseKey
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.probe import SILENT, Echo, EchoResult
from pyflannel.model.reach_matrix import MOST_HOSTS, Answer, Matrix, Row, most_hosts
from pyflannel.model.store_record import Put, PutSeen, Secret, StoreChanges
from pyflannel.wire.reach_record import REQUEST, ROWS, format_row, parse_request

PREFIX = "/coreos.com/network"


def subnet(number: int) -> IPv4Network:
    return IPv4Network((10 << 24 | 100 << 16 | number << 8, 24))


def key(number: int) -> LeaseKey:
    private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
    return LeaseKey(private.public_key().public_bytes_raw(), Secret(private.private_bytes_raw().hex()))


def lease(number: int) -> Lease:
    attributes = LeaseAttributes(
        public_ip=IPv4Address(f"192.0.2.{number}"),
        owner=f"owner{number}",
        host_name=f"docker{number}",
        signing_key=key(number).public,
    )
    return Lease(subnet=subnet(number), attributes=attributes)


class Signatures:
    """Signs with the key of a host."""

    prefix = PREFIX

    def __init__(self, number: int) -> None:
        self._number = number

    def key(self, owner: str) -> LeaseKey:
        assert owner == f"owner{self._number}" or self._number > 100  # a thief has another key
        return key(self._number % 100)


class Host:
    """One host with its matrix. The host reaches all hosts, except hosts that a test made `unreachable`."""

    def __init__(
        self, number: int, store: FakeStore | None, clock: FakeClock, leases: LeaseSet, *, signer: int | None
    ) -> None:
        self.own: Lease | None = lease(number)
        self.leases = leases
        self.unreachable: set[int] = set()
        self.rounds: list[int] = []
        self.refuses = False
        self.matrix = ReachMatrix(
            store=store,
            clock=clock,
            send=self._send,
            network=self,
            signatures=None if signer is None else Signatures(signer),
        )

    def ends(self, subnets: Sequence[IpNetwork]) -> Mapping[IpNetwork, IpAddress]:
        return {one: one.network_address for one in subnets if one in self.leases.by_subnet}

    async def _send(self, echoes: Sequence[Echo]) -> list[EchoResult]:
        if self.refuses:
            raise TargetError("cannot send ICMP echo requests", hint="Run as root.")
        self.rounds.append(len(echoes))
        cut = {subnet(number).network_address for number in self.unreachable}
        reached = EchoResult(state="reached", rtt_s=0.00025)
        return [SILENT if echo.destination in cut else reached for echo in echoes]


class Hosts:
    """Hosts with one store, whose keys they watch, and with a clock."""

    def __init__(self, *numbers: int, signed: bool = True, thief: int | None = None) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.leases = LeaseSet.of(map(lease, numbers))
        self.hosts = {
            number: Host(
                number,
                self.store,
                self.clock,
                self.leases,
                signer=None if not signed else 100 + number + 1 if number == thief else number,
            )
            for number in numbers
        }
        self.off: set[int] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for number, host in self.hosts.items():
                await stack.enter_async_context(self.clock.running(host.matrix.run()))
                if number not in self.off:
                    await stack.enter_async_context(self.clock.running(self._watch(host)))
            yield

    async def _watch(self, host: Host) -> None:
        async def see(changes: StoreChanges) -> None:
            for change in changes.changes:
                if isinstance(change, PutSeen):
                    host.matrix.see(change.record)

        await follow(self.store, "", 0, see)

    async def ask(self, number: int, *named: int) -> Matrix:
        """Return the matrix that a host gets. The time advances until the host has an answer."""
        asking = asyncio.ensure_future(self.hosts[number].matrix.ask([subnet(one) for one in named]))
        await self.clock.settle()
        if not asking.done():
            await self.clock.advance(ROWS_S)
        return await asking


def letters(matrix: Matrix) -> list[str]:
    """Return the states of each row, without the host itself; the failure of a row without states."""
    return [row.failure or " ".join(cell.state for cell in row.cells) for row in matrix.rows]


@pytest.mark.parametrize("signed", [True, False])
def test_a_host_learns_the_rows_of_hosts_that_it_does_not_reach(signed: bool) -> None:
    async def life() -> Matrix:
        hosts = Hosts(1, 2, 3, signed=signed)
        hosts.hosts[1].unreachable = {3}
        hosts.hosts[3].unreachable = {1, 2}
        async with hosts.running():
            return await hosts.ask(1)

    matrix = asyncio.run(life())

    assert [row.host_name for row in matrix.rows] == ["docker1", "docker2", "docker3"]
    assert letters(matrix) == ["reached silent", "reached reached", "silent silent"]
    assert matrix.rows[1].cells[0].rtt_ms == 0.25
    assert (matrix.silent, matrix.left_out) == ((), 0)


def test_a_host_without_an_answer_is_named_and_the_other_rows_are_complete() -> None:
    async def life() -> Matrix:
        hosts = Hosts(1, 2, 3)
        hosts.off = {2}
        async with hosts.running():
            return await hosts.ask(1)

    matrix = asyncio.run(life())

    assert letters(matrix) == ["reached reached", f"no answer within {ROWS_S:g} s", "reached reached"]
    assert matrix.silent == (subnet(2),)


def test_without_the_store_the_host_knows_its_own_row() -> None:
    async def life() -> Matrix:
        hosts = Hosts(1, 2)
        async with hosts.running():
            hosts.store.fail_next()
            return await hosts.ask(1)

    own, other = letters(asyncio.run(life()))

    assert own == "reached"
    assert other.startswith("the request was not written: ")


def test_nodes_of_kubernetes_carry_no_requests() -> None:
    async def life() -> Matrix:
        clock = FakeClock()
        host = Host(1, None, clock, LeaseSet.of([lease(1), lease(2)]), signer=None)
        return await host.matrix.ask([])

    assert letters(asyncio.run(life())) == ["reached", "Nodes of Kubernetes carry no requests"]


def test_a_row_that_another_key_signed_does_not_count() -> None:
    async def life() -> Matrix:
        hosts = Hosts(1, 2, 3, thief=2)
        async with hosts.running():
            return await hosts.ask(1)

    matrix = asyncio.run(life())

    assert letters(matrix)[1] == "its answer is not signed with the key of its lease"
    assert matrix.silent == (subnet(2),)


def test_a_request_that_another_key_signed_causes_no_probes() -> None:
    async def life() -> list[list[int]]:
        hosts = Hosts(1, 2, 3, thief=1)
        async with hosts.running():
            await hosts.ask(1)
        return [hosts.hosts[number].rounds for number in (2, 3)]

    assert asyncio.run(life()) == [[], []]


def test_a_changed_request_causes_no_probes() -> None:
    """A client of the store without a key cannot add a host to a request."""

    async def life() -> list[int]:
        hosts = Hosts(1, 2, 3)
        async with hosts.running():
            await hosts.ask(1, 1, 2)
            request = await hosts.store.get(REQUEST)
            assert request is not None
            value = msgspec.json.decode(request.value)
            value["Hosts"] = [str(subnet(number)) for number in (1, 2, 3)]
            await hosts.store.write(
                Put(key=REQUEST, value=msgspec.json.encode(value), ttl_s=30, expected=None)
            )
            await hosts.clock.advance(ROUND_S)
        return hosts.hosts[3].rounds

    assert asyncio.run(life()) == []


@pytest.mark.parametrize(
    ("is_followed", "expected"),
    [(False, "its answer is not signed with the key of its lease"), (True, "silent")],
    ids=["alone", "before the valid row"],
)
def test_a_row_that_was_changed_after_its_signature_does_not_count(is_followed: bool, expected: str) -> None:
    async def life() -> Matrix:
        hosts = Hosts(1, 2)
        hosts.off = {2}
        async with hosts.running():
            asking = asyncio.ensure_future(hosts.hosts[1].matrix.ask([]))
            await hosts.clock.settle()
            request = await hosts.store.get(REQUEST)
            assert request is not None
            answers = (Answer("silent"), Answer("skipped"))
            row = Row(id=parse_request(request.value).id, host=subnet(2), answers=answers)
            valid = format_row(row, PREFIX, key(2))
            for value in [valid.replace(b"silent", b"reached"), *([valid] if is_followed else [])]:
                await hosts.store.write(Put(key=f"{ROWS}10.100.2.0-24", value=value, ttl_s=30, expected=None))
                await hosts.clock.settle()
            await hosts.clock.advance(ROWS_S)
            return await asking

    assert letters(asyncio.run(life()))[1] == expected


def test_requests_of_others_cost_a_host_one_round_in_an_interval() -> None:
    async def life() -> list[int]:
        hosts = Hosts(1, 2)
        asked = hosts.hosts[2]
        async with hosts.running():
            for _ in range(20):
                asking = asyncio.ensure_future(hosts.hosts[1].matrix.ask([]))
                await hosts.clock.advance(ROUND_S / 20)
                asking.cancel()
            await hosts.clock.advance(ROUND_S * 5)
        return asked.rounds

    assert asyncio.run(life()) == [1, 1]  # the first round, and the round that waited


def test_a_host_whose_kernel_refuses_probes_shows_the_reason_and_the_other_rows() -> None:
    async def life() -> Matrix:
        hosts = Hosts(1, 2)
        hosts.hosts[1].refuses = True
        async with hosts.running():
            return await hosts.ask(1)

    assert letters(asyncio.run(life())) == ["cannot send ICMP echo requests", "reached"]


def test_the_hosts_of_a_matrix_are_limited_and_a_sample_contains_the_own_host() -> None:
    numbers = range(1, 60)

    async def life() -> Matrix:
        hosts = Hosts(*numbers)
        hosts.off = set(numbers)
        async with hosts.running():
            with pytest.raises(UsageError, match="at most 32 hosts"):
                await hosts.hosts[1].matrix.ask([subnet(number) for number in numbers])
            with pytest.raises(UsageError, match=r"10\.100\.77\.0/24 is the subnet of no host"):
                await hosts.hosts[1].matrix.ask([subnet(77), subnet(1)])
            with pytest.raises(UsageError, match="at least two"):
                await hosts.hosts[1].matrix.ask([subnet(3)])
            return await hosts.ask(1)

    matrix = asyncio.run(life())

    assert len(matrix.rows) == MOST_HOSTS
    assert matrix.rows[0].subnet == subnet(1)
    assert matrix.left_out == len(numbers) - MOST_HOSTS
    assert [most_hosts(count) for count in (1, 1000, 1250, 5000, 10_000, 60_000)] == [32, 32, 32, 8, 4, 4]


def test_unreadable_records_are_ignored() -> None:
    async def life() -> Matrix:
        hosts = Hosts(1, 2)
        async with hosts.running():
            for name in (REQUEST, f"{ROWS}10.100.2.0-24", f"{ROWS}x"):
                for value in (b"{", b"[]", b'{"Id":"a","Asker":"x","Hosts":["a","b"]}', b"\xff"):
                    await hosts.store.write(Put(key=name, value=value, ttl_s=30, expected=None))
            await hosts.clock.settle()
            return await hosts.ask(1)

    assert letters(asyncio.run(life())) == ["reached", "reached"]
