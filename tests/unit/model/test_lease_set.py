"""Whom a host plans for: the leases of its network, but for those that could never work."""

import random
from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_set import settle

NETWORK = IPv4Network("10.100.0.0/16")


def lease(subnet: str, public_ip: str = "10.10.10.101") -> Lease:
    return Lease(subnet=IPv4Network(subnet), attributes=LeaseAttributes(public_ip=IPv4Address(public_ip)))


OWN = lease("10.100.15.0/24")


@given(st.sets(st.integers(0, 255)), st.randoms(use_true_random=False))
def test_peers_come_in_the_order_of_their_subnets(numbers: set[int], shuffler: random.Random) -> None:
    """Whatever the order of the leases; our own is no peer."""
    leases = [lease(f"10.100.{number}.0/24", f"172.16.0.{number}") for number in numbers]
    shuffler.shuffle(leases)

    peers, conflicts = settle([*leases, OWN], OWN, NETWORK)

    assert list(peers) == sorted(
        (one for one in leases if one.subnet != OWN.subnet), key=lambda one: one.subnet
    )
    assert conflicts == ()


def test_subnets_of_different_sizes_are_in_the_kernel_s_order() -> None:
    leases = [lease("10.100.16.0/24", "172.16.0.2"), lease("10.100.16.0/20", "172.16.0.1")]

    peers, _ = settle(leases, OWN, NETWORK)

    assert [str(peer.subnet) for peer in peers] == ["10.100.16.0/20", "10.100.16.0/24"]


def test_a_peer_that_could_never_be_reached_is_left_out_and_said() -> None:
    outside, over_ours = lease("10.101.0.0/24", "172.16.0.1"), lease("10.100.0.0/20", "172.16.0.2")

    peers, conflicts = settle([outside, over_ours], OWN, NETWORK)

    assert peers == ()
    assert [conflict.text for conflict in conflicts] == [
        "lease 10.100.0.0/20 of 172.16.0.2 overlaps our own 10.100.15.0/24: ignored",
        "lease 10.101.0.0/24 of 172.16.0.1 lies outside the network 10.100.0.0/16: ignored",
    ]


def test_peers_that_share_an_address_are_planned_and_said() -> None:
    peers, conflicts = settle(
        [lease("10.100.1.0/24", "172.16.0.1"), lease("10.100.2.0/24", "172.16.0.1"), lease("10.100.3.0/24")],
        OWN,
        NETWORK,
    )

    assert len(peers) == 3
    assert [conflict.text for conflict in conflicts] == [
        "lease 10.100.2.0/24 of 172.16.0.1 has the address of lease 10.100.1.0/24 too: both are used",
        "lease 10.100.3.0/24 of 10.10.10.101 has our own address: its packets would come back to us",
    ]
