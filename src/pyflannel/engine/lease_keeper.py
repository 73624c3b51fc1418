"""The lease keeper, which performs the actions of the lease protocol, and passes their results to it as
events.

The decisions are in `plan.lease.step.step`.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from pyflannel.engine.lease_log import SkippedKeys, left_out_text
from pyflannel.engine.lease_signing import LeaseSigning
from pyflannel.engine.list_watch import STEADY_S, StoreLog, follow
from pyflannel.engine.pacing import LogLimit, one_by_one
from pyflannel.errors import CompactedError, StoreError, TargetError, WireError
from pyflannel.model.lease import CLAIM_TTL_S, Lease, LeaseAttributes
from pyflannel.model.lease_protocol import (
    Action,
    Check,
    Checked,
    ClaimGone,
    ClaimSeen,
    Conflicted,
    DeleteClaim,
    DeleteLease,
    Event,
    Failed,
    Held,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    List,
    Listed,
    Ordered,
    PutClaim,
    PutLease,
    Reidentify,
    Report,
    Seen,
    Started,
    StoreAway,
    StoreBack,
    Unreadable,
    Wake,
    Wanted,
    Watch,
    WatchLost,
    Woke,
    Write,
    Wrote,
)
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.store_record import (
    Change,
    Conflict,
    Delete,
    DeleteSeen,
    Put,
    PutSeen,
    Record,
    StoreChanges,
    Unchanged,
    Written,
)
from pyflannel.plan.lease.state import LeaseState, Listing, apply_key_precedence, known_leases
from pyflannel.plan.lease.step import step
from pyflannel.ports import Clock, Store
from pyflannel.wire.lease_record import (
    ALLOW_LIST,
    CLAIMS,
    CONFIG,
    SUBNETS,
    claim_key,
    claim_of,
    claim_value,
    claimed_subnet,
    lease_key,
    lease_of,
    lease_value,
    leased_subnets,
)

log = logging.getLogger(__name__)


class LeaseKeeper:
    """Keeps this host's lease in the store, and follows the leases of all hosts.

    `report` gets the reports of the lease protocol, and `leases_changed` gets each new set of leases. Both
    functions are called in the order of the events, and must not block. `reidentify` creates a new identity
    and returns the attributes of the lease for it. `store_log` logs the outages of the store. `signing` signs
    and checks leases; None if this host does not use signatures. `noticed` gets each written record with
    another purpose.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        draw: Callable[[int], int],
        store_log: StoreLog,
        wanted: Wanted,
        held: Held | None,
        report: Callable[[Report], None],
        leases_changed: Callable[[LeaseSet], None],
        reidentify: Callable[[LeaseAttributes], LeaseAttributes],
        signing: LeaseSigning | None = None,
        noticed: Callable[[Record], None] = lambda record: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._draw = draw
        self._store_log = store_log
        self._report = report
        self._leases_changed = leases_changed
        self._reidentify = reidentify
        self._signing = signing
        self._noticed = noticed
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._requests: asyncio.Queue[List | Check | Write] = asyncio.Queue()
        self._watch: asyncio.Task[None] | None = None
        self._watching = asyncio.Lock()
        self._opened_at = math.inf
        self._timer: asyncio.Task[None] | None = None
        self._skipped = SkippedKeys(clock)
        self._outranked: set[tuple[str, str]] = set()
        self._outranked_log = LogLimit(log, clock, "ignored leases on a subnet of another lease")
        self.leases = LeaseSet()
        self.state = LeaseState(wanted=wanted, held=held, phase=Listing())

    def order(self, wanted: Wanted) -> None:
        """Change the wanted lease, for example because the address or the config changed."""
        self._events.put_nowait(Ordered(wanted))

    async def run(self) -> None:
        """Keep the lease until cancelled; after that, the lease remains in the store."""
        if self._signing is not None:
            await self._signing.load()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._perform_requests(), name="lease requests")
                if self._signing is not None:
                    tasks.create_task(self._judge_again(self._signing), name="lease signatures")
                self._events.put_nowait(Started())
                while True:
                    self._advance(await self._events.get(), tasks)
        finally:
            self._store_log.forget(self)

    async def _judge_again(self, signing: LeaseSigning) -> None:
        """Read all leases again after each change of the allow-list, because the watch shows only new
        leases.
        """
        while True:
            await signing.rules_changed()
            self._know(self.leases.without(self._is_revoked))
            if self._watch is not None:
                self._watch.cancel()
            self._events.put_nowait(
                WatchLost(cause="the allow-list has changed", is_compacted=True, hint="", was_steady=True)
            )

    def _is_revoked(self, lease: Lease) -> bool:
        assert self._signing is not None
        return self._signing.is_revoked(lease, self.state.wanted.owner)

    def _advance(self, event: Event, tasks: asyncio.TaskGroup) -> None:
        before = self.leases
        self._know(known_leases(before, event, self.state))
        counting = apply_key_precedence(event, before, self.leases)
        self.state, actions = step(self.state, counting, self._clock.now(), self._draw)
        for action in actions:
            self._perform(action, tasks)

    def _know(self, leases: LeaseSet) -> None:
        if leases is not self.leases:
            self._log_outranked(leases)
            if leases.left_out and not self.leases.left_out:
                log.error("%s", left_out_text(leases))
            self.leases = leases
            self._leases_changed(leases)

    def _log_outranked(self, leases: LeaseSet) -> None:
        """Log each newly ignored lease, because another host's lease on the same IPv4 subnet has
        precedence.
        """
        found = set()
        for subnet, others in leases.outranked.items():
            counts = leases.by_subnet[subnet]
            for other in others:
                one = lease_key(other), other.attributes.host_text
                if other.attributes.public_ip == counts.attributes.public_ip:
                    continue
                found.add(one)
                if one not in self._outranked:
                    self._outranked_log.line(
                        logging.WARNING,
                        "Found leases of two hosts on one subnet: using %s of %s, ignoring %s of %s."
                        " Delete the key of the host that does not use the subnet.",
                        lease_key(counts),
                        counts.attributes.host_text,
                        *one,
                    )
        self._outranked = found

    def _perform(self, action: Action, tasks: asyncio.TaskGroup) -> None:
        match action:
            case List() | Check() | PutLease() | DeleteLease() | PutClaim() | DeleteClaim():
                self._requests.put_nowait(action)
            case Watch(after):
                if self._watch is not None:
                    self._watch.cancel()
                self._watch = tasks.create_task(self._follow(after), name="lease watch")
            case Wake(at):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = tasks.create_task(self._wake(at), name="lease timer")
            case Reidentify():
                wanted = self.state.wanted
                if self._signing is None or self._signing.yields():
                    wanted = replace(wanted, attributes=self._reidentify(wanted.attributes))
                self._events.put_nowait(Ordered(wanted))
            case StoreAway(cause, retry_in_s, hint):
                self._store_log.failed(self, StoreError(cause, hint=hint), retry_in_s)
                self._report(action)
            case StoreBack():
                self._store_log.answered(self)
                self._report(action)
            case _:
                self._report(action)

    async def _wake(self, at: float) -> None:
        await self._clock.sleep(max(0.0, at - self._clock.now()))
        self._events.put_nowait(Woke())

    # The store. Requests are sent one at a time, so that a listing shows the result of the write before it.

    async def _perform_requests(self) -> None:
        while True:
            self._events.put_nowait(await self._answer(await self._requests.get()))

    async def _answer(self, request: List | Check | Write) -> Event:
        """Perform a request.

        No variable keeps a reference to the result, because a listing of all leases is large.
        """
        try:
            match request:
                case List():
                    return await self._list()
                case Check(lease):
                    return await self._check(lease)
                case _:
                    return await self._write(request)
        except StoreError as error:
            return Failed(None if isinstance(request, List) else request, str(error), error.hint)

    async def _list(self) -> Listed:
        while True:
            rules = None if self._signing is None else self._signing.rules
            listed = await self._list_once()
            if self._signing is None or self._signing.rules is rules:
                return listed

    async def _list_once(self) -> Listed:
        listing = await self._store.list("")  # lists leases and claims at one revision
        if self._signing is not None:
            values = (record.value for record in listing.records if record.key == ALLOW_LIST)
            await self._signing.see_allow_list(next(values, None))
        self._skipped.keep_only(record.key for record in listing.records)
        read = await one_by_one(self._seen, listing.records)
        if self._signing is not None:
            self._signing.keep_only(
                [record.key for record in listing.records],
                [c.lease.subnet for c in read if isinstance(c, LeaseSeen)],
            )
            await self._signing.keep()
        return Listed(
            leases=tuple(change.lease for change in read if isinstance(change, LeaseSeen)),
            claims=tuple(change.claim for change in read if isinstance(change, ClaimSeen)),
            unreadable=tuple(change for change in read if isinstance(change, Unreadable)),
            revision=listing.revision,
        )

    async def _check(self, lease: Lease) -> Checked:
        record = await self._store.get(lease_key(lease))
        seen = None if record is None else self._seen(record)
        return Checked(lease, seen.lease if isinstance(seen, LeaseSeen) else None)

    async def _write(self, write: Write) -> Event:
        operation = _operation(await self._signed(write))
        match await self._store.write(operation):
            case Written(revision):
                return Wrote(write, revision)
            case Conflict(current):
                seen = None if current is None else self._seen(current)
                match seen:
                    case LeaseSeen(lease):
                        return Conflicted(write, lease)
                    case ClaimSeen(claim):
                        return Conflicted(write, claim)
                    case _:
                        return Conflicted(write, None)

    async def _signed(self, write: Write) -> Write:
        if self._signing is None or not isinstance(write, PutLease):
            return write
        try:
            return replace(write, lease=await self._signing.signed(write.lease))
        except TargetError as error:
            raise StoreError(f"the lease cannot be signed: {error}", hint=error.hint) from error

    async def _follow(self, after: int) -> None:
        async with self._watching:  # the previous watch has ended
            self._opened_at = math.inf
            error = await follow(self._store, "", after, self._take_changes)
        lost = WatchLost(
            cause=str(error),
            is_compacted=isinstance(error, CompactedError),
            hint=error.hint,
            was_steady=self._clock.now() - self._opened_at >= STEADY_S,
        )
        self._events.put_nowait(lost)

    async def _take_changes(self, batch: StoreChanges) -> None:
        self._opened_at = min(self._opened_at, self._clock.now())
        if self._signing is not None:
            await self._see_allow_list(self._signing, batch.changes)
        changes = await one_by_one(self._change, batch.changes)
        if self._signing is not None:
            await self._signing.keep()
        for change in batch.changes:
            if isinstance(change, PutSeen) and not change.key.startswith((SUBNETS, CLAIMS)):
                self._noticed(change.record)
        self._events.put_nowait(Seen(tuple(c for c in changes if c is not None), batch.revision))

    async def _see_allow_list(self, signing: LeaseSigning, changes: Sequence[Change]) -> None:
        for change in changes:
            match change:
                case PutSeen(Record(key=key, value=value)) if key == ALLOW_LIST:
                    await signing.see_allow_list(value)
                case DeleteSeen(key) if key == ALLOW_LIST:
                    await signing.see_allow_list(None)
                case _:
                    pass

    def _change(self, change: Change) -> LeaseChange | None:
        match change:
            case PutSeen(record):
                return self._seen(record)
            case DeleteSeen(key, revision):
                self._skipped.forget(key)
                gone = _gone(key, revision)
                if self._signing is not None and isinstance(gone, LeaseGone):
                    self._signing.delete(key, gone.subnet)
                return gone

    def _seen(self, record: Record) -> LeaseChange | None:
        """Return the content of a record; None if the key has another purpose or the record is invalid."""
        try:
            seen = _read(record)
            if self._signing is not None:
                self._check_signature(self._signing, record, seen)
        except WireError as error:
            self._skipped.skip(record.key, error)
            return _unreadable(record)
        self._skipped.forget(record.key)
        return seen

    def _check_signature(self, signing: LeaseSigning, record: Record, seen: LeaseChange | None) -> None:
        match seen:
            case LeaseSeen(lease):
                signing.check(lease, record.value, self.state)
            case ClaimSeen(claim):
                signing.check_claim(claim, self.state.wanted.owner)
            case _:
                pass


def _read(record: Record) -> LeaseChange | None:
    if record.key.startswith(SUBNETS):
        return LeaseSeen(lease_of(record))
    if record.key.startswith(CLAIMS):
        return ClaimSeen(claim_of(record))
    return None


def _operation(write: Write) -> Put | Delete:
    match write:
        case PutLease(lease=lease, ttl_s=ttl_s, expected=expected, config_revision=revision):
            given = None if revision is None else Unchanged(CONFIG, revision)
            key, value = lease_key(lease), lease_value(lease)
            return Put(key=key, value=value, ttl_s=ttl_s, expected=expected, given=given)
        case DeleteLease(lease):
            return Delete(key=lease_key(lease), expected=lease.revision)
        case PutClaim(claim):
            return Put(key=claim_key(claim.subnet), value=claim_value(claim), ttl_s=CLAIM_TTL_S, expected=0)
        case DeleteClaim(claim):
            return Delete(key=claim_key(claim.subnet), expected=claim.revision)


def _gone(key: str, revision: int) -> LeaseChange | None:
    try:
        if key.startswith(SUBNETS):
            subnet, ipv6_subnet = leased_subnets(key)
            return LeaseGone(subnet, revision, ipv6_subnet)
        if key.startswith(CLAIMS):
            return ClaimGone(claimed_subnet(key), revision)
    except WireError:
        pass  # the record was skipped when it was written
    return None


def _unreadable(record: Record) -> Unreadable | None:
    try:
        subnet, ipv6_subnet = leased_subnets(record.key)
        return Unreadable(subnet, record.revision, ipv6_subnet)
    except WireError:
        return None
