"""How a host comes by a lease: its own, that of its last life, or any that is free."""

from dataclasses import replace
from ipaddress import IPv4Network

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
    """The first free one here, as nothing is drawn; the watch misses nothing after the listing."""
    store = Store()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host = Host(store, wanted()).start()

    assert host.subnet == SECOND
    assert owner_of(store, SECOND) == "me"
    assert host.state.is_settled
    assert host.heard(Acquired)


def test_a_host_without_a_lease_is_not_told_of_all_others_while_it_asks_for_one() -> None:
    """It watches once it has its lease, from the listing on: what came between is seen then."""
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


def test_a_host_that_cannot_ask_watches_all_the_same() -> None:
    """Nothing is free: it knows the others, and waits."""
    store = Store()
    full = replace(NETWORK, subnet_max=NETWORK.subnet_min)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host = Host(store, replace(wanted(), network=full)).start()

    assert host.subnet is None
    assert host.seen == store.revision


def test_a_lost_race_picks_another_at_once_without_a_fresh_listing() -> None:
    """Others take the subnets between our listing and our writes: each answer says which one is gone."""
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


def test_a_lost_race_that_the_last_listing_does_not_explain_is_followed_by_a_fresh_one() -> None:
    """The config is another meanwhile, the lease is ours all the same, or what is there is no lease."""
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


def test_a_host_watches_the_later_the_longer_the_store_took_to_answer() -> None:
    """There are many who want to write: they come first. What was missed by then is seen at once."""
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


def test_a_host_waits_for_its_watch_a_few_seconds_at_most() -> None:
    host = Host(Store(), wanted())
    host.take(Started())
    host.answer()
    host.now += 60
    host.answer()

    host.sleep(IN_TURN_MAX_S)

    assert host.state.is_watching


def test_our_own_lease_is_used_again_whatever_subnet_env_says() -> None:
    """By owner first, then by what the old subnet.env says."""
    store = Store()
    store.write_lease(lease(THIRD, "me", "192.168.50.102"))

    host = Host(store, wanted(previous=SECOND)).start()

    assert host.subnet == THIRD


def test_a_lease_of_the_original_is_judged_by_address() -> None:
    """It has no owner; ours is written into it."""
    store = Store()
    store.write_lease(lease(THIRD, None, "192.168.50.102"))

    host = Host(store, wanted()).start()

    assert host.subnet == THIRD
    assert owner_of(store, THIRD) == "me"


def test_the_previous_subnet_is_taken_when_free_and_not_when_held() -> None:
    """It is a wish, not a right."""
    store = Store()
    assert Host(store, wanted(previous=THIRD)).start().subnet == THIRD

    other = Host(store, wanted("other", "192.168.50.103", previous=THIRD)).start()

    assert other.subnet == FIRST


def test_a_lease_that_no_longer_fits_is_deleted_and_another_taken() -> None:
    """As the original: found, not compatible, deleted."""
    store = Store()
    store.write_lease(lease(IPv4Network("10.100.9.0/24"), "me", "192.168.50.102"))

    host = Host(store, wanted()).start()

    assert host.subnet == FIRST
    assert list(store.leases) == [FIRST]
    assert host.heard(Unsuitable)


def test_a_reservation_that_no_longer_fits_stays() -> None:
    """It is the operator's to remove."""
    store = Store()
    outside = IPv4Network("10.100.9.0/24")
    store.write_lease(lease(outside, None, "192.168.50.102", ttl=False))

    host = Host(store, wanted()).start()

    assert host.subnet == FIRST
    assert outside in store.leases


def test_an_unreadable_lease_occupies_its_subnet() -> None:
    """Whoever wrote it may be living there."""
    store = Store()
    store.write_rubbish(FIRST)

    assert Host(store, wanted(previous=FIRST)).start().subnet == SECOND


def test_an_exhausted_network_is_said_and_tried_again() -> None:
    """Never an exit; the subnet that comes free is taken."""
    store = Store()
    for number in range(1, 5):
        store.write_lease(lease(IPv4Network(f"10.100.{number}.0/24"), "x", f"192.168.50.{number}"))
    host = Host(store, wanted()).start()
    assert host.heard(Exhausted)
    store.delete_lease(SECOND)

    host.sleep(11)

    assert host.subnet == SECOND


def test_an_answer_that_is_lost_does_no_harm() -> None:
    """The write took effect, we never heard: the next listing shows it, and no second subnet is taken."""
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
