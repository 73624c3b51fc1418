"""Peers are probed while a page asks, in rounds of bounded size. The MTU of paths is probed hourly."""

import asyncio
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest

from doubles.fake_clock import FakeClock
from pyflannel.engine.peer_probes import (
    ASKED_S,
    PATHS_IN_A_ROUND,
    PAUSE_S,
    PEERS_IN_A_ROUND,
    PEERS_IN_A_SECOND,
    PERIOD_S,
    REFUSED_S,
    SILENT_S,
    PathMtus,
    PeerProbes,
)
from pyflannel.errors import TargetError
from pyflannel.model.network_config import Family, IpAddress, IpNetwork
from pyflannel.model.probe import SILENT, Echo, EchoResult, PathMtu, ProbedPath, ProbedPaths

REACHED = EchoResult(state="reached", rtt_s=0.001)


def echoes(count: int) -> dict[IPv4Network, Echo]:
    subnets = list(IPv4Network("10.0.0.0/8").subnets(new_prefix=24))[:count]
    return {subnet: Echo(destination=subnet.network_address) for subnet in subnets}


class Wire:
    """Records the rounds. Each host answers, except those that a test made silent."""

    def __init__(self) -> None:
        self.rounds: list[list[Echo]] = []
        self.silent: set[Echo] = set()
        self.refuses = False

    async def send(self, some: Sequence[Echo]) -> list[EchoResult]:
        self.rounds.append(list(some))
        if self.refuses:
            raise TargetError("cannot send ICMP echo requests", hint="Run as root.")
        return [SILENT if one in self.silent else REACHED for one in some]


def test_nothing_is_sent_before_a_request_and_after_the_last_request() -> None:
    async def life() -> list[int]:
        clock, wire = FakeClock(), Wire()
        probes, counts = PeerProbes(wire.send, clock), []
        async with clock.running(probes.run()):
            await clock.advance(3600)
            counts.append(len(wire.rounds))
            probes.ask(echoes(3))
            await clock.advance(ASKED_S)
            counts.append(len(wire.rounds))
            await clock.advance(3600)
            counts.append(len(wire.rounds))
            assert probes.ask(echoes(3)) == {}  # old results are not shown as current
        return counts

    assert asyncio.run(life()) == [0, 10, 10]


def test_a_peer_that_stops_answering_is_silent_after_one_round() -> None:
    async def life() -> None:
        clock, wire, asked = FakeClock(), Wire(), echoes(5)
        probes = PeerProbes(wire.send, clock)
        async with clock.running(probes.run()):
            probes.ask(asked)
            await clock.settle()
            assert set(probes.ask(asked).values()) == {REACHED}
            cut = next(iter(asked))
            wire.silent = {asked[cut]}
            await clock.advance(1.0)
            assert [subnet for subnet, one in probes.ask(asked).items() if one == SILENT] == [cut]
            wire.silent = set()
            await clock.advance(1.0)
            assert set(probes.ask(asked).values()) == {REACHED}

    asyncio.run(life())


def test_rounds_take_turns_and_keep_the_rate() -> None:
    """Of 3,000 peers, each is probed once before any is probed again."""

    async def life() -> list[list[Echo]]:
        clock, wire, asked = FakeClock(), Wire(), echoes(3000)
        probes = PeerProbes(wire.send, clock)
        async with clock.running(probes.run()):
            probes.ask(asked)
            await clock.advance(6.0)
            assert len(probes.ask(asked)) == 3000
        return wire.rounds

    rounds = asyncio.run(life())

    assert max(map(len, rounds)) == PEERS_IN_A_ROUND
    assert len({one for some in rounds[:3] for one in some}) == 3000
    assert sum(map(len, rounds)) <= PEERS_IN_A_SECOND * 6 + PEERS_IN_A_ROUND


def test_a_host_that_left_has_no_result() -> None:
    async def life() -> None:
        clock, wire = FakeClock(), Wire()
        probes = PeerProbes(wire.send, clock)
        async with clock.running(probes.run()):
            probes.ask(echoes(5))
            await clock.settle()
            assert len(probes.ask(echoes(4))) == 4
            await clock.advance(1.0)
            assert len(wire.rounds[-1]) == 4

    asyncio.run(life())


def test_a_refusal_of_the_kernel_is_reported_and_tried_again() -> None:
    async def life() -> None:
        clock, wire = FakeClock(), Wire()
        probes = PeerProbes(wire.send, clock)
        async with clock.running(probes.run()):
            wire.refuses = True
            probes.ask(echoes(1))
            await clock.settle()
            assert str(probes.trouble) == "cannot send ICMP echo requests. Run as root."
            wire.refuses = False
            probes.ask(echoes(1))
            await clock.advance(REFUSED_S - 1)
            probes.ask(echoes(1))
            await clock.advance(1)
            assert (probes.trouble, len(wire.rounds)) == (None, 2)

    asyncio.run(life())


UNDERLAYS: dict[Family, IpAddress] = {4: IPv4Address("192.0.2.1"), 6: IPv6Address("2001:db8::1")}
MTU, OVERHEAD = 1450, 50


@dataclass
class Underlay:
    """Paths with a maximum size of packets. A router may answer a larger packet with an error."""

    carried: dict[IpAddress, int] = field(default_factory=dict)
    router_mtu: int | None = None
    is_mute: bool = False
    losses: int = 0
    """Number of large packets through the tunnel that are lost before each one that arrives."""
    lost: int = 0
    down: set[IpAddress] = field(default_factory=set)
    sent: list[Echo] = field(default_factory=list)

    async def send(self, some: Sequence[Echo]) -> list[EchoResult]:
        self.sent += some
        return [self._result(echo) for echo in some]

    def _result(self, echo: Echo) -> EchoResult:
        if echo.destination in UNDERLAYS.values():
            if self.is_mute:
                return SILENT
            if self.router_mtu is not None and echo.size > self.router_mtu:
                return EchoResult(state="rejected", mtu=self.router_mtu)
            return REACHED
        if echo.destination in self.down or echo.size > self.carried.get(echo.destination, MTU):
            return SILENT
        if echo.size > MTU // 2 and self.lost < self.losses:
            self.lost += 1
            return SILENT
        self.lost = 0
        return REACHED


class Paths:
    """The MTUs of the paths from a host to some peers, and these peers."""

    def __init__(self, underlay: Underlay, count: int = 3) -> None:
        self.subnets: list[IpNetwork] = list(echoes(count))
        self.padding = 1
        self.underlay, self.clock, self.changes = underlay, FakeClock(), 0
        self.mtu = MTU
        self.mtus = PathMtus(underlay.send, self.clock, paths=self.paths, changed=self._changed)
        self._runner = asyncio.Runner()  # the events of `mtus` belong to one loop
        weakref.finalize(self, self._runner.close)

    def paths(self) -> ProbedPaths:
        return ProbedPaths(self.mtu, lambda: iter(self.subnets), self.path_to)

    def path_to(self, subnet: IpNetwork) -> ProbedPath | None:
        if subnet not in self.subnets:
            return None
        return ProbedPath(
            end=subnet.network_address,
            underlay=UNDERLAYS[subnet.version],
            mtu=self.mtu - (20 if subnet.version == 6 else 0),
            overhead=OVERHEAD + (20 if subnet.version == 6 else 0),
            padding=self.padding,
        )

    def _changed(self) -> None:
        self.changes += 1

    def after(self, seconds: float) -> dict[IpNetwork, int]:
        """Return the MTUs after this time."""

        async def life() -> None:
            async with self.clock.running(self.mtus.run()):
                await self.clock.advance(seconds)

        self._runner.run(life())
        return dict(self.mtus.found)


class TestPathMtus:
    def test_a_path_that_drops_large_packets_silently_has_the_largest_size_that_arrives(self) -> None:
        host = Paths(Underlay())
        for mtu in (1349, 1449, 577):
            host.underlay.carried[host.subnets[1].network_address] = mtu
            host.mtus.note_change()

            assert host.after(PERIOD_S + 10 * PAUSE_S) == {host.subnets[1]: mtu}

    def test_a_path_that_loses_some_large_packets_keeps_its_mtu(self) -> None:
        """A queue may drop packets of any size, and a smaller MTU does not help."""
        host = Paths(Underlay(losses=2))

        assert host.after(PERIOD_S) == {}
        assert host.changes == 0

    def test_the_answer_of_a_router_counts_although_fragments_arrive(self) -> None:
        host = Paths(Underlay(router_mtu=1400))

        assert host.after(1.0) == dict.fromkeys(host.subnets, 1350)

    def test_the_path_of_ipv6_has_its_own_mtu(self) -> None:
        """A router answers with the MTU of both tunnels, and the tunnel over IPv6 has a longer header."""
        host = Paths(Underlay(router_mtu=1400), count=1)
        subnet = IPv6Network("fd00:0:0:1::/64")
        host.subnets.append(subnet)

        assert host.after(1.0) == {host.subnets[0]: 1350, subnet: 1330}
        assert host.after(PERIOD_S) == {host.subnets[0]: 1350, subnet: 1330}
        host.underlay.router_mtu = None
        host.underlay.carried[subnet.network_address] = 1301
        assert host.after(PERIOD_S) == {subnet: 1301}

    def test_a_tunnel_that_pads_packets_leaves_room_for_the_padding(self) -> None:
        host = Paths(Underlay(router_mtu=1400), count=1)
        host.padding = 16

        assert host.after(1.0) == {host.subnets[0]: 1344}

    def test_no_mtu_below_that_of_ipv6_is_used(self) -> None:
        host = Paths(Underlay(router_mtu=1340), count=0)
        host.subnets = [IPv6Network("fd00:0:0:1::/64")]

        assert host.after(1.0) == {}

    def test_a_path_without_a_limit_is_probed_hourly_and_changes_nothing(self) -> None:
        host = Paths(Underlay(), count=1)

        assert host.after(1.0) == {}
        assert [echo.size for echo in host.underlay.sent] == [84, MTU, MTU + OVERHEAD]
        assert host.after(PERIOD_S - 2.0) == {}
        assert len(host.underlay.sent) == 3
        host.underlay.router_mtu = 1300
        assert host.after(2 * PAUSE_S) == {host.subnets[0]: 1250}
        host.underlay.router_mtu = None
        assert host.after(SILENT_S + PAUSE_S) == {}  # a changed result is confirmed soon
        assert host.changes == 2

    def test_a_silent_peer_keeps_its_result_and_is_probed_again_soon(self) -> None:
        host = Paths(Underlay(router_mtu=1400), count=1)
        host.underlay.down = {host.subnets[0].network_address}

        assert host.after(1.0) == {}
        host.underlay.down.clear()
        assert host.after(SILENT_S + PAUSE_S) == {host.subnets[0]: 1350}
        host.underlay.down = {host.subnets[0].network_address}
        assert host.after(PERIOD_S + PAUSE_S) == {host.subnets[0]: 1350}

    def test_a_silent_peer_receives_only_small_probes(self) -> None:
        host = Paths(Underlay(), count=2)
        host.underlay.down = {host.subnets[0].network_address}

        host.after(1.0)
        silent, other = (subnet.network_address for subnet in host.subnets)
        sizes = {
            end: {one.size for one in host.underlay.sent if one.destination == end} for end in (silent, other)
        }
        assert len(sizes[silent]) == 1
        assert sizes[other] == {*sizes[silent], MTU}

    def test_no_answer_reduces_the_mtu_below_the_minimum_of_the_kernel(self) -> None:
        host = Paths(Underlay(router_mtu=100), count=1)

        assert host.after(1.0) == {}
        assert host.mtus.measured == {}  # fragments arrive

    def test_a_path_with_an_mtu_below_that_of_any_route_is_reported(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        host = Paths(Underlay(), count=1)
        ipv6 = IPv6Network("fd00:0:0:1::/64")
        host.subnets.append(ipv6)
        host.underlay.carried = {host.subnets[0].network_address: 400, ipv6.network_address: 1279}

        assert host.after(1.0) == {}
        assert {subnet: (one.planned, one.measured) for subnet, one in host.mtus.measured.items()} == {
            host.subnets[0]: (1450, 400),
            ipv6: (1430, 1279),
        }
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 2

    def test_a_result_has_the_time_of_its_first_probe(self) -> None:
        host = Paths(Underlay(router_mtu=1400), count=1)
        (subnet,) = host.subnets
        host.after(1.0)
        first = host.mtus.measured[subnet]

        host.after(PERIOD_S + 2 * PAUSE_S)
        assert host.mtus.measured[subnet] == first == PathMtu(1450, 1350, first.since_s)
        host.underlay.router_mtu = 1300
        host.after(PERIOD_S + 2 * PAUSE_S)
        other = host.mtus.measured[subnet]
        assert other.measured == 1250
        assert other.since_s > first.since_s
        host.underlay.router_mtu = None
        host.after(PERIOD_S + 2 * PAUSE_S)
        assert host.mtus.measured == {}

    def test_a_silent_underlay_is_probed_once_more_and_then_hourly(self) -> None:
        """Routers limit their answers, and some firewalls drop echo requests."""
        host = Paths(Underlay(is_mute=True), count=1)

        for seconds, rounds in ((1.0, 1), (SILENT_S + PAUSE_S, 2), (PERIOD_S - 2 * SILENT_S, 2)):
            assert host.after(seconds) == {}
            assert len(host.underlay.sent) == 3 * rounds

    def test_a_new_peer_is_probed_and_a_removed_one_is_forgotten(self) -> None:
        host = Paths(Underlay(router_mtu=1400), count=2)
        first, second = host.subnets
        host.subnets = [first]

        assert host.after(1.0) == {first: 1350}
        host.subnets = [second]
        host.mtus.note_change()
        assert host.after(2 * PAUSE_S) == {second: 1350}

    def test_another_planned_mtu_is_probed_at_once(self) -> None:
        host = Paths(Underlay(router_mtu=1400), count=1)
        assert host.after(1.0) == {host.subnets[0]: 1350}

        host.mtu = 1300
        host.mtus.note_change()

        assert host.after(2 * PAUSE_S) == {}

    def test_other_tasks_run_while_many_peers_are_entered(self) -> None:
        host = Paths(Underlay(), count=3000)
        turns = 0

        async def count() -> None:
            nonlocal turns
            while not host.underlay.sent:
                turns += 1
                await asyncio.sleep(0)

        async def life() -> None:
            counting = asyncio.create_task(count())
            async with host.clock.running(host.mtus.run()):
                await counting

        asyncio.run(life())

        assert turns >= 12

    def test_a_round_has_a_limit(self) -> None:
        host = Paths(Underlay(), count=PATHS_IN_A_ROUND + 1)

        assert host.after(PAUSE_S / 2) == {}

        assert len(host.underlay.sent) == 3 * PATHS_IN_A_ROUND
