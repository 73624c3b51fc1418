"""The matrix of reachability: hosts probe each other at the request of one host, and answer through the
store.

A daemon knows only its own probes. To learn those of others, it writes a request to the store. Each named
host sees the request in its watch, probes the other named hosts once, and writes one row. The watch of the
requesting host receives the rows, also those of hosts that it cannot reach itself.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from pyflannel.engine.pacing import within
from pyflannel.engine.record_signing import Signatures, is_authentic, signing
from pyflannel.errors import StoreError, TargetError, UsageError, WireError
from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.probe import Echo, milliseconds
from pyflannel.model.reach_matrix import (
    Answer,
    Matrix,
    MatrixCell,
    MatrixRow,
    Row,
    RowRequest,
    most_hosts,
)
from pyflannel.model.store_record import Put, Record
from pyflannel.plan.peers import place_of_subnet
from pyflannel.ports import Clock, SendEchoes, Store
from pyflannel.wire.reach_record import (
    REQUEST,
    ROWS,
    TTL_S,
    format_request,
    format_row,
    is_authentic_request,
    is_authentic_row,
    parse_request,
    parse_row,
    row_key,
)

log = logging.getLogger(__name__)

ROWS_S = 2.8
"""Seconds after which a host without a row counts as silent, so that flannelctl answers within 5 s."""

ROUND_S = 2.0
"""Shortest interval in seconds between the starts of two rounds of probes that other hosts request. While a
round waits, further requests have no effect."""


class Network(Protocol):
    """The host and its leases, as far as the matrix needs them."""

    @property
    def own(self) -> Lease | None:
        """The lease of this host; None without a lease."""

    @property
    def leases(self) -> LeaseSet:
        """All known leases."""

    def ends(self, subnets: Sequence[IpNetwork]) -> Mapping[IpNetwork, IpAddress]:
        """Return the addresses that answer probes for these hosts; without those to which this host does not
        send.
        """


class ReachMatrix:
    """Asks hosts which other hosts they reach, and answers the same requests of other hosts.

    A request has an effect only if it names this host. With signatures, it must also be signed with the key
    of a known lease. For each request, this host sends at most three small probes to each other named host,
    and writes once.
    """

    def __init__(
        self,
        *,
        store: Store | None,
        clock: Clock,
        send: SendEchoes | None,
        network: Network,
        signatures: Signatures | None,
    ) -> None:
        """`store`: None if the leases are Nodes of Kubernetes, because Nodes carry no requests. `signatures`:
        None if leases are not signed.
        """
        self._store = store
        self._clock = clock
        self._send = send
        self._network = network
        self._signatures = signatures
        self._requests: asyncio.Queue[RowRequest] = asyncio.Queue(1)
        self._asked: dict[str, _Asked] = {}

    def see(self, record: Record) -> None:
        """Handle a record that another host, or this host, has just written."""
        try:
            if record.key == REQUEST:
                self._see_request(record.value)
            elif record.key.startswith(ROWS):
                self._see_row(record)
        except WireError as error:
            log.debug("Ignored the record %s: %s", record.key, error)

    def _see_request(self, value: bytes) -> None:
        request, own = parse_request(value), self._network.own
        if own is None or own.subnet not in request.hosts or request.id in self._asked:
            return
        if not self._is_authentic(request.asker, value, is_authentic_request):
            log.debug("Ignored a request for a row without the signature of %s", request.asker)
        elif not self._requests.full():
            self._requests.put_nowait(request)

    def _see_row(self, record: Record) -> None:
        row = parse_row(record.value)
        asked = self._asked.get(row.id)
        if asked is None or record.key != row_key(row.host) or len(row.answers) != len(asked.hosts):
            return
        if row.host not in asked.hosts:
            return
        if self._is_authentic(row.host, record.value, is_authentic_row):
            asked.rows[row.host] = row
        else:
            asked.failures[row.host] = "its answer is not signed with the key of its lease"
        asked.progress.set()

    def _is_authentic(
        self, writer: IpNetwork, value: bytes, is_signed: Callable[[bytes, str, bytes], bool]
    ) -> bool:
        return is_authentic(self._signatures, self._network.leases, writer, value, is_signed)

    async def run(self) -> None:
        """Answer requests of other hosts until cancelled."""
        while True:
            request = await self._requests.get()
            began = self._clock.now()
            await self._answer(request)
            await self._clock.sleep(max(0.0, began + ROUND_S - self._clock.now()))

    async def _answer(self, request: RowRequest) -> None:
        own = self._network.own
        if own is None or self._store is None:
            return
        try:
            row = Row(id=request.id, host=own.subnet, answers=await self._probe(own.subnet, request.hosts))
            value = format_row(row, *signing(self._signatures, own))
            await self._store.write(Put(key=row_key(own.subnet), value=value, ttl_s=TTL_S, expected=None))
        except (StoreError, TargetError) as error:
            log.warning("Could not report which hosts this host reaches to %s: %s", request.asker, error)

    async def _probe(self, own: IpNetwork, hosts: Sequence[IpNetwork]) -> tuple[Answer, ...]:
        """Return the result for each of the hosts, in the order of the hosts.

        Raises:
            TargetError: the kernel refuses the probes.
        """
        ends = self._network.ends([host for host in hosts if host != own])
        results = {}
        if ends and self._send is not None:
            echoes = [Echo(destination=address) for address in ends.values()]
            results = dict(zip(ends, await self._send(echoes), strict=True))
        return tuple(
            Answer("skipped") if (one := results.get(host)) is None else Answer(one.state, milliseconds(one))
            for host in hosts
        )

    async def ask(self, hosts: Sequence[IpNetwork]) -> Matrix:
        """Return which of these hosts reach which other hosts; all hosts of the network, or a part that
        contains this host, if none is named. Hosts without an answer within ROWS_S are listed as silent.

        Raises:
            UsageError: a host has no lease, there are too many hosts, or fewer than two.
        """
        subnets = self._chosen(hosts)
        asked = _Asked(subnets, is_of_all=not hosts)
        request_id = secrets.token_hex(16)
        self._asked[request_id] = asked
        own = self._network.own
        try:
            async with asyncio.TaskGroup() as tasks:
                if own is not None and own.subnet in subnets:
                    tasks.create_task(self._take_own(own, request_id, asked), name="own row")
                if own is not None:
                    tasks.create_task(self._request(own, request_id, asked), name="rows of others")
        finally:
            del self._asked[request_id]
        return self._matrix(asked)

    def _chosen(self, hosts: Sequence[IpNetwork]) -> tuple[IpNetwork, ...]:
        leases, own = self._network.leases, self._network.own
        known, most = leases.by_subnet, most_hosts(len(leases))
        unknown = [host for host in hosts if host not in known]
        if unknown:
            raise UsageError(f"{unknown[0]} is the subnet of no host", hint="flannelctl leases lists them.")
        if len(set(hosts)) > most:
            raise UsageError(
                f"a matrix of this network can have at most {most} hosts", hint="Name fewer hosts."
            )
        first = [] if own is None else [own.subnet]
        others = sorted(known.keys() - set(first), key=place_of_subnet)
        if not hosts and len(others) >= most:
            others = secrets.SystemRandom().sample(others, most - len(first))
        chosen = sorted(set(hosts) or {*first, *others}, key=place_of_subnet)
        if len(chosen) < 2:
            raise UsageError("a matrix needs at least two hosts", hint="Name two hosts, or none for all.")
        return tuple(chosen)

    async def _take_own(self, own: Lease, request_id: str, asked: "_Asked") -> None:
        try:
            answers = await self._probe(own.subnet, asked.hosts)
        except TargetError as error:
            asked.failures[own.subnet] = str(error)
        else:
            asked.rows[own.subnet] = Row(id=request_id, host=own.subnet, answers=answers)

    async def _request(self, own: Lease, request_id: str, asked: "_Asked") -> None:
        """Write the request, and wait until each named host has answered, but at most ROWS_S."""
        others = [host for host in asked.hosts if host != own.subnet]
        if self._store is None:
            asked.failures |= dict.fromkeys(others, "Nodes of Kubernetes carry no requests for rows")
            return
        request = RowRequest(id=request_id, asker=own.subnet, hosts=asked.hosts)
        reason = await within(self._clock, ROWS_S, self._collect(self._store, own, request, asked))
        if reason is None:
            reason = f"no answer within {ROWS_S:g} s"
        asked.failures |= {host: reason for host in others if not asked.is_answered_by([host])}

    async def _collect(self, store: Store, own: Lease, request: RowRequest, asked: "_Asked") -> str:
        """Write a request, and wait for the answers of the other hosts. If the request is not written, return
        the reason.
        """
        try:
            value = format_request(request, *signing(self._signatures, own))
            await store.write(Put(key=REQUEST, value=value, ttl_s=TTL_S, expected=None))
        except (StoreError, TargetError) as error:
            return f"the request was not written: {error}"
        while not asked.is_answered_by([host for host in asked.hosts if host != own.subnet]):
            await asked.progress.wait()
            asked.progress.clear()
        return ""

    def _matrix(self, asked: "_Asked") -> Matrix:
        known = self._network.leases.by_subnet
        rows = tuple(
            _row(known[subnet], asked) for subnet in asked.hosts if subnet in known
        )  # a host may have left meanwhile
        return Matrix(
            rows=rows,
            silent=tuple(row.subnet for row in rows if row.failure is not None),
            left_out=len(known.keys() - set(asked.hosts)) if asked.is_of_all else 0,
        )


class _Asked:
    """A request of this host, and the answers so far.

    Attributes:
        is_of_all: True if no hosts were named.
        failures: the reason for each host without a usable row.
        progress: set after each answer.
    """

    def __init__(self, hosts: tuple[IpNetwork, ...], *, is_of_all: bool) -> None:
        self.hosts = hosts
        self.is_of_all = is_of_all
        self.rows: dict[IpNetwork, Row] = {}
        self.failures: dict[IpNetwork, str] = {}
        self.progress = asyncio.Event()

    def is_answered_by(self, hosts: Sequence[IpNetwork]) -> bool:
        """Return whether each of these hosts has answered."""
        return all(host in self.rows or host in self.failures for host in hosts)


def _row(lease: Lease, asked: _Asked) -> MatrixRow:
    row, attributes = asked.rows.get(lease.subnet), lease.attributes
    cells: tuple[MatrixCell, ...] = ()
    if row is not None:
        cells = tuple(
            MatrixCell(subnet=subnet, state=one.state, rtt_ms=one.rtt_ms)
            for subnet, one in zip(asked.hosts, row.answers, strict=True)
            if subnet != lease.subnet
        )
    return MatrixRow(
        subnet=lease.subnet,
        public_ip=attributes.public_ip,
        host_name=attributes.host_name,
        failure=None if row is not None else asked.failures.get(lease.subnet, "no answer"),
        cells=cells,
    )
