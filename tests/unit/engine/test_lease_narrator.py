"""What the log and the status say of store and lease, from what the lease protocol reports."""

import asyncio
from ipaddress import IPv4Address, IPv4Network

import pytest

from doubles.fake_clock import FakeClock
from pyflannel.engine.lease_narrator import LeaseNarrator
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_protocol import (
    Acquired,
    Contested,
    Exhausted,
    Held,
    Lost,
    SharedAddress,
    StoreAway,
    StoreBack,
    Taken,
)
from pyflannel.model.network_config import NetworkConfig


def test_a_store_that_is_away_is_logged_once_and_its_last_cause_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first try may say no more than that the connection was lost; why it stays so comes later."""
    narrator = LeaseNarrator(FakeClock())

    narrator.tell(StoreAway("the connection was lost", 0.1))
    narrator.tell(StoreAway("our certificate expired", 0.2))

    assert narrator.store_error == "our certificate expired"
    assert [record.getMessage() for record in caplog.records] == [
        "Store is away, trying again in 0.1 s, the data path stays: the connection was lost"
    ]


def test_a_store_that_came_back_is_logged_again_when_it_goes(caplog: pytest.LogCaptureFixture) -> None:
    narrator = LeaseNarrator(FakeClock())

    narrator.tell(StoreAway("one", 0.1))
    narrator.tell(StoreBack())
    is_away_between = narrator.is_store_away
    narrator.tell(StoreAway("two", 0.1))

    assert not is_away_between
    assert narrator.is_store_away
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_of_the_last_error_it_is_known_when_it_was() -> None:
    """Also when the store is back: whoever looks wants to know whether this is over."""
    clock = FakeClock()
    narrator = LeaseNarrator(clock)

    narrator.tell(StoreAway("one", 0.1))
    asyncio.run(clock.advance(5))
    narrator.tell(StoreAway("two", 0.1))
    when = clock.now()
    asyncio.run(clock.advance(60))
    narrator.tell(StoreBack())

    assert (narrator.store_error, narrator.store_error_at) == ("two", when)


def test_whom_it_shares_an_address_with_is_told_until_that_host_is_gone() -> None:
    """Its lease comes after its claim, and goes with it; of a copy of ourselves there is none."""
    narrator = LeaseNarrator(FakeClock())

    narrator.tell(SharedAddress(IPv4Network("10.1.2.0/24"), "them", "10.0.0.9", is_ours=True))
    narrator.see_owners([])
    assert narrator.shared is not None
    narrator.see_owners(["others", "them"])
    assert narrator.shared is not None
    narrator.see_owners(["others"])
    assert narrator.shared is None

    narrator.tell(SharedAddress(IPv4Network("10.1.2.0/24"), "a copy of this host", "10.0.0.9", is_ours=None))
    narrator.see_owners(["others"])
    assert narrator.shared is not None


def test_whom_it_asks_is_known_until_the_lease_is_held() -> None:
    """A host waits ten seconds for that answer, and whoever looks meanwhile wants to know why."""
    narrator = LeaseNarrator(FakeClock())
    subnet = IPv4Network("10.100.156.0/24")
    lease = Lease(
        subnet=subnet, attributes=LeaseAttributes(public_ip=IPv4Address("10.10.10.101")), has_ttl=True
    )

    narrator.tell(Contested(lease))
    asked = narrator.asked
    narrator.tell(Acquired(Held(lease=lease)))

    assert asked == (
        "the host at 10.10.10.101, which holds 10.100.156.0/24 with our address or identity, whether it lives"
    )
    assert narrator.asked is None


def test_a_lost_lease_is_counted_once_whatever_follows() -> None:
    """Lost and taken again within a second, no scrape would see it otherwise."""
    narrator = LeaseNarrator(FakeClock())
    subnet = IPv4Network("10.100.156.0/24")
    lease = Lease(
        subnet=subnet, attributes=LeaseAttributes(public_ip=IPv4Address("10.10.10.101")), has_ttl=True
    )

    narrator.tell(Acquired(Held(lease=lease)))
    assert narrator.losses == 0
    narrator.tell(Lost(lease))
    narrator.tell(Lost(lease))
    narrator.tell(Taken(lease, lease))
    assert narrator.losses == 1
    narrator.tell(Acquired(Held(lease=lease)))
    narrator.tell(Taken(lease, lease))
    assert narrator.losses == 2


def test_the_holder_of_a_lease_does_not_call_it_that_of_the_host_that_asked(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The host that shares our address asked for our lease; it has none that we know of."""
    narrator = LeaseNarrator(FakeClock())

    narrator.tell(SharedAddress(IPv4Network("10.1.2.0/24"), "them", "10.0.0.9", is_ours=True))

    assert narrator.shared is not None
    assert "them at 10.0.0.9" in narrator.shared
    assert "this host keeps lease 10.1.2.0/24" in narrator.shared
    assert narrator.shared in caplog.text


def test_the_host_that_asked_names_the_lease_of_the_other() -> None:
    narrator = LeaseNarrator(FakeClock())

    narrator.tell(SharedAddress(IPv4Network("10.1.2.0/24"), "them", "10.0.0.9", is_ours=False))

    assert narrator.shared is not None
    assert "the other host holds lease 10.1.2.0/24" in narrator.shared


def test_an_exhausted_network_is_known_until_a_lease_is_held(caplog: pytest.LogCaptureFixture) -> None:
    """The host looks again every ten seconds; the log has one line for each network that is full."""
    narrator = LeaseNarrator(FakeClock())
    config = NetworkConfig(network=IPv4Network("10.1.0.0/16"), subnet_length=24)
    lease = Lease(
        subnet=IPv4Network("10.1.2.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("10.0.0.1"))
    )

    narrator.tell(Exhausted(config))
    narrator.tell(Exhausted(config))
    exhausted = narrator.exhausted
    narrator.tell(Acquired(Held(lease=lease)))

    assert exhausted == "no free /24 is left in 10.1.0.0/16"
    assert narrator.exhausted is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]
