"""The live view of one host: the state of flanneld, and the peers with round-trip times, loss and rates.

The state is read from the control socket. This process itself probes the peers, like the web page.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

from msgspec import Struct
from msgspec.structs import replace

from pyflannel.assembly.directories import Places
from pyflannel.commands.local_daemon import last_known_leases, offline_status, what_to_do
from pyflannel.commands.network_client import ControlClient
from pyflannel.commands.peer_traffic import received_bytes
from pyflannel.commands.reach import decisive_echoes
from pyflannel.engine.peer_probes import PeerProbes
from pyflannel.errors import FlannelError, NotReadyError
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.kernel.network.echo import send_echoes
from pyflannel.model.lease import LeaseEntry, PeerEntry
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.probe import Echo, EchoResult, milliseconds
from pyflannel.model.status import JournalEntry, Notice, Status, peer_entries
from pyflannel.plan.peers import place_of_subnet
from pyflannel.ports import Clock, SendEchoes

LOOK_S, PEERS_IN_A_SECOND = 1.0, 2000
"""Pause in seconds between two requests to flanneld; and the number of peers that makes the pause one second
longer, up to LONGEST_LOOK_S."""

LONGEST_LOOK_S = 5.0

RATES_KEPT = 60
"""Number of rates of the whole host that are kept."""

ROUNDS_KEPT = 30
"""The loss of a peer is computed from this number of its latest probes."""


class LivePeer(Struct, frozen=True, kw_only=True):
    """A peer at one moment.

    Attributes:
        loss: fraction of the latest requests without a reply, from 0 to 1; None if the peer was not probed.
        received: bytes per second from the peer; None if they are not counted.
        sent: bytes per second to the peer; None if they are not counted.
    """

    entry: PeerEntry
    loss: float | None = None
    received: float | None = None
    sent: float | None = None


class Rates(Struct, frozen=True):
    """Bytes per second of the whole host in each direction."""

    received: float
    sent: float


class Moment(Struct, frozen=True, kw_only=True):
    """A host at one moment.

    Attributes:
        status: status of flanneld; while it does not respond, the status from its files.
        peers: the peers in the order of their subnets; while flanneld does not respond, the last known peers.
        events: the events of the passes, with the latest event last.
        rates: rates of the whole host, with the latest rate last; empty if the backend counts no bytes.
        trouble: the reason why flanneld does not respond, and the remedy; None if it responds.
        silent_s: seconds since the last response of flanneld; None if flanneld responds, or has not responded
            yet.
        probe_trouble: the reason why peers are not probed; None if they are probed.
    """

    status: Status
    peers: tuple[LivePeer, ...] = ()
    events: tuple[JournalEntry, ...] = ()
    rates: tuple[Rates, ...] = ()
    trouble: Notice | None = None
    silent_s: float | None = None
    probe_trouble: Notice | None = None


class Answers(Protocol):
    """The answers that a daemon gives on its control socket, read by
    `commands.network_client.ControlClient`.
    """

    async def status(self) -> Status:
        """Return the status of the daemon."""

    async def leases(self) -> list[LeaseEntry]:
        """Return the leases that the daemon knows."""

    async def events(self) -> list[JournalEntry]:
        """Return the events of the passes, with the latest event last."""


CountPeers = Callable[[Status, Sequence[PeerEntry]], Awaitable[Mapping[IpNetwork, int]]]
"""A function that returns the bytes from each peer that the kernel of this host counts, by the subnet of the
peer."""


class LiveView:
    """Follows one daemon, even while it does not respond, and passes a `Moment` to `show` at each change."""

    def __init__(
        self,
        daemon: Answers,
        places: Places,
        send: SendEchoes,
        count: CountPeers,
        clock: Clock,
        show: Callable[[Moment], object],
    ) -> None:
        """Follow `daemon`, whose files are at `places`. Probe its peers by `send`, and read their counters by
        `count`.
        """
        self._daemon = daemon
        self._places = places
        self._count = count
        self._clock = clock
        self._show = show
        self._losses = _Losses(send)
        self._probes = PeerProbes(self._losses.send, clock)
        self._traffic = _Traffic()
        self._known: tuple[Status, list[LeaseEntry], list[JournalEntry]] | None = None
        self._answered_at: float | None = None

    async def run(self) -> None:
        """Show a `Moment` about every second, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._probes.run(), name="probes of peers")
            tasks.create_task(self._look_repeatedly(), name="requests to flanneld")

    async def _look_repeatedly(self) -> None:
        while True:
            moment = await self._look()
            self._show(moment)
            await self._clock.sleep(min(LONGEST_LOOK_S, LOOK_S + len(moment.peers) // PEERS_IN_A_SECOND))

    async def _look(self) -> Moment:
        try:
            status = await self._daemon.status()
            leases, events = await self._daemon.leases(), await self._daemon.events()
        except FlannelError as error:
            return await self._without_answer(error)
        self._known = status, leases, events
        entries = peer_entries(status, leases)
        received = await self._count(status, entries)
        self._answered_at = self._clock.now()
        self._traffic.add(self._answered_at, status, received)
        return self._moment(status, entries, decisive_echoes(status, leases), events)

    async def _without_answer(self, error: FlannelError) -> Moment:
        """Return a `Moment` from the files of flanneld, with the peers of its last answer, if any."""
        offline = await offline_status(self._places, str(error))
        self._traffic.interrupt()
        if self._known is None:
            self._known = offline, last_known_leases(self._places), []
        hint = error.hint
        if isinstance(error, NotReadyError):
            hint = what_to_do(self._places, offline, error)
        status, leases, events = self._known
        return replace(
            self._moment(offline, peer_entries(status, leases), decisive_echoes(status, leases), events),
            trouble=Notice(str(error), hint),
            silent_s=None if self._answered_at is None else self._clock.now() - self._answered_at,
        )

    def _moment(
        self,
        shown: Status,
        entries: Sequence[PeerEntry],
        echoes: Mapping[IpNetwork, Echo],
        events: Sequence[JournalEntry],
    ) -> Moment:
        """Return a `Moment` with these peers, and repeat the probes `echoes`."""
        self._losses.keep({echo.destination for echo in echoes.values()})
        results = self._probes.ask(echoes)
        return Moment(
            status=shown,
            peers=tuple(
                self._peer(entry, echoes.get(entry.subnet), results.get(entry.subnet))
                for entry in sorted(entries, key=lambda entry: place_of_subnet(entry.subnet))
            ),
            events=tuple(events),
            rates=self._traffic.rates,
            probe_trouble=self._probes.trouble,
        )

    def _peer(self, entry: PeerEntry, echo: Echo | None, result: EchoResult | None) -> LivePeer:
        loss = None
        if echo is not None and result is not None:
            entry = replace(entry, is_reached=result.state == "reached", rtt_ms=milliseconds(result))
            loss = self._losses.of(echo.destination)
        of_peers = self._traffic.of_peers
        return LivePeer(
            entry=entry,
            loss=loss,
            received=of_peers.get((entry.subnet, "received")),
            sent=of_peers.get((entry.subnet, "sent")),
        )


def live_view(socket: Path, places: Places, show: Callable[[Moment], object]) -> LiveView:
    """Return the view of the daemon at a control socket. The peers of the host are probed by ICMP echo."""
    count = partial(received_bytes, replace(places, run_dir=socket.parent))
    return LiveView(ControlClient(socket), places, send_echoes, count, BoottimeClock(), show)


class _Losses:
    """Sends probes, and counts their requests and replies."""

    def __init__(self, send: SendEchoes) -> None:
        self._send = send
        self._counted: dict[IpAddress, deque[tuple[int, int]]] = {}

    async def send(self, echoes: Sequence[Echo]) -> list[EchoResult]:
        results = await self._send(echoes)
        for echo, result in zip(echoes, results, strict=True):
            counted = self._counted.setdefault(echo.destination, deque(maxlen=ROUNDS_KEPT))
            counted.append((result.attempts, result.state == "reached"))
        return results

    def of(self, destination: IpAddress) -> float | None:
        """Return the fraction of the requests without a reply; None if no request was sent."""
        counted = self._counted.get(destination)
        if not counted:
            return None
        return 1 - sum(replies for _, replies in counted) / sum(requests for requests, _ in counted)

    def keep(self, destinations: set[IpAddress]) -> None:
        """Forget the counts of all destinations except the given destinations."""
        for other in self._counted.keys() - destinations:
            del self._counted[other]


_Direction = Literal["received", "sent"]


class _Traffic:
    """Computes rates from counters of bytes. A counter that became smaller was reset and gives no rate.

    Attributes:
        rates: rates of the whole host, with the latest rate last.
        of_peers: bytes per second from or to each peer, if they are counted.
    """

    def __init__(self) -> None:
        self.rates: tuple[Rates, ...] = ()
        self.of_peers: Mapping[tuple[IpNetwork, _Direction], float] = {}
        self._before: tuple[float, Status, Mapping[tuple[IpNetwork, _Direction], int]] | None = None

    def add(self, now: float, status: Status, received: Mapping[IpNetwork, int]) -> None:
        """Compute the rates since the previous status. `now`: seconds of a monotonic clock. `received`: the
        bytes from each peer that the kernel counts, without those of WireGuard.
        """
        counters = _counters(status, received)
        before, self._before = self._before, (now, status, counters)
        if before is None or now <= before[0]:
            return
        passed_s = now - before[0]
        self.of_peers = {
            name: (size - old) / passed_s
            for name, size in counters.items()
            if (old := before[2].get(name)) is not None and size >= old
        }
        whole = _rates(before[1], status, passed_s)
        self.rates = (*self.rates, whole)[-RATES_KEPT:] if whole is not None else ()

    def interrupt(self) -> None:
        """Forget the rates, because they are unknown now. The next rate covers the interruption."""
        self.rates, self.of_peers = (), {}


def _counters(status: Status, received: Mapping[IpNetwork, int]) -> dict[tuple[IpNetwork, _Direction], int]:
    """Return the counted bytes of each peer."""
    counters: dict[tuple[IpNetwork, _Direction], int] = {
        (subnet, "received"): size for subnet, size in received.items()
    }
    for peer in status.wireguard.peers if status.wireguard is not None else ():
        counters |= {(peer.subnet, "received"): peer.received, (peer.subnet, "sent"): peer.sent}
    return counters


def _rates(before: Status, now: Status, passed_s: float) -> Rates | None:
    """Return the rates of the whole host; None if its bytes are not counted."""
    old, new = before.backend, now.backend
    if old is None or old.received is None or old.sent is None:
        return None
    if new is None or new.received is None or new.sent is None:
        return None
    if new.received < old.received or new.sent < old.sent:
        return None
    return Rates((new.received - old.received) / passed_s, (new.sent - old.sent) / passed_s)
