"""Leases without an expiry."""

from msgspec.structs import replace

from doubles.performed_step import FIRST, HOUR, THIRD, Host, Store, lease, owner_of, wanted
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import Woke


def test_a_reservation_never_gets_a_ttl() -> None:
    """A reservation is written without a TTL at its first use, and is never renewed."""
    store = Store()
    store.write_lease(lease(THIRD, None, "192.168.50.102", ttl=False))

    host = Host(store, wanted()).start()
    host.sleep(48 * HOUR)

    assert host.subnet == THIRD
    standing = store.leases[THIRD]
    assert isinstance(standing, Lease)
    assert not standing.has_ttl
    assert standing.revision == 2  # this host has written the lease once, with its owner


def test_a_lease_that_the_operator_makes_a_reservation_remains_a_reservation() -> None:
    """The documented way to reserve a subnet is to write the value again without a TTL."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_lease(lease(FIRST, None, "192.168.50.102", ttl=False))

    host.settle()
    host.sleep(48 * HOUR)

    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert not standing.has_ttl
    assert owner_of(store, FIRST) == "me"


def test_a_reservation_made_during_a_renewal_is_detected() -> None:
    """The watch delivers the renewal and the operator's copy of the renewed lease before the answer to the
    renewal arrives.
    """
    store = Store()
    host = Host(store, wanted()).start()
    host.now = 23 * HOUR
    host.take(Woke())
    answer = store.perform(host.requests.pop())
    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    store.write_lease(replace(standing, has_ttl=False))

    host.watch()
    host.take(answer)
    host.settle()

    assert host.state.held is not None
    assert host.state.held.expires_at is None
    assert host.state.held.lease.revision == store.revision
