"""The store in memory for the rules, with the writer of each key."""

from doubles.fake_store import FakeStore
from lease_model.world import Entry, StoreState
from pyflannel.errors import WireError
from pyflannel.model.lease import Claim, Lease
from pyflannel.model.lease_protocol import DeleteLease, PutLease, Unreadable
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.store_record import Delete, Put, Record
from pyflannel.wire.lease_record import (
    CLAIMS,
    SUBNETS,
    claim_of,
    lease_of,
    leased_subnets,
)

_ANY_LEASE_ID = 1


class Ledger:
    """Stores the writer of each key. A manual write keeps the previous writer."""

    def __init__(self, store: FakeStore) -> None:
        self._store = store
        self._writers: dict[str, str] = {}
        self._entries: dict[str, tuple[int, Entry]] = {}

    def wrote(self, key: str, writer: str) -> None:
        """Record the host of the write that just took effect."""
        self._writers[key] = writer

    def forget(self) -> None:
        """Record that the store lost its data, so that revisions are used again."""
        self._writers.clear()
        self._entries.clear()

    def state(self) -> StoreState:
        """Return the current store without its history."""
        listing = self._store.listing()
        entries = [
            self._entry(record) for record in listing.records if record.key.startswith((SUBNETS, CLAIMS))
        ]
        return StoreState(entries=tuple(entries), revision=listing.revision)

    def _entry(self, record: Record) -> Entry:
        revision, entry = self._entries.get(record.key, (0, None))
        if entry is None or revision != record.revision:
            writer = self._writers.get(record.key, "somebody")
            entry = Entry(value=_value(record), expires_at=None, writer=writer)
            self._entries[record.key] = record.revision, entry
        return entry


def request_of(write: Put | Delete, before: StoreState) -> PutLease | DeleteLease | None:
    """Return the write of a lease that an operation performs; None if the operation writes another key."""
    if not write.key.startswith(SUBNETS):
        return None
    subnet = leased_subnets(write.key)[0]
    if isinstance(write, Put):
        lease_id = 0 if write.ttl_s is None else _ANY_LEASE_ID
        lease = lease_of(Record(key=write.key, value=write.value, revision=0, lease_id=lease_id))
        return PutLease(lease=lease, ttl_s=write.ttl_s, expected=write.expected or 0)
    standing = _lease(before, subnet)
    return None if standing is None else DeleteLease(standing)


def _lease(store: StoreState, subnet: IpNetwork) -> Lease | None:
    values = (entry.value for entry in store.entries if entry.value.subnet == subnet)
    return next((value for value in values if isinstance(value, Lease)), None)


def _value(record: Record) -> Lease | Claim | Unreadable:
    try:
        return claim_of(record) if record.key.startswith(CLAIMS) else lease_of(record)
    except WireError:
        return Unreadable(leased_subnets(record.key)[0], record.revision)
