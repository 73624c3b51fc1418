"""Leases of a network with both families: one key for both subnets, and the change from IPv4 alone."""

from ipaddress import IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.performed_step import FIRST, NETWORK, SECOND, Host, Store, lease, wanted
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Acquired, Exhausted, Ordered, Started, Taken, Wanted
from pyflannel.plan.lease.choice import pick_ipv6

DUAL = replace(
    NETWORK,
    enable_ipv6=True,
    ipv6_network=IPv6Network("fd00:5::/48"),
    ipv6_subnet_length=64,
    ipv6_subnet_min=IPv6Address("fd00:5:0:1::"),
    ipv6_subnet_max=IPv6Address("fd00:5:0:8::"),
)
FIRST_IPV6, SECOND_IPV6 = (IPv6Network(f"fd00:5:0:{number}::/64") for number in (1, 2))


def wanted_dual(owner: str = "me", address: str = "192.168.50.102", **changes: object) -> Wanted:
    return replace(wanted(owner, address), network=DUAL, **changes)


def held(host: Host) -> tuple[IPv4Network, IPv6Network | None]:
    assert host.state.held is not None
    return host.state.held.lease.subnet, host.state.held.lease.ipv6_subnet


def dual(subnet: IPv4Network, ipv6_subnet: IPv6Network, owner: str, address: str) -> Lease:
    return replace(lease(subnet, owner, address), ipv6_subnet=ipv6_subnet)


def test_a_host_takes_a_free_subnet_of_each_family() -> None:
    store = Store()

    host = Host(store, wanted_dual()).start()

    assert held(host) == (FIRST, FIRST_IPV6)
    assert list(store.leases) == [(FIRST, FIRST_IPV6)]


def test_two_hosts_that_choose_one_ipv4_subnet_choose_one_key() -> None:
    """With two different keys, the store would accept both leases."""
    store = Store()
    first, second = (
        Host(store, wanted_dual("a", "192.168.50.1")),
        Host(store, wanted_dual("b", "192.168.50.2")),
    )
    for host in (first, second):
        host.take(Started())
        host.answer()

    for host in (first, second):
        host.settle()

    assert held(first) == (FIRST, FIRST_IPV6)
    assert held(second) == (SECOND, SECOND_IPV6)


def test_an_occupied_ipv6_subnet_is_not_taken() -> None:
    store = Store()
    store.write_lease(dual(SECOND, FIRST_IPV6, "other", "192.168.50.1"))

    host = Host(store, wanted_dual()).start()

    assert held(host)[0] == FIRST
    assert held(host)[1] not in (None, FIRST_IPV6)


def test_the_subnets_of_the_previous_run_are_taken_again() -> None:
    store = Store()

    host = Host(store, wanted_dual(previous=SECOND, previous_ipv6=FIRST_IPV6)).start()

    assert held(host) == (SECOND, FIRST_IPV6)


def test_an_existing_lease_is_used_again() -> None:
    store = Store()
    store.write_lease(dual(SECOND, FIRST_IPV6, "me", "192.168.50.102"))

    host = Host(store, wanted_dual()).start()

    assert held(host) == (SECOND, FIRST_IPV6)
    assert list(store.leases) == [(SECOND, FIRST_IPV6)]


def test_an_ipv6_subnet_joins_an_existing_lease_at_the_start() -> None:
    """The IPv4 subnet stays, because containers use its addresses. No old key remains."""
    store = Store()
    store.write_lease(lease(SECOND, "me", "192.168.50.102"))

    host = Host(store, wanted_dual()).start()

    assert held(host) == (SECOND, SECOND_IPV6)
    assert list(store.leases) == [(SECOND, SECOND_IPV6)]


def test_an_ipv6_subnet_joins_the_lease_of_a_running_host() -> None:
    store = Store()
    host = Host(store, wanted()).start()
    acquired = held(host)

    host.take(Ordered(wanted_dual()))
    host.settle()

    assert acquired == (FIRST, None)
    assert held(host) == (FIRST, FIRST_IPV6)
    assert list(store.leases) == [(FIRST, FIRST_IPV6)]
    assert host.state.is_settled


def test_a_running_host_without_a_free_ipv6_subnet_keeps_its_lease() -> None:
    store = Store()
    host = Host(store, wanted()).start()
    for number in range(1, 9):
        other = IPv4Network(f"10.101.{number}.0/24")
        store.write_lease(dual(other, IPv6Network(f"fd00:5:0:{number}::/64"), "other", "192.168.50.1"))

    host.take(Ordered(wanted_dual()))
    host.settle()

    assert held(host) == (FIRST, None)
    assert host.state.is_settled


def test_a_network_without_a_free_ipv6_subnet_is_exhausted() -> None:
    store = Store()
    for number in range(1, 9):
        other = IPv4Network(f"10.101.{number}.0/24")
        store.write_lease(dual(other, IPv6Network(f"fd00:5:0:{number}::/64"), "other", "192.168.50.1"))

    host = Host(store, wanted_dual()).start()

    assert host.subnet is None
    assert host.heard(Exhausted)


def test_the_ipv6_subnet_stays_after_ipv6_is_disabled() -> None:
    """The IPv6 subnet then has no effect. For the peers, another key would be a loss of the lease."""
    store = Store()
    host = Host(store, wanted_dual()).start()

    host.take(Ordered(wanted()))
    host.settle()

    assert held(host) == (FIRST, FIRST_IPV6)
    assert list(store.leases) == [(FIRST, FIRST_IPV6)]


def test_a_lost_lease_is_acquired_again_with_both_subnets() -> None:
    store = Store()
    host = Host(store, wanted_dual()).start()

    store.delete_lease((FIRST, FIRST_IPV6))
    host.settle()

    assert held(host) == (FIRST, FIRST_IPV6)
    assert host.heard(Acquired)
    assert list(store.leases) == [(FIRST, FIRST_IPV6)]


def test_the_deletion_of_another_key_of_the_subnet_is_not_a_loss_of_the_lease() -> None:
    """The other key may be the expired lease from before IPv6 was enabled."""
    store = Store()
    host = Host(store, wanted_dual()).start()
    store.write_lease(lease(FIRST, "me", "192.168.50.102"))
    host.seen = store.revision

    store.delete_lease(FIRST)
    host.settle()

    assert host.state.is_settled
    assert not host.heard(Taken)
    assert list(store.leases) == [(FIRST, FIRST_IPV6)]


@given(
    occupied=st.lists(
        st.tuples(st.sampled_from([60, 62, 63, 64, 65]), st.integers(0, 12)).map(
            lambda one: IPv6Network((int(IPv6Address("fd00:5::")) + (one[1] << 64), one[0]), strict=False)
        ),
        max_size=10,
    ),
    number=st.integers(1, 4),
)
def test_a_chosen_ipv6_subnet_is_free_and_admitted(occupied: list[IPv6Network], number: int) -> None:
    every = [IPv6Network(f"fd00:5:0:{index}::/64") for index in range(1, 9)]
    free = [subnet for subnet in every if not any(subnet.overlaps(taken) for taken in occupied)]

    picked = pick_ipv6(DUAL, occupied, IPv4Network(f"10.100.{number}.0/24"))

    assert (picked in free) if free else picked is None
    if every[number - 1] in free:
        assert picked == every[number - 1]


def test_a_range_of_many_ipv6_subnets_is_not_listed() -> None:
    wide = replace(DUAL, ipv6_subnet_min=IPv6Address("fd00::"), ipv6_subnet_max=IPv6Address("fdff::"))

    picked = pick_ipv6(wide, [IPv6Network("fd00::/16")], FIRST)

    assert picked is not None
    assert not picked.subnet_of(IPv6Network("fd00::/16"))
