"""A store that lost its data: it gives revisions out twice."""

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from doubles.performed_step import (
    FIRST,
    HOUR,
    NETWORK,
    SECOND,
    Host,
    Store,
    lease,
    owner_of,
    wanted,
)
from pyflannel.model.lease import Claim, Lease
from pyflannel.model.lease_protocol import (
    Check,
    List,
    Ordered,
    Seen,
    SharedAddress,
    Taken,
    WatchLost,
    Woke,
)


def test_a_store_that_lost_its_data_is_watched_from_where_it_is_now() -> None:
    """Its revisions begin anew; watching from the old one would never see anything."""
    store = Store(revision=100)
    host = Host(store, wanted()).start()
    store.lose_data(revision=1)
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert host.seen is not None
    assert host.seen <= store.revision
    assert owner_of(store, FIRST) == "me"


def test_a_store_that_lost_its_data_and_has_grown_is_noticed() -> None:
    """The watch could go on where it was, and would never tell what stands there now."""
    store = Store()
    host = Host(store, wanted()).start()
    store.lose_data(revision=100)
    host.take(WatchLost("cut"))

    host.sleep(1)

    assert owner_of(store, FIRST) == "me"
    assert host.state.is_settled


def test_a_degraded_host_notices_a_store_that_lost_its_data_and_has_grown() -> None:
    store = Store()
    host = Host(store, wanted()).start()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.settle()
    store.lose_data(revision=100)
    host.take(WatchLost("cut"))

    host.sleep(1)

    assert owner_of(store, FIRST) == "me"
    assert host.state.is_settled


def test_nothing_is_checked_while_the_store_is_away() -> None:
    """A failed check leads to a listing: of thousands of hosts, each would ask for all leases."""
    host = Host(Store(), wanted()).start()
    host.take(WatchLost("no connection"))
    for _ in range(3):
        host.sleep(10)
        host.take(WatchLost("no connection"))

    assert host.requests == []


def test_a_check_that_fails_is_made_up_for_by_a_listing() -> None:
    store = Store()
    host = Host(store, wanted()).start()
    store.lose_data(revision=100)
    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), store.revision))

    host.fail()
    host.sleep(10)

    assert owner_of(store, FIRST) == "me"


def test_a_lease_that_stands_is_checked_and_nothing_more() -> None:
    """Also while the watch has not told yet of what was written since."""
    store = Store()
    host = Host(store, wanted()).start()
    writes = store.revision
    host.take(WatchLost("cut"))
    host.sleep(1)
    host.watch()
    assert [type(request) for request in host.requests] == [Check]
    host.settle()
    assert (store.revision, host.state.is_settled) == (writes, True)

    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), store.revision))
    store.write_lease(lease(FIRST, "me", "192.168.50.102"))
    host.answer()

    assert host.requests == []


def test_what_was_missed_in_another_life_of_the_store_is_no_news() -> None:
    """It lost its data twice; the lease that stood in the host's way was of its life between the two."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_rubbish(FIRST)
    host.watch()  # it asks for all leases; before the answer comes, another takes the subnet
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.watch()
    host.settle()
    assert not host.state.is_settled
    store.lose_data(revision=1)
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert host.state.is_settled
    assert [type(report) for report in host.said].count(Taken) == 1


def test_our_own_renewal_in_another_life_of_the_store_is_no_other_host() -> None:
    """It was seen, and its answer was lost with the data of the store; the watch was cut, not compacted."""
    store = Store()
    host = Host(store, wanted()).start()
    host.now = 23 * HOUR
    host.take(Woke())
    store.perform(host.requests[0])
    host.watch()
    host.fail()
    store.lose_data(revision=0)
    host.seen = None
    host.take(WatchLost("cut"))

    host.sleep(10)
    host.settle()

    assert host.state.is_settled
    assert not host.heard(SharedAddress)


def test_a_revision_that_was_given_out_twice_makes_no_lease_ours() -> None:
    """A store that lost its data counts anew, and another host was faster."""
    store = Store()
    host = Host(store, wanted()).start()
    store.lose_data(revision=0)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert not host.state.is_settled
    assert host.heard(Taken)


def host_whose_store_began_anew() -> Host:
    """Return a host whose watch was cut. Its store began anew, another has its subnet, at its revision."""
    store = Store()
    host = Host(store, wanted()).start()
    store.lose_data(revision=0)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    for _ in range(10):
        store.write_lease(lease(SECOND, "another", "192.168.50.2"))
    host.take(WatchLost("cut"))
    return host


def test_another_address_is_not_written_before_the_store_is_known_to_be_the_same() -> None:
    host = host_whose_store_began_anew()

    host.take(Ordered(wanted(address="192.168.50.103")))
    host.sleep(1)

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_another_address_is_not_written_while_that_is_asked() -> None:
    host = host_whose_store_began_anew()
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), host.store.revision))
    assert [type(request) for request in host.requests] == [Check]

    host.take(Ordered(wanted(address="192.168.50.103")))
    host.settle()

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_a_lease_is_not_renewed_before_the_store_is_known_to_be_the_same() -> None:
    """When its time comes all leases are asked for: no lease ends as its host cannot watch."""
    host = host_whose_store_began_anew()
    assert host.wake_at is not None

    host.seen, host.now = None, 23 * HOUR + 1
    host.take(Woke())
    host.settle()

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_another_address_is_written_once_the_store_is_known_to_be_the_same() -> None:
    host = Host(Store(), wanted()).start()
    host.take(WatchLost("cut"))
    host.take(Ordered(wanted(address="192.168.50.103")))

    host.sleep(1)
    host.take(Seen((), host.store.revision))
    host.settle()

    standing = host.store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert standing.attributes.public_ip == IPv4Address("192.168.50.103")
    assert host.state.is_settled


def checking(host: Host) -> Host:
    """Let a host's watch be cut and opened again, so that it asks what stands at its key."""
    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), host.store.revision))
    assert [type(request) for request in host.requests] == [Check]
    return host


def claim_on_first() -> Claim:
    return Claim(subnet=FIRST, owner="newcomer", public_ip=IPv4Address("192.168.50.102"))


def test_a_claim_is_not_answered_before_the_store_is_known_to_be_the_same() -> None:
    """It comes with the first that the watch tells; the lease that it is about may be another's."""
    host = host_whose_store_began_anew()
    host.store.write_claim(claim_on_first())

    host.sleep(1)

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)
    assert host.store.claims


def test_a_claim_is_answered_once_the_store_is_known_to_be_the_same() -> None:
    host = Host(Store(), wanted()).start()
    before = host.store.leases[FIRST].revision
    host.take(WatchLost("cut"))
    host.store.write_claim(claim_on_first())

    host.sleep(1)

    assert host.store.leases[FIRST].revision > before
    assert not host.store.claims
    assert [type(report) for report in host.said].count(SharedAddress) == 1


def test_a_claim_is_answered_although_the_question_about_the_store_failed() -> None:
    host = checking(Host(Store(), wanted()).start())
    host.store.write_claim(claim_on_first())
    host.watch()

    host.fail()
    host.sleep(1)

    assert not host.store.claims


def test_a_claim_is_answered_although_that_question_failed_while_the_lease_was_renewed() -> None:
    """The renewal is of what the watch told, so it was in the same store."""
    host = checking(Host(Store(), wanted()).start())
    host.store.write_lease(lease(FIRST, "me", "192.168.50.102", ttl=False))
    host.watch()
    host.fail()
    host.settle()

    host.store.write_claim(claim_on_first())
    host.settle()

    assert not host.store.claims


def test_a_claim_is_answered_although_the_lease_was_made_a_reservation_meanwhile() -> None:
    host = checking(Host(Store(), wanted()).start())
    ours = host.store.leases[FIRST]
    assert isinstance(ours, Lease)
    host.store.write_claim(claim_on_first())
    host.store.write_lease(replace(ours, has_ttl=False))
    host.watch()

    host.settle()

    assert not host.store.claims


def test_a_claim_is_not_answered_while_the_watch_is_cut_once_more() -> None:
    """What the store said before says nothing of the one that is there by now."""
    host = checking(Host(Store(), wanted()).start())
    host.store.write_claim(claim_on_first())
    host.watch()
    host.take(WatchLost("cut"))

    host.answer()

    assert host.requests == []


def test_another_s_lease_at_a_revision_that_only_we_had_seen_is_noticed() -> None:
    """The watch, which was behind, tells of it, and it looks like our own write."""
    host = Host(Store(), wanted()).start()
    host.state = replace(host.state, revision=0)
    host.store.lose_data(revision=0)
    checking(host)
    host.store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host.settle()

    assert not host.state.is_settled
    assert host.heard(Taken)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_watch_that_began_in_another_store_begins_again_where_the_listing_ends(is_open: bool) -> None:
    """What was written between the two would never be told; whether the watch had said that it is open."""
    store = Store()
    full = replace(NETWORK, subnet_max=NETWORK.subnet_min)
    store.revision = 10
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host = Host(store, replace(wanted(), network=full)).start()
    store.lose_data(revision=3)
    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Ordered(replace(wanted(), network=full, config_revision=1)))
    listed = store.perform(host.requests.pop(0))
    store.revision = 11
    if is_open:
        host.take(Seen((), store.revision))

    host.take(listed)

    assert host.seen == 3
    assert host.state.revision == 3


def test_a_listing_that_ends_where_the_watch_begins_shows_that_the_store_is_the_same() -> None:
    """A claim that was found in it waits for nothing more."""
    host = Host(Store(), wanted()).start()
    host.take(WatchLost("cut"))
    host.now = 23 * HOUR
    host.take(Woke())
    assert [type(request) for request in host.requests] == [List]
    host.take(Seen((), host.store.revision))
    host.store.write_claim(claim_on_first())
    host.seen = None  # the listing is faster

    host.settle()

    assert not host.store.claims
