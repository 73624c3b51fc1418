"""Hosts that share an address or an identity, and earlier identities of a host."""

from ipaddress import IPv4Address

from doubles.performed_step import FIRST, HOUR, SECOND, THIRD, Host, Store, lease, owner_of, wanted
from pyflannel.model.lease import Claim, Lease
from pyflannel.model.lease_protocol import (
    Contested,
    Ordered,
    Reidentify,
    SharedAddress,
    Started,
    Taken,
    WatchLost,
    Woke,
)


def test_a_reinstalled_host_takes_over_its_old_lease_without_an_answer() -> None:
    """The host has another identity, and the same machine-id and address, like a clone of a running host."""
    store = Store()
    store.write_lease(lease(THIRD, "old-self", "192.168.50.102"))
    host = Host(store, wanted()).start()
    host.sleep(9.9)
    assert host.subnet is None

    host.sleep(0.2)

    assert host.subnet == THIRD
    assert owner_of(store, THIRD) == "me"


def test_a_running_owner_keeps_its_lease_and_the_new_host_takes_another() -> None:
    """Both hosts report that they share an address, and name each other."""
    store = Store()
    owner = Host(store, wanted("owner")).start()
    newcomer = Host(store, wanted("newcomer")).start()
    assert newcomer.heard(Contested)

    owner.settle()
    newcomer.settle()

    assert owner.subnet == FIRST
    assert newcomer.subnet == SECOND
    assert owner_of(store, FIRST) == "owner"
    assert not store.claims
    assert any(isinstance(r, SharedAddress) and r.other == "newcomer" for r in owner.said)
    assert any(isinstance(r, SharedAddress) and r.other == "owner" for r in newcomer.said)


def test_a_dead_owner_loses_its_lease_after_the_claim_expired() -> None:
    """The owner does not answer for ten seconds."""
    store = Store()
    store.write_lease(lease(FIRST, "dead", "192.168.50.102"))
    newcomer = Host(store, wanted("newcomer")).start()
    newcomer.sleep(9.9)
    assert newcomer.subnet is None

    newcomer.sleep(0.2)

    assert newcomer.subnet == FIRST
    assert owner_of(store, FIRST) == "newcomer"


def test_an_owner_that_answers_at_the_last_moment_keeps_its_lease() -> None:
    """The owner wrote its lease again, so the take-over fails, although the claimant got no answer."""
    store = Store()
    owner = Host(store, wanted("owner")).start()
    newcomer = Host(store, wanted("newcomer")).start()
    owner.settle()
    newcomer.seen = None  # the watch of the newcomer hangs

    newcomer.sleep(10.1)

    assert owner_of(store, FIRST) == "owner"
    assert newcomer.subnet != FIRST


def test_a_claim_from_before_a_new_listing_is_answered() -> None:
    """The owner's watch was lost by a compaction while the claim was written."""
    store = Store()
    owner = Host(store, wanted("owner")).start()
    Host(store, wanted("newcomer")).start()
    store.log.clear()
    owner.take(WatchLost("compacted", is_compacted=True))

    owner.settle()

    assert not store.claims


def test_a_clone_takes_a_new_identity() -> None:
    """A running host with the same identity and another address answers."""
    store = Store()
    first = Host(store, wanted("twin", "192.168.50.102")).start()
    clone = Host(store, wanted("twin", "192.168.50.103")).start()
    first.settle()
    clone.settle()
    assert clone.heard(Reidentify)

    clone.take(Ordered(wanted("own", "192.168.50.103")))
    clone.settle()

    assert owner_of(store, FIRST) == "twin"
    assert clone.subnet == SECOND


def test_a_lease_with_the_old_address_is_taken_over_without_an_answer() -> None:
    """The host moved to another address while its daemon was down."""
    store = Store()
    store.write_lease(lease(FIRST, "me", "192.168.50.7"))
    host = Host(store, wanted()).start()

    host.sleep(10.1)

    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert host.subnet == FIRST
    assert standing.attributes.public_ip == IPv4Address("192.168.50.102")


def test_a_claim_that_was_never_written_has_no_effect() -> None:
    """The store was slow and the claim was not written, so the missing answer has no meaning."""
    store = Store()
    owner = Host(store, wanted("owner")).start()
    newcomer = Host(store, wanted("newcomer"))
    newcomer.take(Started())
    newcomer.answer()

    newcomer.now = 10.1
    newcomer.take(Woke())
    newcomer.settle()

    assert owner_of(store, FIRST) == "owner"
    owner.settle()
    newcomer.sleep(11)
    owner.settle()
    newcomer.settle()
    assert newcomer.subnet == SECOND


def test_the_time_to_answer_starts_when_the_claim_is_known_to_be_written() -> None:
    """The time does not start at the request."""
    store = Store()
    store.write_lease(lease(FIRST, "dead", "192.168.50.102"))
    newcomer = Host(store, wanted("newcomer"))
    newcomer.take(Started())
    newcomer.answer()
    newcomer.now = 9.0
    newcomer.settle()

    newcomer.sleep(9.9)

    assert newcomer.subnet is None
    newcomer.sleep(0.2)
    assert newcomer.subnet == FIRST


def test_an_owner_that_is_renewing_when_it_is_asked_renews_again() -> None:
    """The claimant may mistake the renewal in progress for an old write, and find no answer to its claim."""
    store = Store()
    owner = Host(store, wanted("owner")).start()
    owner.now = 23 * HOUR
    owner.take(Woke())
    renewal = owner.requests.pop()
    answer = store.perform(renewal)
    newcomer = Host(store, wanted("newcomer")).start()
    newcomer.seen = None  # the watch of the newcomer hangs

    owner.watch()
    owner.take(answer)
    owner.settle()
    newcomer.sleep(10.1)

    assert owner_of(store, FIRST) == "owner"


def test_a_claim_is_void_after_the_watch_was_cut() -> None:
    """The store lost the claim with its data, and the owner wrote its lease again at the same revision."""
    store = Store()
    Host(store, wanted("owner")).start()
    newcomer = Host(store, wanted("newcomer")).start()
    assert newcomer.heard(Contested)
    store.claims.clear()
    newcomer.take(WatchLost("cut"))

    newcomer.sleep(11)

    assert owner_of(store, FIRST) == "owner"
    assert store.claims


def test_a_host_with_a_changed_address_does_not_take_the_contested_lease() -> None:
    """The host asked whether the holder of its address runs, and then got another address."""
    store = Store()
    store.write_lease(lease(FIRST, "dead", "192.168.50.102"))
    newcomer = Host(store, wanted("newcomer")).start()

    newcomer.take(Ordered(wanted("newcomer", "192.168.50.103")))
    newcomer.settle()
    newcomer.sleep(11)

    assert owner_of(store, FIRST) == "dead"
    assert newcomer.subnet == SECOND


def test_two_hosts_with_one_identity_do_not_overwrite_each_other_forever() -> None:
    """The copy took over the lease while its owner slept. The owner asks the copy before the owner takes the
    lease back.
    """
    store = Store()
    first = Host(store, wanted("twin", "192.168.50.102")).start()
    clone = Host(store, wanted("twin", "192.168.50.103")).start()
    clone.sleep(11)
    assert clone.subnet == FIRST

    for _ in range(5):
        first.settle()
        clone.settle()

    assert first.heard(Reidentify)
    first.take(Ordered(wanted("own", "192.168.50.102")))
    first.settle()
    assert first.subnet == FIRST
    assert not first.state.is_settled
    assert clone.state.is_settled


def test_the_previous_subnet_has_precedence_over_a_lease_of_an_earlier_identity() -> None:
    """The earlier identity is from before a reinstallation. The lease of the present identity expired."""
    store = Store()
    store.write_lease(lease(FIRST, "old-self", "192.168.50.102"))

    host = Host(store, wanted(previous=THIRD)).start()

    assert host.subnet == THIRD
    assert owner_of(store, FIRST) == "old-self"


def test_a_clone_with_the_machine_id_of_a_running_host_takes_another_subnet() -> None:
    """The clone has the same machine-id and address, and an empty state directory."""
    store = Store()
    owner = Host(store, wanted("owner")).start()
    clone = Host(store, wanted("clone")).start()

    owner.settle()
    clone.settle()

    assert owner_of(store, FIRST) == "owner"
    assert (owner.subnet, clone.subnet) == (FIRST, SECOND)
    assert owner.state.is_settled
    assert any(isinstance(r, SharedAddress) and r.other == "clone" for r in owner.said)
    assert any(isinstance(r, SharedAddress) and r.other == "owner" for r in clone.said)


def resumed_twice() -> tuple[Store, Host, Host]:
    """Return two copies that continue from one snapshot of a host with a lease, and their store."""
    store = Store()
    first = Host(store, wanted("twin")).start()
    second = Host(store, wanted("twin"), held=first.held, seen=first.seen, wake_at=first.wake_at)
    second.state = first.state
    return store, first, second


def settle_together(*hosts: Host) -> None:
    """Deliver answers and changes to the hosts in turn, until none remains."""
    for _ in range(100):
        busy = [host for host in hosts if host.requests or host.is_behind]
        if not busy:
            return
        for host in busy:
            if host.requests:
                host.answer()
            else:
                host.watch()
    raise AssertionError("the hosts overwrite each other forever")


def test_two_copies_of_a_running_host_do_not_overwrite_each_other_forever() -> None:
    """Two copies of a snapshot have the same identity, address, lease and revision. One copy renews its
    lease.
    """
    store, first, second = resumed_twice()
    first.now = second.now = 23 * HOUR

    first.take(Woke())
    settle_together(first, second)

    assert owner_of(store, FIRST) == "twin"


def test_two_copies_of_a_running_host_that_renew_together_both_report_the_copy() -> None:
    """One copy keeps the lease. The other copy continues to run, is degraded, and has a new identity."""
    store, first, second = resumed_twice()
    first.now = second.now = 23 * HOUR

    first.take(Woke())
    second.take(Woke())
    settle_together(first, second)
    loser, keeper = (first, second) if first.heard(Reidentify) else (second, first)
    loser.take(Ordered(wanted("own")))
    settle_together(first, second)

    assert owner_of(store, FIRST) == "twin"
    assert keeper.state.is_settled
    assert not loser.state.is_settled
    assert (keeper.subnet, loser.subnet) == (FIRST, FIRST)
    assert keeper.heard(SharedAddress)
    assert loser.heard(SharedAddress)
    assert loser.heard(Taken)


def test_a_copy_with_the_identity_and_address_of_a_running_host_yields() -> None:
    """Both hosts have the same identity and address. The host that has held the lease for longer keeps the
    lease.
    """
    store = Store()
    owner = Host(store, wanted("twin")).start()
    owner.now = 3.0
    copy = Host(store, wanted("twin"), now=3.0)

    copy.take(Started())
    settle_together(owner, copy)
    assert copy.heard(Reidentify)
    copy.take(Ordered(wanted("own")))
    settle_together(owner, copy)
    store.delete_claim(FIRST)  # at the end of its TTL
    owner.sleep(10.1)
    copy.sleep(10.1)
    settle_together(owner, copy)

    assert owner_of(store, FIRST) == "twin"
    assert owner.state.is_settled
    assert owner.heard(SharedAddress)
    assert not copy.state.is_settled
    assert copy.heard(Taken)


def test_a_renewal_with_a_lost_answer_is_not_another_host() -> None:
    """The renewal took effect, and the next attempt finds this host's write at the key."""
    store = Store()
    host = Host(store, wanted("me")).start()
    host.now = 23 * HOUR
    host.take(Woke())
    renewal = host.requests[0]
    host.fail()
    store.perform(renewal)

    host.watch()
    host.sleep(10)
    host.settle()

    assert host.state.is_settled
    assert not host.heard(SharedAddress)
    assert not host.heard(Contested)


def test_a_claim_on_an_earlier_lease_is_not_a_shared_address() -> None:
    """The earlier lease expired while the claim was written. The holder of the subnet has another address."""
    store = Store()
    host = Host(store, wanted("me")).start()

    store.write_claim(Claim(subnet=FIRST, owner="other", public_ip=IPv4Address("192.168.50.7")))
    host.settle()

    assert not store.claims
    assert host.state.is_settled
    assert not host.heard(SharedAddress)


def test_a_late_write_of_the_previous_run_is_not_another_host() -> None:
    """The write takes effect after this run has read the old lease, and before its first write."""
    store = Store()
    last = Host(store, wanted("me")).start()
    last.now = 23 * HOUR
    last.take(Woke())
    host = Host(store, wanted("me"), held=last.state.held, now=last.now).start()
    assert host.state.is_settled

    store.perform(last.requests[0])
    host.settle()

    assert host.state.is_settled
    assert not host.heard(SharedAddress)
