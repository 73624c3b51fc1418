"""The earlier values of leases and of the network config in a store, and the config that hosts use."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from ipaddress import IPv6Network
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.errors import CompactedError, NotReadyError, WireError
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import AnyAddress, AnyNetwork
from pyflannel.model.store_record import Change, DeleteSeen, Listing, PutSeen, Record, StoreChanges
from pyflannel.plan.backends import deviations_of
from pyflannel.ports import Store
from pyflannel.wire.lease_record import CONFIG, SUBNETS, leased_subnets, readable_lease
from pyflannel.wire.network_config_json import parse_network_config

_READ_S = 2.5
"""Deadline in seconds for reading the changes. After this deadline, the history is reported as incomplete."""

_QUIET_S = 0.5
"""Time in seconds without a change, after which all earlier changes are assumed to have arrived. etcd does
not report when it has sent all earlier changes."""

_MOST_DATED = 64
"""Maximum number of leases whose age is requested. One age per renewal interval is enough."""


class Dates:
    """The latest possible times of revisions. These times are computed from leases with a TTL, whose age the
    store knows.

    etcd starts all TTLs from their full length when it elects a leader. Therefore an age is a minimum, and a
    computed time is never too early.
    """

    def __init__(self, known: Sequence[tuple[int, float]]) -> None:
        """`known`: pairs of a revision and its time in seconds since the epoch, in ascending order."""
        self._revisions = [revision for revision, _ in known]
        earliest, times = float("inf"), []
        for _, at in reversed(known):
            earliest = min(earliest, at)
            times.append(earliest)
        self._times = times[::-1]

    def not_after(self, revision: int) -> float | None:
        """Return the latest possible time of a revision; None if no later lease has an age."""
        place = bisect_left(self._revisions, revision)
        return self._times[place] if place < len(self._times) else None


class History(Struct, frozen=True, kw_only=True):
    """The changes of the keys with one prefix, the oldest first.

    Attributes:
        begin: revision since which no change is missing. Of earlier changes, only values that are still in
            the store are known.
        revision: revision up to which the changes were read.
        is_complete: False if the store did not send all changes before the deadline.
    """

    changes: tuple[Change, ...]
    begin: int
    revision: int
    is_complete: bool
    dates: Dates


async def read_history(store: Store, prefix: str) -> History:
    """Read the changes of the keys with this prefix.

    Raises:
        StoreError: the store does not respond.
    """
    listing = await store.list(prefix)
    dates = await _read_dates(store, listing if prefix == SUBNETS else await store.list(SUBNETS))
    begin = 0
    while True:
        try:
            changes, is_complete = await _changes_after(store, listing, prefix, begin)
        except CompactedError as error:
            # etcd reports a revision at which the state is still complete. SQLite reports the revision of a
            # change.
            begin = max(begin + 1, error.oldest - 1)
        else:
            break
    old = sorted(
        (record for record in listing.records if record.revision <= begin), key=lambda each: each.revision
    )
    return History(
        changes=(*map(PutSeen, old), *changes),
        begin=begin + 1,
        revision=listing.revision,
        is_complete=is_complete,
        dates=dates,
    )


async def _changes_after(
    store: Store, listing: Listing, prefix: str, begin: int
) -> tuple[list[Change], bool]:
    """Return the changes after `begin` up to the list request, and whether the returned changes are
    complete.
    """
    expected = {record.key: record.revision for record in listing.records if record.revision > begin}
    found: list[Change] = []
    current: dict[str, int] = {}
    end = asyncio.get_running_loop().time() + _READ_S
    async with store.watch(prefix, begin) as watcher:
        while True:
            is_at_end = current == expected
            left = max(0.0, end - asyncio.get_running_loop().time())
            try:
                async with asyncio.timeout(_QUIET_S if is_at_end else left):
                    batch: StoreChanges = await watcher.next()
            except TimeoutError:
                return found, is_at_end
            for change in batch.changes:
                if change.revision <= listing.revision:
                    found.append(change)
                    _apply(change, current)
            if batch.revision >= listing.revision:
                return found, True


def _apply(change: Change, current: dict[str, int]) -> None:
    match change:
        case PutSeen(record):
            current[record.key] = record.revision
        case DeleteSeen(key):
            current.pop(key, None)


async def _read_dates(store: Store, listing: Listing) -> Dates:
    dated = sorted((each for each in listing.records if each.lease_id), key=lambda each: each.revision)
    step = max(1, -(-len(dated) // _MOST_DATED))
    chosen = dated[::-1][::step][::-1]  # including the newest revision
    async with asyncio.TaskGroup() as tasks:
        asked = [tasks.create_task(store.age(record)) for record in chosen]
    now = time.time()
    ages = zip(chosen, (each.result() for each in asked), strict=True)
    return Dates([(record.revision, now - age) for record, age in ages if age is not None])


LeaseEventKind = Literal[
    "acquired", "reserved", "renewed", "changed", "transferred", "expires", "written", "removed", "unreadable"
]
"""The kinds of events. `expires`: a reservation got a TTL. `written`: the previous value is unknown."""


class LeaseEvent(Struct, frozen=True, kw_only=True):
    """A change of one lease. The holder of a removed lease is the last known holder.

    Attributes:
        not_after: latest possible time, in seconds since the epoch; None if it is unknown.
    """

    revision: int
    event: LeaseEventKind
    subnet: AnyNetwork
    ipv6_subnet: IPv6Network | None = None
    public_ip: AnyAddress | None = None
    host_name: str | None = None
    owner: str | None = None
    backend_type: str | None = None
    is_reservation: bool = False
    not_after: float | None = None


class LeaseHistory(Struct, frozen=True, kw_only=True):
    """The document of `leases history`."""

    begin: int
    revision: int
    is_complete: bool
    changes: tuple[LeaseEvent, ...]


async def lease_history(store: Store) -> LeaseHistory:
    """Return the changes of all leases that the store still has, the oldest first.

    Raises:
        StoreError: the store does not respond.
    """
    history = await read_history(store, SUBNETS)
    return LeaseHistory(
        begin=history.begin,
        revision=history.revision,
        is_complete=history.is_complete,
        changes=tuple(_lease_events(history)),
    )


def _lease_events(history: History) -> Iterator[LeaseEvent]:
    before: dict[str, Lease | None] = {}  # None: deleted
    for change in history.changes:
        key = change.key
        try:
            subnet, ipv6_subnet = leased_subnets(key)
        except WireError:
            continue  # not a lease
        event: LeaseEventKind
        match change:
            case PutSeen(record):
                if (lease := readable_lease(record)) is None:
                    before.pop(key, None)
                    event = "unreadable"
                else:
                    is_new = key in before or _is_new(record, history)
                    event = _event(before.get(key), lease, is_new=is_new)
                    before[key] = lease
            case DeleteSeen():
                lease, event = before.get(key), "removed"
                before[key] = None
        event_of_key = LeaseEvent(
            revision=change.revision,
            event=event,
            subnet=subnet,
            ipv6_subnet=ipv6_subnet,
            not_after=history.dates.not_after(change.revision),
        )
        yield event_of_key if lease is None else _with_holder(event_of_key, lease)


def _with_holder(event: LeaseEvent, lease: Lease) -> LeaseEvent:
    attributes = lease.attributes
    return replace(
        event,
        public_ip=attributes.public_ip,
        host_name=attributes.host_name,
        owner=attributes.owner,
        backend_type=attributes.backend_type or "udp",
        is_reservation=not lease.has_ttl,
    )


def _is_new(record: Record, history: History) -> bool:
    """Return whether the first known value of a key is also the first value since the key was created."""
    return record.created == record.revision if record.created else history.begin == 1


def _event(before: Lease | None, after: Lease, *, is_new: bool) -> LeaseEventKind:
    if before is None:
        return ("acquired" if after.has_ttl else "reserved") if is_new else "written"
    old, new = before.attributes, after.attributes
    if (old.owner, old.public_ip) != (new.owner, new.public_ip) and (
        old.owner != new.owner or old.owner is None
    ):
        return "transferred"
    if before.has_ttl != after.has_ttl:
        return "expires" if after.has_ttl else "reserved"
    return "renewed" if old == new else "changed"


class ConfigVersion(Struct, frozen=True, kw_only=True):
    """One value of the network config; `text` is None for a deleted config. `not_after`: the same as in
    LeaseEvent.
    """

    revision: int
    text: str | None
    not_after: float | None = None


class ConfigHistory(Struct, frozen=True, kw_only=True):
    """The document of `config history`."""

    begin: int
    revision: int
    is_complete: bool
    versions: tuple[ConfigVersion, ...]


async def config_history(store: Store) -> ConfigHistory:
    """Return the values of the network config that the store still has, the oldest first.

    Raises:
        StoreError: the store does not respond.
    """
    history = await read_history(store, CONFIG)
    versions = []
    for change in history.changes:
        if change.key == CONFIG:  # other keys also begin with `config`
            text = change.record.value.decode(errors="replace") if isinstance(change, PutSeen) else None
            at = history.dates.not_after(change.revision)
            versions.append(ConfigVersion(revision=change.revision, text=text, not_after=at))
    return ConfigHistory(
        begin=history.begin,
        revision=history.revision,
        is_complete=history.is_complete,
        versions=tuple(versions),
    )


class HostDeviation(Struct, frozen=True, kw_only=True):
    """A running host whose lease differs from the network config. `differences`: one phrase for each
    difference.
    """

    subnet: AnyNetwork
    public_ip: AnyAddress
    host_name: str | None
    differences: tuple[str, ...]


class ConfigDifference(Struct, frozen=True, kw_only=True):
    """The document of `config diff`.

    Attributes:
        ok: True if there is no difference.
        difference: lines of the difference from the stored config to the given config; empty if no config was
            given.
        effects: effects of the given config on the running hosts.
        this_host: lines of the difference from the stored config to the config that flanneld on this host
            uses; None if flanneld does not respond.
        leases: number of compared leases.
        hosts: the running hosts whose lease differs from the stored config.
    """

    ok: bool
    difference: tuple[str, ...]
    effects: tuple[str, ...]
    this_host: tuple[str, ...] | None
    leases: int
    hosts: tuple[HostDeviation, ...]


async def stored_config(store: Store) -> tuple[str, list[Lease]]:
    """Return the stored network config and the leases.

    Raises:
        NotReadyError: the store contains no network config.
        StoreError: the store does not respond.
    """
    record = await store.get(CONFIG)
    if record is None:
        raise NotReadyError("there is no network config yet", hint="Write one: flannelctl config set FILE.")
    leases = [*filter(None, map(readable_lease, (await store.list(SUBNETS)).records))]
    return record.value.decode(errors="replace"), leases


def host_deviations(text: str, leases: Sequence[Lease]) -> tuple[HostDeviation, ...]:
    """Return the running hosts whose lease differs from the config, excluding unused reservations.

    Raises:
        ConfigError: the config is invalid.
    """
    config = parse_network_config(text)
    running = [lease for lease in leases if lease.has_ttl or lease.attributes.owner is not None]
    return tuple(
        HostDeviation(
            subnet=lease.subnet,
            public_ip=lease.attributes.public_ip,
            host_name=lease.attributes.host_name,
            differences=tuple(found),
        )
        for lease in running
        if (found := deviations_of(lease, config))
    )
