"""Grace period of vanished leases: a living owner writes its lease again, and no packet to it is lost."""

import asyncio
import math
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Report, StoreAway, StoreBack
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.ports import Clock

GRACE_S = 2.0
"""How long a lease that vanished still counts for the data path: a living owner needs milliseconds."""

SILENCE_S = 20.0
"""How long an owner that the store does not answer may need to write its lease again.

A silent member is noticed after 10 s, a call takes up to 5 s, and the next try is up to 5 s later.
"""

_TICK_S = 0.1
"""Shortest pause between two looks for grace periods that ended: thousands may end one by one."""


class LeaseGrace:
    """The leases that vanished a moment ago, until their grace period ends, or their subnet is held again.

    A subnet that another host holds in part counts as held again. The grace period is SILENCE_S while the
    store is unreachable and for so long after it. It is SILENCE_S, too, where leases are renewed less than
    that before they end: an owner may lose its lease before it has noticed that the store is silent. It is
    GRACE_S otherwise.

    `changed` is called when a grace period ended.

    Attributes:
        counted: the leases that count: those in the store, and those in their grace period.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None], *, renewal_margin_s: float) -> None:
        """Begin without a lease; owners renew theirs `renewal_margin_s` before they end."""
        self._clock = clock
        self._changed = changed
        self._grace_s = GRACE_S if renewal_margin_s >= SILENCE_S else SILENCE_S
        self._present: SubnetMap[Lease] = SubnetMap()
        self.counted: SubnetMap[Lease] = SubnetMap()
        self._vanished: dict[int, dict[IPv4Network, tuple[Lease, float]]] = {}
        self._has_vanished = asyncio.Event()
        self._outage_until = -math.inf

    def hear(self, report: Report) -> None:
        """Note whether the store is reachable."""
        match report:
            case StoreAway():
                self._outage_until = math.inf
            case StoreBack():
                self._outage_until = self._clock.now() + SILENCE_S
            case _:
                pass

    def see(self, leases: LeaseSet) -> None:
        """Note which leases vanished and which came since the last set."""
        now = self._clock.now()
        until = now + (SILENCE_S if now < self._outage_until else self._grace_s)
        came: list[tuple[IPv4Network, Lease]] = []
        for subnet, old, new in self._present.differences(leases.by_subnet):
            if new is not None:
                came.append((subnet, new))
            elif old is not None:
                self._vanished.setdefault(subnet.prefixlen, {})[subnet] = old, until
                self._has_vanished.set()
        taken = [over for subnet, _ in came for over in self._overlapping(subnet)]
        self._drop(taken)
        self._present = leases.by_subnet
        if self._vanished:
            self.counted = self.counted.with_changes([*((over, None) for over in taken), *came])
        else:
            self.counted = self._present  # one map in memory instead of two

    @property
    def vanished(self) -> tuple[Lease, ...]:
        """The leases in their grace period, as they were."""
        return tuple(lease for group in self._vanished.values() for lease, _ in group.values())

    async def run(self) -> None:
        """End each grace period in time, until cancelled."""
        while True:
            await self._has_vanished.wait()
            self._has_vanished.clear()
            while self._vanished:
                first = min(until for group in self._vanished.values() for _, until in group.values())
                # The grace period of a lease that vanishes meanwhile may end sooner.
                await self._clock.sleep(min(max(first - self._clock.now(), _TICK_S), GRACE_S))
                self._expire()

    def _overlapping(self, subnet: IPv4Network) -> Iterator[IPv4Network]:
        """Yield the vanished subnets that overlap a subnet, without a search among all."""
        for length, group in self._vanished.items():
            if length <= subnet.prefixlen:
                wide = subnet if length == subnet.prefixlen else subnet.supernet(new_prefix=length)
                if wide in group:
                    yield wide
            elif 1 << (length - subnet.prefixlen) <= len(group):
                yield from (part for part in subnet.subnets(new_prefix=length) if part in group)
            else:
                yield from (part for part in group if part.subnet_of(subnet))

    def _drop(self, subnets: list[IPv4Network]) -> None:
        for subnet in subnets:
            group = self._vanished.get(subnet.prefixlen, {})
            group.pop(subnet, None)
            if not group:
                self._vanished.pop(subnet.prefixlen, None)

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
