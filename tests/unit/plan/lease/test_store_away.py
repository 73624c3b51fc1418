"""A store that does not answer, or has compacted its history."""

from ipaddress import IPv4Address

from doubles.performed_step import FIRST, Host, Store, owner_of, wanted
from pyflannel.model.lease import Claim
from pyflannel.model.lease_protocol import DeleteClaim, Failed, Started, StoreAway, StoreBack, WatchLost, Woke
from pyflannel.plan.lease.holding import RETRY_MAX_S


def test_failing_writes_are_retried_with_growing_pauses() -> None:
    """The pauses also grow if the listings between the writes succeed, until the awaited answer arrives."""
    host = Host(Store(), wanted())
    host.take(Started())
    for _ in range(8):
        host.answer()
        host.take(Failed(host.requests.pop(), "timed out"))
        assert host.wake_at is not None
        host.now = host.wake_at
        host.take(Woke())

    pauses = [said.retry_in_s for said in host.said if isinstance(said, StoreAway)]
    said_back = host.heard(StoreBack)
    host.settle()

    assert pauses == sorted(pauses)
    assert pauses[-1] == RETRY_MAX_S
    assert not said_back
    assert host.heard(StoreBack)


def test_an_outage_of_more_than_the_ttl_has_no_cost() -> None:
    """The lease expires meanwhile. The same subnet is acquired when the store is reachable again."""
    store = Store()
    host = Host(store, wanted(ttl_s=60)).start()
    host.take(WatchLost("connection refused"))
    store.delete_lease(FIRST)
    host.seen = None  # nothing is delivered while the store is unreachable

    host.sleep(120)
    host.settle()

    assert host.subnet == FIRST
    assert owner_of(store, FIRST) == "me"


def test_a_compaction_leads_to_a_listing_and_not_to_an_empty_network() -> None:
    """The listing shows the missed changes."""
    store = Store()
    host = Host(store, wanted()).start()
    store.delete_lease(FIRST)
    store.log.clear()
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert owner_of(store, FIRST) == "me"


def test_an_unchanged_lease_survives_compaction_without_a_write() -> None:
    """Ten thousand hosts that list again must not write ten thousand leases."""
    store = Store()
    host = Host(store, wanted()).start()
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert store.revision == 1
    assert host.state.is_settled


def test_a_failed_write_without_a_waiting_host_is_not_an_outage() -> None:
    """The host would not retry the write, and therefore not notice that the store is reachable again."""
    store = Store()
    host = Host(store, wanted()).start()

    host.take(
        Failed(
            DeleteClaim(Claim(subnet=FIRST, owner="x", public_ip=IPv4Address("192.168.50.102"))), "timed out"
        )
    )

    assert not host.heard(StoreAway)
    assert host.state.failures == 0


def test_the_pause_grows_while_watches_do_not_stay_open() -> None:
    """The store answers between the watches, and counts as reachable each time."""
    host = Host(Store(), wanted()).start()

    for was_steady in (True, False, False, False, True):
        host.take(WatchLost("cut", was_steady=was_steady))
        host.watch()
        assert host.wake_at is not None
        host.now = host.state.watch_at or host.now
        host.take(Woke())
        host.watch()

    pauses = [said.retry_in_s for said in host.said if isinstance(said, StoreAway)]
    assert pauses[0] == pauses[1] == pauses[4]
    assert pauses[1] < pauses[2] < pauses[3]


def test_a_due_renewal_is_written_after_the_listing() -> None:
    """The renewal does not wait for a watch. If no watch opens, each wait would cause another listing."""
    store = Store()
    host = Host(store, wanted(ttl_s=60)).start()
    host.take(WatchLost("refused", was_steady=False))
    host.now = 40.0
    host.take(Woke())
    host.take(WatchLost("refused", was_steady=False))

    host.answer()
    host.take(WatchLost("refused", was_steady=False))
    host.answer()

    assert store.revision == 2
    assert host.state.is_settled
    assert not host.requests
