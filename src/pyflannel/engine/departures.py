"""Patience with leases that vanish: a living owner writes its lease again at once, and no packet is lost."""

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import IPv4Network

from pyflannel.model.lease import Lease
from pyflannel.model.lease_set import LeaseSet
from pyflannel.ports.clock import Clock

LINGER_S = 2.0
"""How long a lease that vanished still counts for the data path: a living owner needs milliseconds."""


class Departures:
    """The leases that vanished within the last LINGER_S, until somebody holds their subnet again.

    `changed` is called when one has been waited for in vain.
    """

    def __init__(self, clock: Clock, changed: Callable[[], None]) -> None:
        self._clock = clock
        self._changed = changed
        self._present: Mapping[IPv4Network, Lease] = {}
        self._gone: dict[IPv4Network, tuple[Lease, float]] = {}
        self._some_left = asyncio.Event()

    def see(self, leases: LeaseSet) -> None:
        """Note who left and who came since the last set."""
        until = self._clock.now() + LINGER_S
        for subnet, lease in self._present.items():
            if subnet not in leases.by_subnet:
                self._gone[subnet] = lease, until
                self._some_left.set()
        for subnet in self._gone.keys() & leases.by_subnet.keys():
            del self._gone[subnet]
        self._present = leases.by_subnet

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
                await self._clock.sleep(min(until for _, until in self._gone.values()) - self._clock.now())
                self._forget()

    def _forget(self) -> None:
        now = self._clock.now()
        over = [subnet for subnet, (_, until) in self._gone.items() if until <= now]
        for subnet in over:
            del self._gone[subnet]
        if over:
            self._changed()
