"""Probes of the peers: their reachability while a web page shows it, and the MTU of the paths to them."""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from pyflannel.engine.condition import Inputs
from pyflannel.engine.pacing import pause
from pyflannel.engine.planner import Planner
from pyflannel.errors import TargetError
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.probe import Echo, EchoResult, PathMtu, ProbedPath, ProbedPaths
from pyflannel.model.status import Notice
from pyflannel.plan.backends import has_probed_paths, path_to
from pyflannel.plan.peers import subnet_of
from pyflannel.ports import Clock, SendEchoes

log = logging.getLogger(__name__)

ASKED_S = 10.0
"""Seconds for which probes continue after the last request for their results."""

ROUND_S = 1.0
"""Shortest interval in seconds between the starts of two rounds."""

PEERS_IN_A_SECOND = 500
"""Maximum number of peers that are probed per second, which costs 6 % of a core if none answers."""

PEERS_IN_A_ROUND = 1024
"""Maximum number of peers of one round. If there are more peers, each round probes the peers with the
oldest results."""

REFUSED_S = 10.0
"""Interval in seconds between attempts while the kernel refuses the probes."""

PERIOD_S = 3600.0
"""Interval in seconds between two probes of the MTU of a path."""

SILENT_S = 60.0
"""Interval in seconds for a peer that does not answer, or whose result changed or is incomplete. The peer may
have been starting, and routers limit their answers."""

PAUSE_S = 5.0
"""Pause in seconds between two rounds of probes of the MTU. A new peer is probed within twice this time."""

PATHS_IN_A_ROUND = 64
"""Maximum number of paths in one round: 10,000 new peers are probed within fourteen minutes."""

_ENTERED_AT_ONCE = 250
"""Number of peers that are scheduled before other tasks run, which takes about a millisecond."""

SMALLEST_MTUS: Mapping[Family, int] = {4: 552, 6: 1280}
"""Smallest MTU of a path that is used: the minimum of the kernel for IPv4 (net.ipv4.route.min_pmtu), and the
minimum of IPv6."""

_REPEATED = 3
"""Number of times that a large packet without an answer is sent again."""

_SMALL = 84
_SIZES = 16
"""Number of sizes that are tried at the same time. Three steps find the largest of 1,500 sizes."""


class PeerProbes:
    """The reachability of peers, for a web page that requests it repeatedly.

    Attributes:
        trouble: reason why no probes can be sent; None if probes are sent.
    """

    def __init__(self, send: SendEchoes, clock: Clock) -> None:
        self.trouble: Notice | None = None
        self._send = send
        self._clock = clock
        self._echoes: Mapping[IpNetwork, Echo] = {}
        self._results: dict[IpNetwork, EchoResult] = {}  # the oldest first
        self._asked = asyncio.Event()
        self._asked_at = -ASKED_S

    def ask(self, echoes: Mapping[IpNetwork, Echo]) -> Mapping[IpNetwork, EchoResult]:
        """Return the latest results for these peers, and probe them for the next ASKED_S.

        A peer without a result was not probed yet.
        """
        self._echoes = echoes
        self._asked_at = self._clock.now()
        self._asked.set()
        return {subnet: result for subnet, result in self._results.items() if subnet in echoes}

    async def run(self) -> None:
        """Probe while clients request the results, until cancelled."""
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
        """Probe the peers with the oldest results; return the number of these peers."""
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


class PathMtus:
    """The MTU of the path to each peer, probed after the peer joins and then hourly.

    The probes are echo requests that no router may fragment: first a small request through the tunnel. If the
    peer answers, a large request through the tunnel follows, and one request to the address of the peer on
    the underlay with the size of the largest tunnel packet. A router that cannot forward a request answers
    with its MTU. If the large request through the tunnel does not arrive, and does not arrive when it is sent
    again, further sizes are tried. If a peer does not answer the small request, its path is unknown, and
    nothing changes.

    Attributes:
        measured: the paths that carry only smaller packets than planned, by the subnet of the peer in the
            family.
        found: the MTU of each measured path, if a route can have this MTU.
    """

    def __init__(
        self,
        send: SendEchoes | None,
        clock: Clock,
        *,
        paths: Callable[[], ProbedPaths | None],
        changed: Callable[[], None],
    ) -> None:
        self.measured: Mapping[IpNetwork, PathMtu] = {}
        self.found: Mapping[IpNetwork, int] = {}
        self._send = send
        self._clock = clock
        self._paths = paths
        self._changed = changed
        self._due_s: dict[IpNetwork, float] = {}
        self._unsure: set[IpNetwork] = set()  # the large packet on the underlay had no answer
        self._planned: object = None
        self._may_differ = asyncio.Event()
        self._may_differ.set()

    def note_change(self) -> None:
        """Record that the peers, the backend or the underlay may have changed."""
        self._may_differ.set()

    async def run(self) -> None:
        """Probe the paths when they are due, until cancelled."""
        if self._send is None:
            return
        while True:
            paths = self._paths()
            if paths is not None:
                if self._may_differ.is_set():
                    self._may_differ.clear()
                    await self._enter(paths)
                await self._round(self._send, paths)
            next_s = min(self._due_s.values(), default=self._clock.now() + PERIOD_S) - self._clock.now()
            if next_s > 0 and not self._may_differ.is_set():
                await pause(self._clock, next_s, until=self._may_differ)
            await self._clock.sleep(PAUSE_S)

    async def _round(self, send: SendEchoes, paths: ProbedPaths) -> None:
        now = self._clock.now()
        some = [subnet for subnet, at in self._due_s.items() if at <= now][:PATHS_IN_A_ROUND]
        due = {subnet: path for subnet in some if (path := paths.path_to(subnet)) is not None}
        self._due_s |= dict.fromkeys(some - due.keys(), now + PERIOD_S)  # peers that have just left
        if due:
            await self._probe(send, due)

    async def _enter(self, paths: ProbedPaths) -> None:
        """Schedule new peers for now, and forget removed peers. If the planned MTU has changed, schedule all
        peers for now.

        The method lets other tasks run, because with ten thousand peers it takes 40 ms.
        """
        now, known = self._clock.now(), self._due_s if paths.planned == self._planned else {}
        self._planned = paths.planned
        due_s: dict[IpNetwork, float] = {}
        for subnet in paths.subnets():
            due_s[subnet] = known.get(subnet, now)
            if len(due_s) % _ENTERED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self._due_s = due_s
        self._unsure.intersection_update(due_s)
        self._publish({subnet: one for subnet, one in self.measured.items() if subnet in due_s})

    def _publish(self, measured: Mapping[IpNetwork, PathMtu]) -> None:
        if measured != self.measured:
            self.measured = measured
            self.found = {
                subnet: one.measured
                for subnet, one in measured.items()
                if one.measured >= SMALLEST_MTUS[subnet.version]
            }
            self._changed()

    async def _probe(self, send: SendEchoes, due: Mapping[IpNetwork, ProbedPath]) -> None:
        """Probe these paths, and publish the results."""
        found, searched = dict[IpNetwork, int](), dict[IpNetwork, tuple[int, int]]()
        try:
            reached = await self._reached(send, due)
            if not reached:
                return
            results = iter(await send([echo for path in reached.values() for echo in _large_probes(path)]))
            probed = [*zip(reached.items(), results, results, strict=True)]
            lost = [path for (_, path), large, _ in probed if large.state == "silent"]
            arrived = await self._arrived(send, lost)
            for (subnet, path), large, outer in probed:
                most = path.mtu if outer.mtu is None else path.inner(outer.mtu)
                is_unsure = outer.state == "silent" and subnet not in self._unsure
                self._due_s[subnet] = self._clock.now() + (self._again_s() if is_unsure else PERIOD_S)
                (self._unsure.add if is_unsure else self._unsure.discard)(subnet)
                if large.state == "reached" or path.end in arrived:
                    # Fragments arrive, so nothing is lost if no route can have an MTU as small as this.
                    found[subnet] = most if most >= SMALLEST_MTUS[subnet.version] else path.mtu
                else:
                    searched[subnet] = _SMALL, min(most + 1, path.mtu)
            found |= await self._search(send, due, searched)
        except TargetError as error:
            log.debug("Could not probe the MTU of paths: %s", error)
            self._due_s |= dict.fromkeys(due, self._clock.now() + PERIOD_S)
            return
        measured = dict(self.measured)
        for subnet, mtu in found.items():
            planned, before = due[subnet].mtu, self.measured.get(subnet)
            if mtu >= planned if before is None else (before.planned, before.measured) == (planned, mtu):
                continue
            self._due_s[subnet] = self._clock.now() + self._again_s()
            measured.pop(subnet, None)
            if mtu < planned:
                measured[subnet] = PathMtu(planned, mtu, self._clock.now())
            if mtu < SMALLEST_MTUS[subnet.version]:
                log.warning(
                    "Larger packets to a peer are lost: this MTU is too small for a route lease=%s mtu=%d",
                    subnet,
                    mtu,
                )
            else:
                log.info("Found the MTU of the path to a peer lease=%s mtu=%d", subnet, min(mtu, planned))
        self._publish(measured)

    async def _reached(
        self, send: SendEchoes, due: Mapping[IpNetwork, ProbedPath]
    ) -> Mapping[IpNetwork, ProbedPath]:
        """Return the paths whose peers answer a small request, and probe the other peers again later."""
        results = await send([Echo(destination=path.end, size=_SMALL) for path in due.values()])
        reached = {
            subnet: path
            for (subnet, path), result in zip(due.items(), results, strict=True)
            if result.state == "reached"
        }
        self._due_s |= dict.fromkeys(due.keys() - reached.keys(), self._clock.now() + self._again_s())
        return reached

    async def _arrived(self, send: SendEchoes, paths: Sequence[ProbedPath]) -> set[IpAddress]:
        """Return the ends of the paths that carry a large packet if it is sent again.

        A queue may drop packets of any size, which says nothing about the MTU of a path.
        """
        echoes = [Echo(destination=path.end, size=path.mtu) for path in paths for _ in range(_REPEATED)]
        results = await send(echoes) if echoes else []
        return {
            echo.destination
            for echo, result in zip(echoes, results, strict=True)
            if result.state == "reached"
        }

    def _again_s(self) -> float:
        """Return the time until a peer is probed again. This time is longer in a large network, where many
        hosts may be off.
        """
        return min(PERIOD_S, max(SILENT_S, len(self._due_s) * SILENT_S / 1000))

    async def _search(
        self,
        send: SendEchoes,
        paths: Mapping[IpNetwork, ProbedPath],
        ranges: dict[IpNetwork, tuple[int, int]],
    ) -> dict[IpNetwork, int]:
        """Return the largest size that arrives, between a size that arrives and a size that does not
        arrive.
        """
        while True:
            echoes = {
                (subnet, size): Echo(destination=paths[subnet].end, size=size)
                for subnet, (low, high) in ranges.items()
                for size in range(low + 1, high, max(1, (high - low) // _SIZES))
            }
            if not echoes:
                return {subnet: low for subnet, (low, _) in ranges.items()}
            results = dict(zip(echoes, await send([*echoes.values()]), strict=True))
            for subnet, (low, high) in ranges.items():
                arrived = [
                    size
                    for (one, size), result in results.items()
                    if one == subnet and result.state == "reached"
                ]
                reached = max(arrived, default=low)
                missed = [size for one, size in results if one == subnet and size > reached]
                ranges[subnet] = reached, min(missed, default=high)


def _large_probes(path: ProbedPath) -> Iterator[Echo]:
    """Yield the probes of a path with the size of the plan: through the tunnel, and on the underlay."""
    yield Echo(destination=path.end, size=path.mtu)
    yield Echo(destination=path.underlay, size=path.outer)


def paths_of(planner: Planner, inputs: Inputs) -> ProbedPaths | None:
    """Return the paths to the planned peers; None without a data path."""
    backend, config = inputs.backend, inputs.config
    if backend is None or config is None or not has_probed_paths(backend):
        return None
    hosts = {
        family: host
        for family in config.families
        if family in backend.families and (host := planner.host(inputs, family)) is not None
    }

    def subnets() -> Iterator[IpNetwork]:
        return (subnet_of(peer, family) for family in hosts for peer in planner.planned_peers(family))

    def path(subnet: IpNetwork) -> ProbedPath | None:
        host, peer = hosts.get(subnet.version), planner.planned_peer(subnet)
        return None if host is None or peer is None else path_to(backend, host, peer)

    planned = backend.lease_type, [(family, backend.mtu(host)) for family, host in hosts.items()]
    return ProbedPaths(planned, subnets, path)
