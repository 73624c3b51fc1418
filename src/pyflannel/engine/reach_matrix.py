"""The matrix of reachability: hosts probe each other at the request of one host, and answer through the
store.

A daemon knows only its own probes. To learn those of others, it writes a request to the store. Each named
host sees the request in its watch, probes the other named hosts once, and writes one row. The watch of the
requesting host receives the rows, also those of hosts that it cannot reach itself.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Protocol

from pyflannel.engine.host_requests import LeasedHost, Replies, Requests, Signatures
from pyflannel.errors import TargetError, UsageError
from pyflannel.model.lease import Lease
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
from pyflannel.model.store_record import Record
from pyflannel.plan.peers import place_of_subnet
from pyflannel.ports import Clock, SendEchoes, Store
from pyflannel.wire.reach_record import REACH

ROWS_S = 2.8
"""Seconds after which a host without a row counts as silent, so that flannelctl answers within 5 s."""

ROUND_S = 2.0
"""Shortest interval in seconds between the starts of two rounds of probes that other hosts request. While a
round waits, further requests have no effect."""


class Network(LeasedHost, Protocol):
    """The host and its leases, and the ends of its paths."""

    def ends(self, subnets: Sequence[IpNetwork]) -> Mapping[IpNetwork, IpAddress]:
        """Return the addresses that answer probes for these hosts; without those to which this host does not
        send.
        """


class ReachMatrix:
    """Asks hosts which other hosts they reach, and answers the same requests of other hosts.

    For each request, this host sends at most three small probes to each other named host.
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
        """`store` and `signatures`: see Requests."""
        self._send = send
        self._network = network
        self._requests = Requests(
            REACH,
            store=store,
            clock=clock,
            host=network,
            signatures=signatures,
            answer=self._answer,
            interval_s=ROUND_S,
        )

    def see(self, record: Record) -> None:
        """Handle a record that another host, or this host, has just written."""
        self._requests.see(record)

    async def run(self) -> None:
        """Answer requests of other hosts until cancelled."""
        await self._requests.run()

    async def _answer(self, own: Lease, request: RowRequest) -> Row:
        answers = await self._probe(own.subnet, request.hosts)
        return Row(id=request.id, host=own.subnet, answers=answers)

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
        subnets, own = self._chosen(hosts), self._network.own
        found = _Found()
        if own is not None:
            async with asyncio.TaskGroup() as tasks:
                if own.subnet in subnets:
                    tasks.create_task(self._take_own(own, subnets, found), name="own row")
                replies = await self._requests.ask(own, subnets, ROWS_S)
            found.add(replies)
        return self._matrix(subnets, found, is_of_all=not hosts)

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
            others = random.SystemRandom().sample(others, most - len(first))
        chosen = sorted(set(hosts) or {*first, *others}, key=place_of_subnet)
        if len(chosen) < 2:
            raise UsageError("a matrix needs at least two hosts", hint="Name two hosts, or none for all.")
        return tuple(chosen)

    async def _take_own(self, own: Lease, hosts: Sequence[IpNetwork], found: "_Found") -> None:
        try:
            found.rows[own.subnet] = await self._probe(own.subnet, hosts)
        except TargetError as error:
            found.failures[own.subnet] = str(error)

    def _matrix(self, hosts: Sequence[IpNetwork], found: "_Found", *, is_of_all: bool) -> Matrix:
        known = self._network.leases.by_subnet
        rows = tuple(
            _row(known[subnet], hosts, found) for subnet in hosts if subnet in known
        )  # a host may have left meanwhile
        return Matrix(
            rows=rows,
            silent=tuple(row.subnet for row in rows if row.failure is not None),
            left_out=len(known.keys() - set(hosts)) if is_of_all else 0,
        )


class _Found:
    """The row of each host that has one, and the reason for the other hosts."""

    def __init__(self) -> None:
        self.rows: dict[IpNetwork, tuple[Answer, ...]] = {}
        self.failures: dict[IpNetwork, str] = {}

    def add(self, replies: Replies[Row]) -> None:
        """Add the rows of other hosts."""
        self.rows |= {host: row.answers for host, row in replies.answers.items()}
        self.failures |= replies.failures


def _row(lease: Lease, hosts: Sequence[IpNetwork], found: _Found) -> MatrixRow:
    row, attributes = found.rows.get(lease.subnet), lease.attributes
    cells: tuple[MatrixCell, ...] = ()
    if row is not None:
        cells = tuple(
            MatrixCell(subnet=subnet, state=one.state, rtt_ms=one.rtt_ms)
            for subnet, one in zip(hosts, row, strict=True)
            if subnet != lease.subnet
        )
    return MatrixRow(
        subnet=lease.subnet,
        public_ip=attributes.public_ip,
        host_name=attributes.host_name,
        failure=None if row is not None else found.failures.get(lease.subnet, "no answer"),
        cells=cells,
    )
