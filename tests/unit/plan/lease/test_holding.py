"""A lease is renewed, changed, lost and taken again; its subnet stays."""

from dataclasses import replace
from ipaddress import IPv4Address

from doubles.performed_step import FIRST, HOUR, SECOND, THIRD, Host, Store, lease, owner_of, wanted
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import (
    Failed,
    Held,
    Lost,
    Ordered,
    PutLease,
    Renewed,
    Started,
    Taken,
    Woke,
)


def test_a_lease_is_renewed_before_it_ends() -> None:
    """A margin before its end, for ever."""
    store = Store()
    host = Host(store, wanted()).start()

    host.sleep(22.9 * HOUR)
    assert not host.heard(Renewed)
    host.sleep(0.2 * HOUR)

    assert host.heard(Renewed)
    assert host.state.held is not None
    assert host.state.held.expires_at == 23 * HOUR + 24 * HOUR


def test_a_renewal_whose_answer_was_lost_is_made_again() -> None:
    """It took effect, but nobody knows when it ends; the store's revision is no longer the one we knew."""
    store = Store()
    host = Host(store, wanted()).start()
    host.now = 23 * HOUR
    host.take(Woke())
    put = host.requests.pop()
    assert isinstance(put, PutLease)
    store.perform(put)
    host.take(Failed(put, "timed out"))

    host.sleep(10)
    host.settle()

    assert host.state.held is not None
    assert host.state.held.lease.revision == store.revision
    assert host.state.held.expires_at is not None
    assert host.state.held.expires_at > 46 * HOUR


def test_a_lost_lease_is_taken_again_on_the_same_subnet() -> None:
    """Deleted by somebody: the host keeps its subnet, and the store names it again."""
    store = Store()
    host = Host(store, wanted()).start()
    store.delete_lease(FIRST)

    host.settle()

    assert host.subnet == FIRST
    assert owner_of(store, FIRST) == "me"
    assert host.heard(Lost)


def test_rubbish_at_our_key_is_written_over() -> None:
    """It names nobody; we live there."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_rubbish(FIRST)

    host.settle()

    assert owner_of(store, FIRST) == "me"


def test_a_lease_lost_to_another_is_left_to_it_and_the_host_runs_on() -> None:
    """Degraded, not renumbered; taken back as soon as it is free."""
    store = Store()
    host = Host(store, wanted()).start()
    store.delete_lease(FIRST)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host.settle()

    assert host.subnet == FIRST
    assert owner_of(store, FIRST) == "other"
    assert host.heard(Taken)
    store.delete_lease(FIRST)
    host.settle()
    assert owner_of(store, FIRST) == "me"
    assert host.state.is_settled


def test_a_host_that_is_told_to_renumber_does() -> None:
    """--on-subnet-lost=renumber."""
    store = Store()
    host = Host(store, wanted(renumbers=True)).start()
    store.delete_lease(FIRST)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host.settle()

    assert host.subnet == SECOND


def test_a_deletion_that_overtakes_the_answer_of_our_write_is_not_missed() -> None:
    """The watch shows our write and its deletion before the store's answer arrives."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    put = host.requests.pop()
    answer = store.perform(put)
    store.delete_lease(FIRST)
    host.watch()
    host.take(answer)

    host.settle()

    assert owner_of(store, FIRST) == "me"
    assert host.heard(Lost)


def test_a_change_of_address_is_published_and_the_subnet_stays() -> None:
    """By an order."""
    store = Store()
    host = Host(store, wanted()).start()

    host.take(Ordered(wanted(address="192.168.50.200")))
    host.settle()

    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert standing.attributes.public_ip == IPv4Address("192.168.50.200")


def test_a_lease_that_is_ours_again_ends_the_degradation() -> None:
    """An operator wrote it back over the other's, without deleting that first."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.settle()
    assert not host.state.is_settled

    store.write_lease(lease(FIRST, "me", "192.168.50.102"))
    host.settle()

    assert host.state.is_settled


def test_a_host_that_started_without_its_store_publishes_what_it_runs_on() -> None:
    """The lease came from a file: nobody knows when it ends, so it is written anew."""
    store = Store()
    standing = store.write_lease(lease(THIRD, "me", "192.168.50.102"))
    host = Host(store, wanted(), held=Held(lease=replace(standing, revision=0))).start()

    assert host.subnet == THIRD
    assert host.state.is_settled
    assert host.state.held is not None
    assert host.state.held.expires_at is not None


def test_a_host_that_started_without_its_store_leaves_a_subnet_that_was_given_away() -> None:
    """It runs on, degraded."""
    store = Store()
    store.write_lease(lease(THIRD, "other", "192.168.50.1"))
    host = Host(store, wanted(), held=Held(lease=lease(THIRD, "me", "192.168.50.102"))).start()

    assert host.subnet == THIRD
    assert owner_of(store, THIRD) == "other"
    assert host.heard(Taken)
