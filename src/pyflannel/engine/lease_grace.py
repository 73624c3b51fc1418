"""Patience with leases that vanish: a living owner writes its lease again at once, and no packet is lost."""

import asyncio
import math
from collections.abc import Callable
from ipaddress import IPv4Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Report, StoreAway, StoreBack
from pyflannel.model.lease_set import LeaseSet, SubnetMap
from pyflannel.ports import Clock

LINGER_S = 2.0
"""How long a lease that vanished still counts for the data path: a living owner needs milliseconds."""

LINGER_AFTER_ABSENCE_S = 20.0
"""The same while the store is away and so long after it: its owner may not have found it again yet.

A silent member is noticed after 10 s, a call takes up to 5 s, and the next try is up to 5 s later.
"""


class Departures:
    """The leases that vanished a moment ago, until somebody holds their subnet, or a part of it, again.

    `changed` is called when one has been waited for in vain.

    Attributes:
        counted: the leases that count: those that there are, and those that are waited for.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._present: SubnetMap[Lease] = SubnetMap()
        self.counted: SubnetMap[Lease] = SubnetMap()
        self._gone: dict[IPv4Network, tuple[Lease, float]] = {}
        self._some_left = asyncio.Event()
        self._patient_until = -math.inf

    def hear(self, report: Report) -> None:
        """Note how the store is."""
        match report:
            case StoreAway():
                self._patient_until = math.inf
            case StoreBack():
                self._patient_until = self._clock.now() + LINGER_AFTER_ABSENCE_S
            case _:
                pass

    def see(self, leases: LeaseSet) -> None:
        """Note who left and who came since the last set."""
        now = self._clock.now()
        until = now + (LINGER_AFTER_ABSENCE_S if now < self._patient_until else LINGER_S)
        came: list[tuple[IPv4Network, Lease]] = []
        for subnet, old, new in self._present.differences(leases.by_subnet):
            if new is not None:
                came.append((subnet, new))
            elif old is not None:
                self._gone[subnet] = old, until
                self._some_left.set()
        taken = [over for subnet, _ in came for over in self._held_again(subnet)]
        self._present = leases.by_subnet
        if self._gone:
            self.counted = self.counted.with_changes([*((over, None) for over in taken), *came])
        else:
            self.counted = self._present  # one map in memory instead of two

    @property
    def lingering(self) -> tuple[Lease, ...]:
        """The leases that are waited for, as they were."""
        return tuple(lease for lease, _ in self._gone.values())

    async def run(self) -> None:
        """Forget each in time, until cancelled."""
        while True:
            await self._some_left.wait()
            self._some_left.clear()
            while self._gone:
                due_in_s = min(until for _, until in self._gone.values()) - self._clock.now()
                # What leaves meanwhile may be due sooner.
                await self._clock.sleep(min(due_in_s, LINGER_S))
                self._forget()

    def _held_again(self, subnet: IPv4Network) -> list[IPv4Network]:
        """Wait no longer for those whose subnet is this one, or has a part of it; return their subnets."""
        over = [
            other for other in self._gone if other.prefixlen != subnet.prefixlen and other.overlaps(subnet)
        ]
        if subnet in self._gone:
            over.append(subnet)
        for other in over:
            del self._gone[other]
        return over

    def _forget(self) -> None:
        now = self._clock.now()
        over = [subnet for subnet, (_, until) in self._gone.items() if until <= now]
        for subnet in over:
            del self._gone[subnet]
        if over and self._gone:
            self.counted = self.counted.with_changes((subnet, None) for subnet in over)
        elif over:
            self.counted = self._present
        if over:
            self._changed()
