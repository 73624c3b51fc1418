"""Peers are probed only while a page asks, in rounds of bounded size."""

import asyncio
from collections.abc import Sequence
from ipaddress import IPv4Network

from doubles.fake_clock import FakeClock
from pyflannel.engine.peer_probes import ASKED_S, PEERS_IN_A_ROUND, PEERS_IN_A_SECOND, REFUSED_S, PeerProbes
from pyflannel.errors import TargetError
from pyflannel.model.probe import SILENT, Echo, EchoResult

REACHED = EchoResult(state="reached", rtt_s=0.001)


def echoes(count: int) -> dict[IPv4Network, Echo]:
    subnets = list(IPv4Network("10.0.0.0/8").subnets(new_prefix=24))[:count]
    return {subnet: Echo(destination=subnet.network_address) for subnet in subnets}


class Wire:
    """Records the rounds; each host answers, except those that a test made silent."""

    def __init__(self) -> None:
        self.rounds: list[list[Echo]] = []
        self.silent: set[Echo] = set()
        self.refuses = False

    async def send(self, some: Sequence[Echo]) -> list[EchoResult]:
        self.rounds.append(list(some))
        if self.refuses:
            raise TargetError("cannot send ICMP echo requests", hint="Run as root.")
        return [SILENT if one in self.silent else REACHED for one in some]


def test_nothing_is_sent_before_a_request_and_after_the_last_one() -> None:
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


def test_a_peer_that_stops_to_answer_is_silent_after_one_round() -> None:
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
