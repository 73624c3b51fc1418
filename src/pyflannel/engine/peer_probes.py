"""Probes of the peers while a page shows them. Without a page, nothing is sent."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Network

from pyflannel.errors import TargetError
from pyflannel.model.probe import Echo, EchoResult
from pyflannel.model.status import Notice
from pyflannel.ports import Clock

ASKED_S = 10.0
"""Time for which probes continue after the last request for their results."""

ROUND_S = 1.0
"""Shortest interval between the starts of two rounds."""

PEERS_IN_A_SECOND = 500
"""Maximum number of peers that are probed per second, which costs 6 % of a core if none answers."""

PEERS_IN_A_ROUND = 1024
"""Maximum number of peers of one round. If there are more, rounds take turns: the peers with the oldest
result first."""

REFUSED_S = 10.0
"""Interval between attempts while the kernel refuses the probes."""

Send = Callable[[Sequence[Echo]], Awaitable[list[EchoResult]]]
"""Sends echo requests and returns their results, in a bounded time. It may raise TargetError."""


class PeerProbes:
    """The reachability of peers, for a page that requests it repeatedly.

    Attributes:
        trouble: why no probe can be sent; None if they are sent.
    """

    def __init__(self, send: Send, clock: Clock) -> None:
        self.trouble: Notice | None = None
        self._send = send
        self._clock = clock
        self._echoes: Mapping[IPv4Network, Echo] = {}
        self._results: dict[IPv4Network, EchoResult] = {}  # the oldest first
        self._asked = asyncio.Event()
        self._asked_at = -ASKED_S

    def ask(self, echoes: Mapping[IPv4Network, Echo]) -> Mapping[IPv4Network, EchoResult]:
        """Return the latest results for these peers, and probe them for the next ASKED_S.

        A peer without a result was not probed yet.
        """
        self._echoes = echoes
        self._asked_at = self._clock.now()
        self._asked.set()
        return {subnet: result for subnet, result in self._results.items() if subnet in echoes}

    async def run(self) -> None:
        """Probe while the results are asked for, until cancelled."""
        while True:
            await self._asked.wait()
            started = self._clock.now()
            count = await self._round()
            rest_s = REFUSED_S if self.trouble else max(ROUND_S, count / PEERS_IN_A_SECOND)
            await self._clock.sleep(started + rest_s - self._clock.now())
            if self._clock.now() - self._asked_at >= ASKED_S:
                self._asked.clear()
                self._results.clear()

    async def _round(self) -> int:
        """Probe the peers with the oldest results; return their number."""
        echoes = dict(self._echoes)
        for subnet in self._results.keys() - echoes.keys():
            del self._results[subnet]
        unprobed = [subnet for subnet in echoes if subnet not in self._results]
        subnets = [*unprobed, *self._results][:PEERS_IN_A_ROUND]
        try:
            results = await self._send([echoes[subnet] for subnet in subnets])
        except TargetError as error:
            self.trouble = Notice(str(error), error.hint)
            self._results.clear()
            return 0
        self.trouble = None
        for subnet, result in zip(subnets, results, strict=True):
            self._results.pop(subnet, None)
            self._results[subnet] = result
        return len(subnets)
