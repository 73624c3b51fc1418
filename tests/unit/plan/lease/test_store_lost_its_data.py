"""A store that lost its data uses revisions a second time."""

from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

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


def test_a_store_that_lost_its_data_is_watched_from_its_present_revision() -> None:
    """The revisions of the store start again. A watch from the old revision would never deliver anything."""
    store = Store(revision=100)
    host = Host(store, wanted()).start()
    store.lose_data(revision=1)
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert host.seen is not None
    assert host.seen <= store.revision
    assert owner_of(store, FIRST) == "me"


def test_a_store_that_lost_its_data_and_has_grown_is_detected() -> None:
    """The watch could continue, and would never deliver the present content of the key."""
    store = Store()
    host = Host(store, wanted()).start()
    store.lose_data(revision=100)
    host.take(WatchLost("cut"))

    host.sleep(1)

    assert owner_of(store, FIRST) == "me"
    assert host.state.is_settled


def test_a_degraded_host_detects_a_store_that_lost_its_data_and_has_grown() -> None:
    store = Store()
    host = Host(store, wanted()).start()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.settle()
    store.lose_data(revision=100)
    host.take(WatchLost("cut"))

    host.sleep(1)

    assert owner_of(store, FIRST) == "me"
    assert host.state.is_settled


def test_the_store_is_not_checked_while_it_is_unreachable() -> None:
    """A failed check leads to a listing. If thousands of hosts checked the store, each host would list all
    leases.
    """
    host = Host(Store(), wanted()).start()
    host.take(WatchLost("no connection"))
    for _ in range(3):
        host.sleep(10)
        host.take(WatchLost("no connection"))

    assert host.requests == []


def test_a_failed_check_is_replaced_by_a_listing() -> None:
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


def test_an_unchanged_lease_is_only_checked() -> None:
    """There is no write, even if the watch has not delivered the later writes of the host yet."""
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


def test_changes_missed_before_the_loss_are_ignored() -> None:
    """The store lost its data twice. The conflicting lease was written between the two losses."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_rubbish(FIRST)
    host.watch()  # the host lists all leases; before the answer, another host takes the subnet
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.watch()
    host.settle()
    assert not host.state.is_settled
    store.lose_data(revision=1)
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert host.state.is_settled
    assert [type(report) for report in host.said].count(Taken) == 1


def test_a_renewal_from_before_the_loss_is_not_another_host() -> None:
    """The watch delivered the renewal, and its answer was lost with the store's data.

    The watch was cut, not compacted.
    """
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


def test_a_lease_of_another_host_at_a_repeated_revision_is_recognized() -> None:
    """A store that lost its data starts with revision 1 again, and another host wrote first."""
    store = Store()
    host = Host(store, wanted()).start()
    store.lose_data(revision=0)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert not host.state.is_settled
    assert host.heard(Taken)


def host_with_a_restored_store() -> Host:
    """Return a host with a cut watch. The store lost its data, and another host has the same subnet at the
    same revision.
    """
    store = Store()
    host = Host(store, wanted()).start()
    store.lose_data(revision=0)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    for _ in range(10):
        store.write_lease(lease(SECOND, "another", "192.168.50.2"))
    host.take(WatchLost("cut"))
    return host


def test_another_address_is_not_written_before_the_check_of_the_store() -> None:
    host = host_with_a_restored_store()

    host.take(Ordered(wanted(address="192.168.50.103")))
    host.sleep(1)

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_another_address_is_not_written_during_the_check() -> None:
    host = host_with_a_restored_store()
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), host.store.revision))
    assert [type(request) for request in host.requests] == [Check]

    host.take(Ordered(wanted(address="192.168.50.103")))
    host.settle()

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_a_lease_is_not_renewed_before_the_check_of_the_store() -> None:
    """When the renewal is due, all leases are listed: no lease expires because its host cannot watch."""
    host = host_with_a_restored_store()
    assert host.wake_at is not None

    host.seen, host.now = None, 23 * HOUR + 1
    host.take(Woke())
    host.settle()

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_another_address_is_written_after_the_check_of_the_store() -> None:
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
    """Cut a host's watch and open it again, so that the host checks its key."""
    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), host.store.revision))
    assert [type(request) for request in host.requests] == [Check]
    return host


def claim_on_first() -> Claim:
    return Claim(subnet=FIRST, owner="newcomer", public_ip=IPv4Address("192.168.50.102"))


def test_a_claim_is_not_answered_before_the_check_of_the_store() -> None:
    """The claim arrives with the first changes of the watch. The claimed lease may be another host's."""
    host = host_with_a_restored_store()
    host.store.write_claim(claim_on_first())

    host.sleep(1)

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)
    assert host.store.claims


def test_a_claim_is_answered_after_the_check_of_the_store() -> None:
    host = Host(Store(), wanted()).start()
    before = host.store.leases[FIRST].revision
    host.take(WatchLost("cut"))
    host.store.write_claim(claim_on_first())

    host.sleep(1)

    assert host.store.leases[FIRST].revision > before
    assert not host.store.claims
    assert [type(report) for report in host.said].count(SharedAddress) == 1


def test_a_claim_is_answered_after_a_failed_check_of_the_store() -> None:
    host = checking(Host(Store(), wanted()).start())
    host.store.write_claim(claim_on_first())
    host.watch()

    host.fail()
    host.sleep(1)

    assert not host.store.claims


def test_a_claim_is_answered_if_the_check_failed_during_a_renewal() -> None:
    """The renewal follows the changes of the watch, so the store has kept its data."""
    host = checking(Host(Store(), wanted()).start())
    host.store.write_lease(lease(FIRST, "me", "192.168.50.102", ttl=False))
    host.watch()
    host.fail()
    host.settle()

    host.store.write_claim(claim_on_first())
    host.settle()

    assert not host.store.claims


def test_a_claim_is_answered_if_the_lease_became_a_reservation() -> None:
    host = checking(Host(Store(), wanted()).start())
    ours = host.store.leases[FIRST]
    assert isinstance(ours, Lease)
    host.store.write_claim(claim_on_first())
    host.store.write_lease(replace(ours, has_ttl=False))
    host.watch()

    host.settle()

    assert not host.store.claims


def test_a_claim_is_not_answered_while_the_watch_is_cut_again() -> None:
    """Earlier answers of the store are not valid for the store after the loss."""
    host = checking(Host(Store(), wanted()).start())
    host.store.write_claim(claim_on_first())
    host.watch()
    host.take(WatchLost("cut"))

    host.answer()

    assert host.requests == []


def test_another_lease_at_the_known_revision_is_detected() -> None:
    """The delayed watch delivers the other lease, whose revision equals the revision of this host's write."""
    host = Host(Store(), wanted()).start()
    host.state = replace(host.state, revision=0)
    host.store.lose_data(revision=0)
    checking(host)
    host.store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host.settle()

    assert not host.state.is_settled
    assert host.heard(Taken)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_watch_from_before_the_loss_is_replaced_by_one_from_the_listing(is_open: bool) -> None:
    """The old watch would never deliver writes before its revision, even if the watch reported that it is
    open.
    """
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


def test_a_listing_at_the_start_of_the_watch_shows_an_intact_store() -> None:
    """A claim in the listing needs no further check."""
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
