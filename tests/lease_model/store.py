"""The store: conditional writes, TTLs, a listing at one revision, and a compacted history."""

from typing import assert_never

from msgspec.structs import replace

from lease_model.world import Entry, Request, StoreState
from pyflannel.model.lease import CLAIM_TTL_S, Claim, Lease
from pyflannel.model.lease_protocol import (
    Check,
    Checked,
    ClaimGone,
    ClaimSeen,
    Conflicted,
    DeleteClaim,
    DeleteLease,
    Event,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    List,
    Listed,
    PutClaim,
    PutLease,
    Unreadable,
    Wrote,
)
from pyflannel.model.network_config import IpNetwork


def transact(store: StoreState, request: Request, now: float, writer: str) -> tuple[StoreState, Event]:
    """Perform a request like etcd; return the store after it and the response."""
    match request:
        case List():
            return store, _listing(store)
        case Check(lease):
            found = lease_at(store, lease.subnet)
            stands = found.value if found is not None else None
            return store, Checked(lease, stands if isinstance(stands, Lease) else None)
        case PutLease(lease=lease, ttl_s=ttl_s, expected=expected, config_revision=given):
            current = lease_at(store, lease.subnet)
            is_expected = (revision_of(current) if current is not None else 0) == expected
            if not is_expected or given not in (None, store.config_revision):
                value = current.value if current is not None else None
                return store, Conflicted(request, value if isinstance(value, Lease) else None)
            return _wrote(put_lease(store, lease, ttl_s, now, writer), request)
        case DeleteLease(lease):
            current = lease_at(store, lease.subnet)
            if current is None or revision_of(current) != lease.revision:
                value = current.value if current is not None else None
                return store, Conflicted(request, value if isinstance(value, Lease) else None)
            return _wrote(delete(store, current), request)
        case PutClaim(claim):
            if (current := claim_at(store, claim.subnet)) is not None:
                assert isinstance(current.value, Claim)
                return store, Conflicted(request, current.value)
            return _wrote(_put_claim(store, claim, now, writer), request)
        case DeleteClaim(claim):
            current = claim_at(store, claim.subnet)
            if current is None or revision_of(current) != claim.revision:
                value = current.value if current is not None else None
                return store, Conflicted(request, value if isinstance(value, Claim) else None)
            return _wrote(delete(store, current), request)
        case _:
            assert_never(request)


def put_lease(store: StoreState, lease: Lease, ttl_s: float | None, now: float, writer: str) -> StoreState:
    """Write a lease, regardless of the current value."""
    lease = replace(lease, revision=store.revision + 1, has_ttl=ttl_s is not None)
    expires_at = None if ttl_s is None else now + ttl_s
    entry = Entry(value=lease, expires_at=expires_at, writer=writer)
    return _put(store, entry, LeaseSeen(lease), lease_at(store, lease.subnet))


def put_rubbish(store: StoreState, subnet: IpNetwork, writer: str) -> StoreState:
    """Write an invalid lease without a TTL."""
    value = Unreadable(subnet, store.revision + 1)
    entry = Entry(value=value, expires_at=None, writer=writer)
    return _put(store, entry, value, lease_at(store, subnet))


def delete(store: StoreState, entry: Entry) -> StoreState:
    """Delete a key: by a request, manually, or when its TTL ends."""
    revision = store.revision + 1
    gone = ClaimGone if isinstance(entry.value, Claim) else LeaseGone
    return replace(
        store,
        entries=tuple(other for other in store.entries if other is not entry),
        history=(*store.history, gone(entry.value.subnet, revision)),
        revision=revision,
    )


def lease_at(store: StoreState, subnet: IpNetwork) -> Entry | None:
    """Return the value of the key of a subnet's lease."""
    for entry in store.entries:
        if entry.value.subnet == subnet and not isinstance(entry.value, Claim):
            return entry
    return None


def claim_at(store: StoreState, subnet: IpNetwork) -> Entry | None:
    """Return the value of the key of a claim on a subnet."""
    for entry in store.entries:
        if entry.value.subnet == subnet and isinstance(entry.value, Claim):
            return entry
    return None


def revision_of(entry: Entry) -> int:
    """Return the revision of the last write to this key."""
    return entry.value.revision


def revision_of_change(change: LeaseChange) -> int:
    """Return the store's revision of a change."""
    match change:
        case LeaseSeen(lease):
            return lease.revision
        case ClaimSeen(claim):
            return claim.revision
        case LeaseGone(_, revision) | ClaimGone(_, revision) | Unreadable(_, revision):
            return revision
        case _:
            assert_never(change)


def _put_claim(store: StoreState, claim: Claim, now: float, writer: str) -> StoreState:
    claim = replace(claim, revision=store.revision + 1)
    entry = Entry(value=claim, expires_at=now + CLAIM_TTL_S, writer=writer)
    return _put(store, entry, ClaimSeen(claim), None)


def _put(store: StoreState, entry: Entry, change: LeaseChange, old: Entry | None) -> StoreState:
    return replace(
        store,
        entries=(*(other for other in store.entries if other is not old), entry),
        history=(*store.history, change),
        revision=store.revision + 1,
    )


def _wrote(
    store: StoreState, request: PutLease | DeleteLease | PutClaim | DeleteClaim
) -> tuple[StoreState, Event]:
    return store, Wrote(request, store.revision)


def _listing(store: StoreState) -> Listed:
    values = [entry.value for entry in store.entries]
    return Listed(
        leases=tuple(value for value in values if isinstance(value, Lease)),
        claims=tuple(value for value in values if isinstance(value, Claim)),
        unreadable=tuple(value for value in values if isinstance(value, Unreadable)),
        revision=store.revision,
    )
