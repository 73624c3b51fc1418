"""The live view shows loss and rates, and keeps the peers while flanneld does not respond."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from pyflannel.assembly.directories import Places
from pyflannel.commands.live_view import LONGEST_LOOK_S, LOOK_S, LiveView, Moment, Rates
from pyflannel.errors import FlannelError, NotReadyError, TargetError, WireError
from pyflannel.model.lease import LeaseEntry, PeerEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.probe import SILENT, Echo, EchoResult
from pyflannel.model.status import (
    BackendStatus,
    JournalEntry,
    LeaseStatus,
    Status,
    WireguardPeerStatus,
    WireguardStatus,
)

REACHED = EchoResult(state="reached", rtt_s=0.0005)
HUNG = NotReadyError("flanneld does not respond: no answer within 2.5 s", hint="Start flanneld.")
OTHER = WireError("cannot read the response of the daemon: truncated", hint="Check the versions.")


def subnet(number: int) -> IPv4Network:
    return IPv4Network((int(IPv4Address("10.100.0.0")) + 256 * number, 24))


class Host:
    """A daemon, its peers and the network between them, as a test changes them."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = FakeClock()
        self.places = Places(run_dir=tmp_path, state_dir=tmp_path, subnet_file=tmp_path / "subnet.env")
        self.peers = [2, 3]
        self.counted: dict[IPv4Network, int] = {}
        self.results: dict[IPv4Address, EchoResult] = {}
        self.error: FlannelError | None = None
        self.probe_error: TargetError | None = None
        self.backend = BackendStatus(type="vxlan", received=0, sent=0)
        self.wireguard: WireguardStatus | None = None
        self.moments: list[Moment] = []

    async def status(self) -> Status:
        if self.error is not None:
            raise self.error
        lease = LeaseStatus(subnet=subnet(1))
        return Status(version="1", is_ready=True, lease=lease, backend=self.backend, wireguard=self.wireguard)

    async def leases(self) -> list[LeaseEntry]:
        return [
            LeaseEntry(
                subnet=subnet(number), public_ip=IPv4Address("192.0.2.0") + number, backend_type="vxlan"
            )
            for number in (1, *self.peers)
        ]

    async def events(self) -> list[JournalEntry]:
        return [JournalEntry(at=1.0, event="repaired", found="route")]

    async def send(self, echoes: Sequence[Echo]) -> list[EchoResult]:
        if self.probe_error is not None:
            raise self.probe_error
        return [self.results.get(echo.destination, REACHED) for echo in echoes]

    async def count(self, status: Status, peers: Sequence[PeerEntry]) -> Mapping[IpNetwork, int]:
        return {peer.subnet: self.counted[peer.subnet] for peer in peers if peer.subnet in self.counted}

    def carried(self, received: int, sent: int) -> None:
        self.backend = replace(self.backend, received=received, sent=sent)

    def lives(self, life: Callable[[], Awaitable[None]]) -> list[Moment]:
        """Return the moments that the view yields while `life` runs."""

        async def run() -> None:
            view = LiveView(self, self.places, self.send, self.count, self.clock, self.moments.append)
            async with self.clock.running(view.run()):
                await life()

        asyncio.run(run())
        return self.moments

    @property
    def now(self) -> Moment:
        return self.moments[-1]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_the_peers_are_shown_with_their_round_trip_time(host: Host) -> None:
    host.results[subnet(3).network_address] = SILENT

    async def life() -> None:
        await host.clock.advance(LOOK_S)

    first, second = host.lives(life)

    assert [(one.entry.is_reached, one.loss) for one in first.peers] == [(None, None), (None, None)]
    assert [(one.entry.subnet, one.entry.is_reached, one.entry.rtt_ms) for one in second.peers] == [
        (subnet(2), True, 0.5),
        (subnet(3), False, None),
    ]
    assert second.events[-1].found == "route"


def test_the_loss_counts_each_request_that_was_not_answered(host: Host) -> None:
    """The peer answers the second request, so the first request counts as lost."""
    host.results = {
        subnet(2).network_address: replace(REACHED, attempts=2),
        subnet(3).network_address: replace(SILENT, attempts=3),
    }

    async def life() -> None:
        await host.clock.advance(5)

    host.lives(life)

    assert [one.loss for one in host.now.peers] == [0.5, 1.0]


def test_a_peer_that_joins_appears_and_one_that_leaves_disappears(host: Host) -> None:
    async def life() -> None:
        host.peers = [2, 3, 4]
        await host.clock.advance(LOOK_S)
        assert [one.entry.subnet for one in host.now.peers] == [subnet(2), subnet(3), subnet(4)]
        host.peers = [4]
        await host.clock.advance(LOOK_S)

    host.lives(life)

    assert [one.entry.subnet for one in host.now.peers] == [subnet(4)]


def test_rates_are_the_differences_of_the_counters(host: Host) -> None:
    async def life() -> None:
        host.carried(1000, 500)
        await host.clock.advance(LOOK_S)
        assert host.now.rates == (Rates(1000.0, 500.0),)
        host.carried(10, 600)  # a device was created again
        await host.clock.advance(LOOK_S)
        assert host.now.rates == ()
        host.carried(110, 600)
        await host.clock.advance(LOOK_S)

    host.lives(life)

    assert host.now.rates == (Rates(100.0, 0.0),)
    assert [(one.received, one.sent) for one in host.now.peers] == [(None, None)] * 2


def test_the_kernel_counts_the_bytes_from_each_peer(host: Host) -> None:
    async def life() -> None:
        host.counted = {subnet(2): 50}
        await host.clock.advance(LOOK_S)
        host.counted = {subnet(2): 250, subnet(3): 100}
        await host.clock.advance(LOOK_S)
        assert [(one.received, one.sent) for one in host.now.peers] == [(200.0, None), (None, None)]
        host.counted = {subnet(2): 10, subnet(3): 130}  # the element of a peer was created again
        await host.clock.advance(LOOK_S)

    host.lives(life)

    assert [(one.received, one.sent) for one in host.now.peers] == [(None, None), (30.0, None)]


def test_wireguard_counts_the_bytes_of_each_peer(host: Host) -> None:
    def counted(received: int) -> WireguardStatus:
        peer = WireguardPeerStatus(subnet=subnet(2), public_key="k", received=received, sent=0)
        return WireguardStatus(public_key="k", is_in_kernel=True, peers=(peer,))

    async def life() -> None:
        host.wireguard = counted(50)
        await host.clock.advance(LOOK_S)
        host.wireguard = counted(250)
        await host.clock.advance(LOOK_S)

    host.lives(life)

    assert [(one.received, one.sent) for one in host.now.peers] == [(200.0, 0.0), (None, None)]


@pytest.mark.parametrize("error", [HUNG, OTHER])
def test_the_last_known_peers_are_probed_while_flanneld_does_not_respond(
    host: Host, error: FlannelError
) -> None:
    async def life() -> None:
        await host.clock.advance(LOOK_S)
        host.error = error
        host.results[subnet(3).network_address] = SILENT
        await host.clock.advance(10)
        assert host.now.trouble is not None
        assert host.now.trouble.text == str(error)
        assert host.now.silent_s == pytest.approx(10, abs=LOOK_S)
        assert not host.now.status.is_live
        assert [one.entry.is_reached for one in host.now.peers] == [True, False]
        assert host.now.rates == ()
        host.error = None
        await host.clock.advance(LOOK_S)

    host.lives(life)

    assert host.now.trouble is None
    assert host.now.status.is_live


def test_without_any_answer_the_peers_are_those_in_the_files_of_flanneld(host: Host) -> None:
    leases = {
        f"subnets/10.100.{number}.0-24": f'{{"PublicIP":"192.0.2.{number}","BackendType":"vxlan"}}'
        for number in (1, 2)
    }
    config = '{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}'
    known = {"Config": config, "Own": "subnets/10.100.1.0-24", "Leases": leases}
    host.places.last_known.write_text(json.dumps(known))
    host.error = HUNG

    async def life() -> None:
        await host.clock.advance(LOOK_S)

    host.lives(life)

    assert [(one.entry.subnet, one.entry.is_reached) for one in host.now.peers] == [(subnet(2), True)]
    assert host.now.silent_s is None
    assert host.now.trouble is not None
    assert host.now.trouble.hint.startswith("Start flanneld.")


def test_without_the_right_to_probe_the_reason_is_shown(host: Host) -> None:
    host.probe_error = TargetError("cannot send ICMP echo requests", hint="Run flannelctl as root.")

    async def life() -> None:
        await host.clock.advance(LOOK_S)

    host.lives(life)

    assert str(host.now.probe_trouble) == "cannot send ICMP echo requests. Run flannelctl as root."
    assert [one.entry.is_reached for one in host.now.peers] == [None, None]


@pytest.mark.parametrize(("peers", "pause_s"), [(5, 1.0), (1000, 1.0), (10_000, LONGEST_LOOK_S)])
def test_requests_about_a_large_network_are_less_frequent(host: Host, peers: int, pause_s: float) -> None:
    """The view must not occupy flanneld in a large network."""
    host.peers = list(range(2, peers + 2))

    async def life() -> None:
        await host.clock.advance(pause_s - 0.1)
        assert len(host.moments) == 1
        await host.clock.advance(0.2)

    assert len(host.lives(life)) == 2
