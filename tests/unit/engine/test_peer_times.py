"""The last change of a peer is known, and a renewal of its lease is no change."""

from ipaddress import IPv4Address, IPv4Network

from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from pyflannel.engine.peer_times import REMEMBERED, PeerTimes
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.plan.peers import PeerChange


def lease(number: int, revision: int = 1) -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address(0xC0000200 + number % 256))
    return Lease(subnet=IPv4Network((10 << 24 | number << 8, 24)), attributes=attributes, revision=revision)


def test_a_join_an_address_and_a_return_are_changes_and_a_renewal_is_none() -> None:
    clock = FakeClock()
    times = PeerTimes(clock)
    moved = replace(lease(1), attributes=LeaseAttributes(public_ip=IPv4Address("192.0.2.77")))
    ages = []
    for change in (
        PeerChange(None, lease(1)),
        PeerChange(lease(1), lease(1, revision=2)),
        PeerChange(lease(1, revision=2), moved),
        PeerChange(moved, None),
        PeerChange(None, moved),
    ):
        clock._now += 10
        times.note([change])
        ages.append(times.ages()[lease(1).subnet])

    assert ages == [0, 10, 0, 0, 0]


def test_the_latest_changes_are_remembered() -> None:
    times = PeerTimes(FakeClock())

    times.note(PeerChange(None, lease(number)) for number in range(REMEMBERED + 500))
    times.note([PeerChange(None, lease(0))])

    remembered = times.ages()
    assert len(remembered) == REMEMBERED
    assert lease(0).subnet in remembered
    assert lease(501).subnet in remembered
    assert lease(500).subnet not in remembered
