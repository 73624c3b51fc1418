"""A lease is renewed, changed, lost and acquired again. The subnet of the lease does not change."""

from ipaddress import IPv4Address

from msgspec.structs import replace

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
    """The renewal is always the same time before the expiry."""
    store = Store()
    host = Host(store, wanted()).start()

    host.sleep(22.9 * HOUR)
    assert not host.heard(Renewed)
    host.sleep(0.2 * HOUR)

    assert host.heard(Renewed)
    assert host.state.held is not None
    assert host.state.held.expires_at == 23 * HOUR + 24 * HOUR


def test_a_renewal_with_a_lost_answer_is_repeated() -> None:
    """The renewal took effect, but the host knows neither the expiry nor the revision of the lease."""
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


def test_a_lost_lease_is_acquired_again_on_the_same_subnet() -> None:
    """Another program deleted the lease: the host keeps its subnet, and writes its lease again."""
    store = Store()
    host = Host(store, wanted()).start()
    store.delete_lease(FIRST)

    host.settle()

    assert host.subnet == FIRST
    assert owner_of(store, FIRST) == "me"
    assert host.heard(Lost)


def test_an_invalid_value_at_the_own_key_is_overwritten() -> None:
    """The value names no host, and this host uses the subnet."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_rubbish(FIRST)

    host.settle()

    assert owner_of(store, FIRST) == "me"


def test_a_host_keeps_running_after_it_lost_its_lease_to_another() -> None:
    """The host is degraded, and keeps its subnet. The host acquires the lease again as soon as the subnet is
    free.
    """
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


def test_a_host_with_the_option_renumbers() -> None:
    """The option is --on-subnet-lost=renumber."""
    store = Store()
    host = Host(store, wanted(renumbers=True)).start()
    store.delete_lease(FIRST)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host.settle()

    assert host.subnet == SECOND


def test_a_deletion_before_the_answer_to_a_write_is_not_missed() -> None:
    """The watch delivers the write and its deletion before the answer arrives."""
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


def test_a_change_of_address_is_published_and_the_subnet_is_kept() -> None:
    """The host writes the new address to its lease."""
    store = Store()
    host = Host(store, wanted()).start()

    host.take(Ordered(wanted(address="192.168.50.200")))
    host.settle()

    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert standing.attributes.public_ip == IPv4Address("192.168.50.200")


def test_a_returned_lease_ends_the_degradation() -> None:
    """An operator overwrote the other host's lease without deleting it first."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.settle()
    assert not host.state.is_settled

    store.write_lease(lease(FIRST, "me", "192.168.50.102"))
    host.settle()

    assert host.state.is_settled


def test_a_host_that_started_without_its_store_publishes_its_lease() -> None:
    """The lease was read from a file: the expiry of the lease is unknown, so the lease is written again."""
    store = Store()
    standing = store.write_lease(lease(THIRD, "me", "192.168.50.102"))
    host = Host(store, wanted(), held=Held(lease=replace(standing, revision=0))).start()

    assert host.subnet == THIRD
    assert host.state.is_settled
    assert host.state.held is not None
    assert host.state.held.expires_at is not None


def test_a_host_that_started_without_its_store_degrades_if_its_subnet_is_taken() -> None:
    """The host continues to run, and is degraded."""
    store = Store()
    store.write_lease(lease(THIRD, "other", "192.168.50.1"))
    host = Host(store, wanted(), held=Held(lease=lease(THIRD, "me", "192.168.50.102"))).start()

    assert host.subnet == THIRD
    assert owner_of(store, THIRD) == "other"
    assert host.heard(Taken)
