"""Leases that remain valid although the store does not deliver them.

A lease that disappeared remains valid for a grace period. A running owner writes the lease again in this
time, and no packet to that owner is lost. The last known leases are saved for a restart of this host while
its store is unreachable.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Iterator

from pyflannel.engine.condition import HostCondition
from pyflannel.engine.pacing import one_by_one, pause
from pyflannel.errors import WireError
from pyflannel.model.lease import LastKnown, Lease
from pyflannel.model.lease_protocol import Report, StoreAway, StoreBack
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.model.network_config import IpNetwork
from pyflannel.ports import Clock, Memory
from pyflannel.wire.lease_record import (
    KeptChange,
    format_last_known,
    kept_lease,
    parse_change,
    parse_last_known,
)

log = logging.getLogger(__name__)

GRACE_S = 2.0
"""Time in seconds for which a disappeared lease remains valid for the data path. A running owner needs
milliseconds to write its lease again."""

SILENCE_S = 20.0
"""Longest time in seconds that an owner needs to write its lease again if its store does not respond.

The owner detects the silent member after 10 s, a call takes up to 5 s, and the next attempt is up to 5 s
later.
"""

_TICK_S = 0.1
"""Shortest pause in seconds between two checks for ended grace periods. Thousands may end in succession."""


class LeaseGrace:
    """The leases that disappeared recently, until their grace period ends or their subnet is leased again.

    A subnet counts as leased again if another lease overlaps it. The grace period is SILENCE_S in the
    following two cases, and GRACE_S in all other cases:

    - The store is unreachable, or was unreachable within the last SILENCE_S.
    - Leases are renewed less than SILENCE_S before they expire. With so late a renewal, an owner may lose its
      lease before it detects that the store does not respond.

    `changed` is called when a grace period ended.

    Attributes:
        counted: the valid leases: the leases in the store, and the leases in their grace period.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None], *, renewal_margin_s: float) -> None:
        """Start without leases. Owners renew their leases `renewal_margin_s` before they expire."""
        self._clock = clock
        self._changed = changed
        self._grace_s = GRACE_S if renewal_margin_s >= SILENCE_S else SILENCE_S
        self._present: SubnetMap[Lease] = SubnetMap()
        self.counted: SubnetMap[Lease] = SubnetMap()
        self._vanished: dict[tuple[int, int], dict[IpNetwork, tuple[Lease, float]]] = {}
        self._has_vanished = asyncio.Event()
        self._outage_until = -math.inf

    def note_report(self, report: Report) -> None:
        """Record whether the store is reachable."""
        match report:
            case StoreAway():
                self._outage_until = math.inf
            case StoreBack():
                self._outage_until = self._clock.now() + SILENCE_S
            case _:
                pass

    def update(self, leases: LeaseSet) -> None:
        """Record the leases that disappeared or were added since the last set of leases."""
        now = self._clock.now()
        until = now + (SILENCE_S if now < self._outage_until else self._grace_s)
        added: list[tuple[IpNetwork, Lease]] = []
        for subnet, old, new in self._present.differences(leases.by_subnet):
            if new is not None:
                added.append((subnet, new))
            elif old is not None:
                self._vanished.setdefault(_size(subnet), {})[subnet] = old, until
                self._has_vanished.set()
        taken = [over for subnet, _ in added for over in self._overlapping(subnet)]
        self._drop(taken)
        self._present = leases.by_subnet
        if self._vanished:
            self.counted = self.counted.with_changes([*((over, None) for over in taken), *added])
        else:
            self.counted = self._present  # this way, one map is in memory instead of two

    @property
    def vanished(self) -> tuple[Lease, ...]:
        """The leases in their grace period."""
        return tuple(lease for group in self._vanished.values() for lease, _ in group.values())

    async def run(self) -> None:
        """Remove each lease at the end of its grace period, until cancelled."""
        while True:
            await self._has_vanished.wait()
            self._has_vanished.clear()
            while self._vanished:
                first = min(until for group in self._vanished.values() for _, until in group.values())
                # The grace period of a lease that disappears in the meantime may end sooner.
                await self._clock.sleep(min(max(first - self._clock.now(), _TICK_S), GRACE_S))
                self._expire()

    def _overlapping(self, subnet: IpNetwork) -> Iterator[IpNetwork]:
        """Yield the disappeared subnets that overlap a subnet, without searching all disappeared subnets."""
        for (version, length), group in self._vanished.items():
            if version != subnet.version:
                continue
            if length <= subnet.prefixlen:
                wide = subnet if length == subnet.prefixlen else subnet.supernet(new_prefix=length)
                if wide in group:
                    yield wide
            elif 1 << (length - subnet.prefixlen) <= len(group):
                yield from (part for part in subnet.subnets(new_prefix=length) if part in group)
            else:
                yield from (part for part in group if part.overlaps(subnet))

    def _drop(self, subnets: list[IpNetwork]) -> None:
        for subnet in subnets:
            group = self._vanished.get(_size(subnet), {})
            group.pop(subnet, None)
            if not group:
                self._vanished.pop(_size(subnet), None)

    def _expire(self) -> None:
        now = self._clock.now()
        over = [
            subnet
            for group in self._vanished.values()
            for subnet, (_, until) in group.items()
            if until <= now
        ]
        self._drop(over)
        if over and self._vanished:
            self.counted = self.counted.with_changes((subnet, None) for subnet in over)
        elif over:
            self.counted = self._present
        if over:
            self._changed()


def _size(subnet: IpNetwork) -> tuple[int, int]:
    return subnet.version, subnet.prefixlen


SAVE_PAUSE_S = 1.0
"""Shortest time in seconds between two writes, so that a thousand joining hosts cause only a few writes."""

RETRY_S = 10.0
"""Interval in seconds between attempts to write while the disk is full or read-only."""

SAVED_PER_S = 1000
"""Number of leases per second of delay before a write. At 15 µs per lease, writes then use 1 % of a core."""


class LastKnownLeases:
    """Saves the result of `current` soon after each change, and loads the last saved result.

    Up to a thousand leases are saved immediately. With more leases, the delay is longer.
    """

    def __init__(self, *, memory: Memory, clock: Clock, current: Callable[[], LastKnown | None]) -> None:
        self._memory = memory
        self._clock = clock
        self._current = current
        self._changed = asyncio.Event()
        self._is_urgent = asyncio.Event()
        self._saved: LastKnown | None = None

    def changed(self) -> None:
        """Record a change, so that the leases are saved soon."""
        self._changed.set()

    def backend_changed(self) -> None:
        """Record a change of the backend. The change is saved immediately, because flanneld must know the
        previous backend after a restart.
        """
        self._is_urgent.set()
        self._changed.set()

    async def run(self) -> None:
        """Save after changes until cancelled, and then once more. If nothing differs, nothing is written."""
        try:
            while True:
                await self._changed.wait()
                await self._clock.sleep(self._delay_s())
                self._changed.clear()
                saved = await self._save()
                if saved is not None:
                    pause_s = SAVE_PAUSE_S if saved else RETRY_S
                    await pause(self._clock, pause_s, until=self._is_urgent)
                    self._is_urgent.clear()
                if saved is False:
                    self._changed.set()
        finally:
            await self._save()

    def _delay_s(self) -> int:
        known = self._current()
        return 0 if known is None else len(known.leases) // SAVED_PER_S

    async def _save(self) -> bool | None:
        """Save the leases; return whether the leases were saved, or None if there was nothing to save."""
        known = self._current()
        if known is None:
            return None
        if self._saved is not None and _have_the_same_text(known, self._saved):
            self._saved = known
            return None
        if is_saved := await self._memory.save(format_last_known(known)):
            self._saved = known
        return is_saved

    async def load_change(self) -> KeptChange:
        """Return the saved configs of the previous run, for a change of the backend that is not complete."""
        content = await self._memory.load()
        return KeptChange() if content is None else parse_change(content)

    async def load(self) -> LastKnown | None:
        """Return the last saved leases, or None. An unreadable file is logged and counts as none."""
        text = await self._memory.load()
        if text is None:
            return None
        try:
            kept = parse_last_known(text)
        except WireError as error:
            log.warning("%s", error.in_full)
            return None
        leases = await one_by_one(kept_lease, kept.records)
        return LastKnown(
            config=kept.config,
            own=kept.own,
            leases=tuple(lease for lease in leases if lease is not None),
            previous=kept.previous,
            is_prepared=kept.is_prepared,
        )


def known_of(condition: HostCondition) -> LastKnown | None:
    """Return the config and leases to save for a start without a store; None while the known leases are
    stale.
    """
    held, text, inputs = condition.held, condition.config.text, condition.inputs
    if held is None or text is None or condition.store.is_stale:
        return None
    return LastKnown(
        config=text,
        own=held.lease,
        leases=tuple(condition.leases),
        previous=tuple(one.text for one in inputs.previous if one.text),
        is_prepared=inputs.is_prepared,
    )


def _have_the_same_text(known: LastKnown, other: LastKnown) -> bool:
    """Return whether both values are saved as the same text. A renewal does not change the text."""
    return (
        (known.config, known.previous, known.is_prepared) == (other.config, other.previous, other.is_prepared)
        and len(known.leases) == len(other.leases)
        and _has_the_same_text(known.own, other.own)
        and all(map(_has_the_same_text, known.leases, other.leases))
    )


def _has_the_same_text(lease: Lease, other: Lease) -> bool:
    return lease is other or (
        lease.subnet == other.subnet
        and lease.ipv6_subnet == other.ipv6_subnet
        and lease.attributes == other.attributes
    )
