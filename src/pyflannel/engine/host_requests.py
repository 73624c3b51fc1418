"""Requests of hosts to each other through the store.

A host writes a request to the store. Each named host sees the request in its watch, and writes one record
with its answer. The watch of the requesting host receives the answers, also those of hosts that it cannot
reach itself.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar

from pyflannel.engine.pacing import within
from pyflannel.errors import StoreError, TargetError, WireError
from pyflannel.model.lease import Lease, LeaseKey
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.reach_matrix import ByteCount, Row, RowRequest
from pyflannel.model.store_record import Put, Record
from pyflannel.ports import Clock, Store
from pyflannel.wire.reach_record import (
    TTL_S,
    RecordKind,
    format_request,
    is_authentic_request,
    parse_request,
)

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer", Row, ByteCount)


class LeasedHost(Protocol):
    """The host and all leases."""

    @property
    def own(self) -> Lease | None:
        """The lease of this host; None without a lease."""

    @property
    def leases(self) -> LeaseSet:
        """All known leases."""


class Signatures(Protocol):
    """The signatures of leases, whose keys also sign the records."""

    @property
    def prefix(self) -> str:
        """The prefix of the store, which each signature covers."""

    def key(self, owner: str) -> LeaseKey:
        """Return the key pair of an owner.

        Raises:
            TargetError: the key is unusable.
        """


class Requests(Generic[_Answer]):
    """Sends requests of one kind, and answers those of other hosts.

    A request has an effect only if it names this host. With signatures, it must also be signed with the key
    of a known lease. For each request, this host writes once.
    """

    def __init__(
        self,
        kind: RecordKind[_Answer],
        *,
        store: Store | None,
        clock: Clock,
        host: LeasedHost,
        signatures: Signatures | None,
        answer: Callable[[Lease, RowRequest], Awaitable[_Answer | None]],
        interval_s: float,
        waiting: int = 1,
    ) -> None:
        """`store`: None if the leases are Nodes of Kubernetes, because Nodes carry no requests. `signatures`:
        None if leases are not signed. `answer`: function that returns the answer of this host, whose lease is
        the first argument; None for no answer. It may raise TargetError. `interval_s`: shortest interval in
        seconds between the starts of two answers. `waiting`: number of requests that can wait. Further
        requests have no effect.
        """
        self._kind: RecordKind[_Answer] = kind
        self._store = store
        self._clock = clock
        self._host = host
        self._signatures = signatures
        self._answer: Callable[[Lease, RowRequest], Awaitable[_Answer | None]] = answer
        self._interval_s = interval_s
        self._requests: asyncio.Queue[RowRequest] = asyncio.Queue(waiting)
        self._asked: dict[str, Replies[_Answer]] = {}

    def see(self, record: Record) -> None:
        """Handle a record that another host, or this host, has just written."""
        try:
            if record.key == self._kind.request:
                self._see_request(record.value)
            elif record.key.startswith(self._kind.answers):
                self._see_answer(record)
        except WireError as error:
            log.debug("Ignored the record %s: %s", record.key, error)

    def _see_request(self, value: bytes) -> None:
        request, own = parse_request(value), self._host.own
        if own is None or own.subnet == request.asker or own.subnet not in request.hosts:
            return
        if not self._is_authentic(
            request.asker, value, partial(is_authentic_request, name=self._kind.request)
        ):
            log.debug("Ignored a %s without the signature of %s", self._kind.request, request.asker)
        elif not self._requests.full():
            self._requests.put_nowait(request)

    def _see_answer(self, record: Record) -> None:
        answer = self._kind.parse(record.value)
        replies = self._asked.get(answer.id)
        if replies is None or record.key != self._kind.answer_key(answer.host) or not replies.takes(answer):
            return
        if self._is_authentic(answer.host, record.value, self._kind.is_authentic):
            replies.answers[answer.host] = answer
        else:
            replies.failures[answer.host] = "its answer is not signed with the key of its lease"
        replies.progress.set()

    def _is_authentic(
        self, writer: IpNetwork, value: bytes, is_signed: Callable[[bytes, str, bytes], bool]
    ) -> bool:
        """Return whether the host with the subnet `writer` has a lease and signed the value.

        Without signatures of leases, the value needs no signature.
        """
        lease = self._host.leases.by_subnet.get(writer)
        if lease is None:
            return False
        if self._signatures is None:
            return True  # as for leases, the permissions of the store limit the writers
        key = lease.attributes.signing_key
        return key is not None and is_signed(value, self._signatures.prefix, key)

    async def run(self) -> None:
        """Answer requests of other hosts until cancelled."""
        while True:
            request = await self._requests.get()
            began = self._clock.now()
            await self._write_answer(request)
            await self._clock.sleep(max(0.0, began + self._interval_s - self._clock.now()))

    async def _write_answer(self, request: RowRequest) -> None:
        own = self._host.own
        if own is None or self._store is None:
            return
        try:
            answer = await self._answer(own, request)
            if answer is not None:
                value = self._kind.format(answer, *self._signing(own))
                key = self._kind.answer_key(own.subnet)
                await self._store.write(Put(key=key, value=value, ttl_s=TTL_S, expected=None))
        except (StoreError, TargetError) as error:
            log.warning("Could not answer the %s of %s: %s", self._kind.request, request.asker, error)

    def _signing(self, own: Lease) -> tuple[str, LeaseKey | None]:
        """Return the prefix and the key for a signature of this host; no key if records are not signed.

        Raises:
            TargetError: the key is unusable.
        """
        owner = own.attributes.owner
        if self._signatures is None or owner is None:
            return "", None
        return self._signatures.prefix, self._signatures.key(owner)

    async def ask(self, own: Lease, hosts: Sequence[IpNetwork], deadline_s: float) -> "Replies[_Answer]":
        """Return the answers of these hosts without this host, and the reason for each host without an answer
        within the deadline. `hosts` has at least two hosts, and may contain this host.
        """
        request = RowRequest(id=secrets.token_hex(16), asker=own.subnet, hosts=tuple(hosts))
        replies = Replies[_Answer](request, [host for host in hosts if host != own.subnet])
        if self._store is None:
            replies.fail("Nodes of Kubernetes carry no requests")
            return replies
        self._asked[request.id] = replies
        try:
            await within(self._clock, deadline_s, self._collect(self._store, own, replies))
        finally:
            del self._asked[request.id]
        replies.fail(f"no answer within {deadline_s:g} s")
        return replies

    async def _collect(self, store: Store, own: Lease, replies: "Replies[_Answer]") -> None:
        """Write a request, and wait for the answers of the other hosts."""
        try:
            value = format_request(replies.request, *self._signing(own), name=self._kind.request)
            await store.write(Put(key=self._kind.request, value=value, ttl_s=TTL_S, expected=None))
        except (StoreError, TargetError) as error:
            replies.fail(f"the request was not written: {error}")
            return
        while replies.missing:
            await replies.progress.wait()
            replies.progress.clear()


class Replies(Generic[_Answer]):
    """A request of this host, and the answers so far.

    Attributes:
        answers: the answer of each host that answered.
        failures: the reason for each host whose answer was missing or invalid. A host can have a failure and
            an answer, because another host can write an invalid answer in its name.
        progress: set after each answer.
    """

    def __init__(self, request: RowRequest, others: Sequence[IpNetwork]) -> None:
        self.request = request
        self._others = others
        self.answers: dict[IpNetwork, _Answer] = {}
        self.failures: dict[IpNetwork, str] = {}
        self.progress = asyncio.Event()

    @property
    def missing(self) -> list[IpNetwork]:
        """The hosts without a valid answer."""
        return [host for host in self._others if host not in self.answers]

    def takes(self, answer: _Answer) -> bool:
        """Return whether an answer belongs to this request."""
        if isinstance(answer, Row) and len(answer.answers) != len(self.request.hosts):
            return False
        return answer.host in self._others

    def fail(self, reason: str) -> None:
        """Record a failure for each missing host that has no other failure."""
        self.failures = dict.fromkeys(self.missing, reason) | self.failures
