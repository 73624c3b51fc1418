"""Leases in etcd v3."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from ipaddress import IPv4Address

from grpclib.const import Status

from pyflannel.errors import CompactedError, StoreError
from pyflannel.model.lease_set import LARGEST
from pyflannel.model.store_record import Conflict, Delete, Listing, Put, Record, Written
from pyflannel.ports import Watcher
from pyflannel.stores.etcd.cluster import Cluster, Member, User
from pyflannel.stores.etcd.endpoint import Endpoint, TlsFiles
from pyflannel.stores.etcd.failure import CALL_S, RefusedError
from pyflannel.stores.etcd.keys import KeySpace, lease_left_behind, outcome, transaction
from pyflannel.stores.etcd.rpc_grpc import KVStub, LeaseStub
from pyflannel.stores.etcd.rpc_pb2 import (
    LeaseGrantRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    LeaseTimeToLiveResponse,
    RangeRequest,
    RangeResponse,
)
from pyflannel.stores.etcd.watch import Watch

log = logging.getLogger(__name__)

PAGE_RECORDS = 1000
"""Maximum number of records in one answer, which keeps an answer far below etcd's limits."""

MOST_RECORDS = 4 * LARGEST
"""Maximum number of records of a list. There may be reservations and claims besides the leases, and keys
that contain no lease."""


class EtcdStore:
    """The keys under one prefix of an etcd v3 cluster (3.4 and newer).

    A key with a TTL is attached to its own etcd lease: `lease_id`.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        prefix: str,
        *,
        tls: TlsFiles | None = None,
        user: User | None = None,
        call_s: float = CALL_S,
        page_records: int = PAGE_RECORDS,
        most_records: int = MOST_RECORDS,
    ) -> None:
        self._cluster = Cluster(endpoints, tls=tls, user=user, call_s=call_s)
        self._keys = KeySpace(prefix)
        self._page_records = page_records
        self._most_records = most_records
        self._answering: set[Endpoint] = set()  # members that answer progress requests

    async def get(self, key: str) -> Record | None:
        """Return the record at exactly this key, or None. The read is linearisable."""
        answer = await self._range(RangeRequest(key=self._keys.full(key)), key)
        return self._keys.record(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        """Return all records under `prefix` at one revision, in the order of their keys."""
        while True:
            try:
                return await self._list_at_one_revision(prefix)
            except RefusedError as refused:
                # The revision was compacted between two pages, so start again at a newer revision.
                if refused.status is not Status.OUT_OF_RANGE:
                    raise

    async def write(self, operation: Put | Delete) -> Written | Conflict:
        """Perform one conditional write as one transaction.

        If the answer gets lost, the write may have taken effect. The new etcd lease then expires, because
        revoking it would delete the key.
        """
        lease_id = 0
        if isinstance(operation, Put) and operation.ttl_s is not None:
            lease_id = await self._grant(operation)
        request = transaction(self._keys, operation, lease_id)
        try:
            answer = await self._cluster.ask(
                lambda member: KVStub(member.channel).Txn(request),
                about=self._keys.shown(operation.key),
                once=True,
            )
        except RefusedError:
            await self._revoke(lease_id)
            raise
        result = outcome(self._keys, answer)
        # After a lost race the new lease has no key, and after a write the previous lease has no key.
        # If these unused etcd leases remained, hourly renewals would create many leases of 24 h in etcd.
        if isinstance(result, Conflict):
            await self._revoke(lease_id)
        else:
            await self._release(lease_left_behind(answer))
        return result

    @asynccontextmanager
    async def watch(self, prefix: str, after: int) -> AsyncIterator[Watcher]:
        """Watch the keys under `prefix` for changes after revision `after`, during the block."""
        async with AsyncExitStack() as attempts:

            async def start(member: Member) -> Watch:
                watch = Watch(self._keys, after, member, self._answering)
                attempts.push_async_callback(watch.close)  # also closes a watch that is confirmed too late
                await watch.start(prefix)
                return watch

            watch = await self._cluster.ask(start, about=self._keys.shown(prefix))
            if watch.revision < after:
                await self._raise_if_rewound(after)
            try:
                yield watch
            finally:
                if watch.is_lost:
                    self._cluster.distrust(watch.member)

    async def time_to_live(self, record: Record) -> float | None:
        """Return the whole seconds until the record expires, or None if the record never expires."""
        answer = await self._lease_of(record)
        return None if answer is None else max(0.0, float(answer.TTL))

    async def age(self, record: Record) -> float | None:
        """Return the whole seconds since the record was written; None if the record has no TTL or has
        expired.

        flannel never keeps an etcd lease alive: each write of a key grants a new etcd lease.
        """
        answer = await self._lease_of(record)
        if answer is None or answer.TTL <= 0:
            return None
        return max(0.0, float(answer.grantedTTL - answer.TTL))

    async def _lease_of(self, record: Record) -> LeaseTimeToLiveResponse | None:
        """Return etcd's answer about the TTL of a record; None if the record has no TTL."""
        if not record.lease_id:
            return None
        request = LeaseTimeToLiveRequest(ID=record.lease_id)
        return await self._cluster.ask(
            lambda member: LeaseStub(member.channel).LeaseTimeToLive(request),
            about=self._keys.shown(record.key),
        )

    def addresses(self) -> tuple[IPv4Address, ...]:
        """Return the addresses of the members, as far as they are known."""
        return self._cluster.addresses()

    async def close(self) -> None:
        """Close the connections and end the watches."""
        self._cluster.close()

    async def _range(self, request: RangeRequest, key: str) -> RangeResponse:
        return await self._cluster.ask(
            lambda member: KVStub(member.channel).Range(request), about=self._keys.shown(key)
        )

    async def _list_at_one_revision(self, prefix: str) -> Listing:
        start, end = self._keys.range_of(prefix)
        records: list[Record] = []
        revision = 0
        while True:
            page = await self._range(
                RangeRequest(key=start, range_end=end, limit=self._page_records, revision=revision), prefix
            )
            revision = revision or page.header.revision
            records += map(self._keys.record, page.kvs)
            if len(records) > self._most_records:
                raise StoreError(
                    f"there are more than {self._most_records} keys below {self._keys.shown(prefix)}",
                    hint="Delete the keys that contain no lease.",
                )
            if not page.more:
                return Listing(tuple(records), revision)
            start = page.kvs[-1].key + b"\0"

    async def _grant(self, put: Put) -> int:
        request = LeaseGrantRequest(TTL=put.ttl_s)
        answer = await self._cluster.ask(
            lambda member: LeaseStub(member.channel).LeaseGrant(request), about=self._keys.shown(put.key)
        )
        return int(answer.ID)

    async def _release(self, lease_id: int) -> None:
        """Revoke an etcd lease whose key is attached to another etcd lease now. If the request fails, the
        lease expires at the end of its TTL.

        An operator may have attached other keys to the lease, which would then also be deleted. Therefore
        flanneld first asks etcd for the keys of the lease.
        """
        if not lease_id:
            return
        request = LeaseTimeToLiveRequest(ID=lease_id, keys=True)
        try:
            lease = await self._cluster.ask(lambda member: LeaseStub(member.channel).LeaseTimeToLive(request))
        except StoreError as error:
            log.debug(
                "Could not revoke an etcd lease, which therefore expires later lease_id=%x cause=%s",
                lease_id,
                error,
            )
            return
        if lease.TTL > 0 and not lease.keys:
            await self._revoke(lease_id)

    async def _revoke(self, lease_id: int) -> None:
        """Revoke an etcd lease, which deletes its keys. Do nothing for the number 0. If the request fails,
        the lease expires at the end of its TTL.
        """
        if not lease_id:
            return
        request = LeaseRevokeRequest(ID=lease_id)
        try:
            await self._cluster.ask(lambda member: LeaseStub(member.channel).LeaseRevoke(request))
        except StoreError as error:
            log.debug(
                "Could not revoke an etcd lease, which therefore expires later lease_id=%x cause=%s",
                lease_id,
                error,
            )

    async def _raise_if_rewound(self, after: int) -> None:
        """Raise CompactedError if the revision of etcd is lower than `after`, because etcd was restored or
        replaced.
        """
        answer = await self._range(RangeRequest(key=self._keys.full(""), count_only=True), "")
        if answer.header.revision < after:
            raise CompactedError(after, answer.header.revision)
