"""The acquisition of a lease: the host's own lease, the subnet of the previous run, or any free subnet."""

from ipaddress import IPv4Network

from msgspec.structs import replace

from doubles.performed_step import (
    FIRST,
    NETWORK,
    SECOND,
    THIRD,
    Host,
    Store,
    lease,
    owner_of,
    wanted,
)
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import (
    Acquired,
    Exhausted,
    Failed,
    Ordered,
    PutLease,
    Started,
    StoreAway,
    StoreBack,
    Unreadable,
    Unsuitable,
)
from pyflannel.plan.lease.answers import IN_TURN_MAX_S
from pyflannel.plan.lease.state import Resting


def test_a_host_takes_a_free_subnet_and_watches_from_the_listing() -> None:
    """The host takes the first free subnet, because the draw is 0. The watch continues from the listing."""
    store = Store()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host = Host(store, wanted()).start()

    assert host.subnet == SECOND
    assert owner_of(store, SECOND) == "me"
    assert host.state.is_settled
    assert host.heard(Acquired)


def test_a_host_does_not_watch_while_it_acquires_its_first_lease() -> None:
    """The watch starts after the lease, and continues from the listing, so that no change is missed."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    store.write_lease(lease(SECOND, "other", "192.168.50.1"))
    seen_while_asking = host.seen

    host.answer()

    assert seen_while_asking is None
    assert host.seen == 0
    assert host.state.is_watching


def test_a_host_without_a_free_subnet_also_watches() -> None:
    """The host knows the other leases, and waits for a free subnet."""
    store = Store()
    full = replace(NETWORK, subnet_max=NETWORK.subnet_min)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host = Host(store, replace(wanted(), network=full)).start()

    assert host.subnet is None
    assert host.seen == store.revision


def test_after_a_lost_race_another_subnet_is_chosen_without_a_new_listing() -> None:
    """Other hosts take the subnets between the listing and the writes. Each answer contains the holder."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    store.write_lease(lease(SECOND, "another", "192.168.50.2"))

    asked = []
    while host.requests:
        asked += host.requests
        host.answer()

    assert [type(request) for request in asked] == [PutLease, PutLease, PutLease]
    assert host.subnet == THIRD
    assert owner_of(store, FIRST) == "other"


def test_an_unexplained_lost_race_is_followed_by_a_new_listing() -> None:
    """The config has changed, the lease belongs to this host, or the key contains no lease."""
    for written, is_another_config in (
        (lease(FIRST, "other", "192.168.50.1"), True),
        (lease(FIRST, "me", "192.168.50.102"), False),
        (Unreadable(FIRST, 1), False),
    ):
        store = Store()
        host = Host(store, wanted())
        host.take(Started())
        host.answer()
        if isinstance(written, Lease):
            store.write_lease(written)
        else:
            store.write_rubbish(FIRST)
        if is_another_config:
            host.take(Ordered(replace(host.wanted, config_revision=7)))

        host.answer()

        assert host.requests == []
        assert isinstance(host.state.phase, Resting)


def test_the_delay_before_the_watch_grows_with_the_response_time_of_the_store() -> None:
    """Writes of many other hosts have precedence at this time. The watch then delivers all missed changes."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    store.write_lease(lease(SECOND, "other", "192.168.50.1"))
    host.now += 2

    host.answer()
    seen_at_first = host.seen
    host.sleep(3.9)
    seen_before = host.seen
    host.sleep(0.1)

    assert host.heard(Acquired)
    assert (seen_at_first, seen_before) == (None, None)
    assert host.seen == store.revision


def test_the_watch_starts_after_a_few_seconds_at_most() -> None:
    host = Host(Store(), wanted())
    host.take(Started())
    host.answer()
    host.now += 60
    host.answer()

    host.sleep(IN_TURN_MAX_S)

    assert host.state.is_watching


def test_the_own_lease_has_precedence_over_subnet_env() -> None:
    """The host finds its lease by the owner first, then by the subnet of the old subnet.env."""
    store = Store()
    store.write_lease(lease(THIRD, "me", "192.168.50.102"))

    host = Host(store, wanted(previous=SECOND)).start()

    assert host.subnet == THIRD


def test_a_lease_of_the_original_is_recognized_by_its_address() -> None:
    """A lease of the original has no owner. The host writes its own identity into the lease."""
    store = Store()
    store.write_lease(lease(THIRD, None, "192.168.50.102"))

    host = Host(store, wanted()).start()

    assert host.subnet == THIRD
    assert owner_of(store, THIRD) == "me"


def test_the_previous_subnet_is_acquired_only_if_it_is_free() -> None:
    """If another host has the previous subnet, this host takes another subnet."""
    store = Store()
    assert Host(store, wanted(previous=THIRD)).start().subnet == THIRD

    other = Host(store, wanted("other", "192.168.50.103", previous=THIRD)).start()

    assert other.subnet == FIRST


def test_an_unsuitable_lease_is_deleted_and_another_is_acquired() -> None:
    """The original also deletes a lease that is not compatible with the config."""
    store = Store()
    store.write_lease(lease(IPv4Network("10.100.9.0/24"), "me", "192.168.50.102"))

    host = Host(store, wanted()).start()

    assert host.subnet == FIRST
    assert list(store.leases) == [FIRST]
    assert host.heard(Unsuitable)


def test_an_unsuitable_reservation_is_kept() -> None:
    """Only the operator removes a reservation."""
    store = Store()
    outside = IPv4Network("10.100.9.0/24")
    store.write_lease(lease(outside, None, "192.168.50.102", ttl=False))

    host = Host(store, wanted()).start()

    assert host.subnet == FIRST
    assert outside in store.leases


def test_an_unreadable_lease_occupies_its_subnet() -> None:
    """The writer of the lease may use the subnet."""
    store = Store()
    store.write_rubbish(FIRST)

    assert Host(store, wanted(previous=FIRST)).start().subnet == SECOND


def test_an_exhausted_network_is_reported_and_tried_again() -> None:
    """The daemon does not exit. The daemon takes a subnet that becomes free."""
    store = Store()
    for number in range(1, 5):
        store.write_lease(lease(IPv4Network(f"10.100.{number}.0/24"), "x", f"192.168.50.{number}"))
    host = Host(store, wanted()).start()
    assert host.heard(Exhausted)
    store.delete_lease(SECOND)

    host.sleep(11)

    assert host.subnet == SECOND


def test_a_lost_answer_to_a_write_has_no_effect() -> None:
    """The write took effect without an answer. The next listing shows the written lease, and no second subnet
    is taken.
    """
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    put = host.requests.pop()
    store.perform(put)
    assert isinstance(put, PutLease)
    host.take(Failed(put, "timed out"))

    host.sleep(10)

    assert host.subnet == FIRST
    assert list(store.leases) == [FIRST]
    assert host.heard(StoreAway)
    assert host.heard(StoreBack)
