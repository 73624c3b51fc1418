"""The bytes that this host sent to its peers, as the peers counted them.

With vxlan and udp, only the receiver of a tunnel packet counts it. To learn the bytes to its peers, a host
writes a request to the store. Each named host sees the request in its watch, reads its counter of the
requesting host, and writes one record. No host counts further packets, and no host sends probes.
"""

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol

from pyflannel.engine.pacing import within
from pyflannel.engine.record_signing import Signatures, is_authentic, signing
from pyflannel.errors import StoreError, TargetError, WireError
from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.reach_matrix import ByteCount, RowRequest, most_hosts
from pyflannel.model.store_record import Put, Record
from pyflannel.ports import Clock, Store
from pyflannel.wire.reach_record import (
    COUNT_REQUEST,
    COUNTS,
    TTL_S,
    count_key,
    format_count,
    format_request,
    is_authentic_count,
    is_authentic_request,
    parse_count,
    parse_request,
)

log = logging.getLogger(__name__)

COUNTS_S = 1.0
"""Seconds after which the counter of a host is unknown, so that flannelctl answers within 5 s. A counter
that arrives is therefore at most this old."""

INTERVAL_S = 0.2
"""Shortest interval in seconds between two records of this host."""

_WAITING = 4
"""Number of requests that can wait. Further requests have no effect."""


class CountingNetwork(Protocol):
    """The host, its leases and its counters."""

    @property
    def own(self) -> Lease | None:
        """The lease of this host; None without a lease."""

    @property
    def leases(self) -> LeaseSet:
        """All known leases."""

    async def received(self, peer: Lease) -> int | None:
        """Return the bytes of the tunnel packets from a peer; None if they are not counted.

        Raises:
            TargetError: the kernel does not return the counter.
        """


class PeerBytes:
    """Asks peers how many bytes they received from this host, and answers the same requests of peers."""

    def __init__(
        self, *, store: Store | None, clock: Clock, network: CountingNetwork, signatures: Signatures | None
    ) -> None:
        """`store`: None if the leases are Nodes of Kubernetes, because Nodes carry no requests. `signatures`:
        None if leases are not signed.
        """
        self._store = store
        self._clock = clock
        self._network = network
        self._signatures = signatures
        self._requests: asyncio.Queue[RowRequest] = asyncio.Queue(_WAITING)
        self._asked: dict[str, _Asked] = {}

    def see(self, record: Record) -> None:
        """Handle a record that another host, or this host, has just written."""
        try:
            if record.key == COUNT_REQUEST:
                self._see_request(record.value)
            elif record.key.startswith(COUNTS):
                self._see_count(record)
        except WireError as error:
            log.debug("Ignored the record %s: %s", record.key, error)

    def _see_request(self, value: bytes) -> None:
        request, own = parse_request(value), self._network.own
        if own is None or own.subnet == request.asker or own.subnet not in request.hosts:
            return
        if not self._is_authentic_request(request, value):
            log.debug("Ignored a request for bytes without the signature of %s", request.asker)
        elif not self._requests.full():
            self._requests.put_nowait(request)

    def _is_authentic_request(self, request: RowRequest, value: bytes) -> bool:
        is_signed = partial(is_authentic_request, name=COUNT_REQUEST)
        return is_authentic(self._signatures, self._network.leases, request.asker, value, is_signed)

    def _see_count(self, record: Record) -> None:
        count = parse_count(record.value)
        asked = self._asked.get(count.id)
        if asked is None or count.host not in asked.left or record.key != count_key(count.host):
            return
        if is_authentic(self._signatures, self._network.leases, count.host, record.value, is_authentic_count):
            asked.left.remove(count.host)
            if count.received is not None:
                asked.found[count.host] = count.received
            if not asked.left:
                asked.is_complete.set()

    async def run(self) -> None:
        """Answer requests of other hosts until cancelled."""
        while True:
            await self._answer(await self._requests.get())
            await self._clock.sleep(INTERVAL_S)

    async def _answer(self, request: RowRequest) -> None:
        own, asker = self._network.own, self._network.leases.by_subnet.get(request.asker)
        if own is None or asker is None or self._store is None:
            return
        try:
            count = ByteCount(id=request.id, host=own.subnet, received=await self._network.received(asker))
            value = format_count(count, *signing(self._signatures, own))
            await self._store.write(Put(key=count_key(own.subnet), value=value, ttl_s=TTL_S, expected=None))
        except (StoreError, TargetError) as error:
            log.warning("Could not report the bytes from %s to it: %s", request.asker, error)

    async def ask(self, hosts: Sequence[IpNetwork]) -> Mapping[IpNetwork, int]:
        """Return the bytes that each of these hosts received from this host, as counted within the last
        COUNTS_S.

        A host is missing if it does not count these bytes, does not answer in time, or is one of too many
        hosts. The original flannel publishes no owner and is not asked.
        """
        own, known = self._network.own, self._network.leases
        if own is None or self._store is None:
            return {}
        others = [
            host
            for host in dict.fromkeys(hosts)
            if host != own.subnet
            and (lease := known.by_subnet.get(host)) is not None
            and lease.attributes.owner is not None
        ][: most_hosts(len(known)) - 1]
        if not others:
            return {}
        request = RowRequest(id=secrets.token_hex(16), asker=own.subnet, hosts=(own.subnet, *others))
        asked = self._asked[request.id] = _Asked(others)
        try:
            await within(self._clock, COUNTS_S, self._collect(self._store, own, request, asked))
        finally:
            del self._asked[request.id]
        return asked.found

    async def _collect(self, store: Store, own: Lease, request: RowRequest, asked: "_Asked") -> None:
        """Write a request, and wait until each named host has answered."""
        with suppress(StoreError, TargetError):
            value = format_request(request, *signing(self._signatures, own), name=COUNT_REQUEST)
            await store.write(Put(key=COUNT_REQUEST, value=value, ttl_s=TTL_S, expected=None))
            await asked.is_complete.wait()


class _Asked:
    """A request of this host: the hosts without an answer, and the answers so far."""

    def __init__(self, hosts: Sequence[IpNetwork]) -> None:
        self.left = set(hosts)
        self.found: dict[IpNetwork, int] = {}
        self.is_complete = asyncio.Event()
