"""Another network config while a host acquires a lease."""

from ipaddress import IPv4Address

from msgspec.structs import replace

from doubles.performed_step import FIRST, NETWORK, SECOND, Host, Store, lease, wanted
from pyflannel.model.lease_protocol import Conflicted, Ordered, Started


def test_a_subnet_that_the_config_no_longer_admits_is_not_used() -> None:
    """The config changed during the write. The lease is not in use yet, so the host takes another lease."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    changed = replace(NETWORK, subnet_min=IPv4Address("10.100.2.0"))

    host.take(Ordered(replace(wanted(), network=changed)))
    host.settle()

    assert host.subnet == SECOND
    assert list(store.leases) == [SECOND]


def test_a_listing_that_is_older_than_the_config_is_not_used() -> None:
    """Leases that other hosts took with the previous config may overlap the chosen subnet."""
    store = Store(revision=3)
    host = Host(store, replace(wanted(), config_revision=4))
    host.take(Started())
    host.answer()
    assert not host.requests

    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.sleep(1)

    assert host.subnet == SECOND


def test_a_write_refused_by_a_new_config_is_retried_when_the_config_arrives() -> None:
    """The config may arrive before or after the refusal. There is no retry until then."""
    for comes_first in (False, True):
        host = Host(Store(revision=4), replace(wanted(), config_revision=3))
        host.take(Started())
        host.answer()
        put = host.requests.pop()
        news = Ordered(replace(wanted(), config_revision=4))

        for event in (news, Conflicted(put, None)) if comes_first else (Conflicted(put, None), news):
            assert not host.requests
            host.take(event)
        host.sleep(0)
        host.settle()

        assert host.subnet == FIRST
