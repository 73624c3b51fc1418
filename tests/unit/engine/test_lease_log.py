"""The store and the lease in the log and the status, from the reports of the lease protocol."""

import asyncio
from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from pyflannel.engine.condition import HostCondition, Inputs, LeaseCondition, StoreCondition
from pyflannel.engine.lease_log import LeaseLog, contested_text, exhausted_text, shared_text
from pyflannel.engine.pacing import LINES_A_MINUTE
from pyflannel.model.lease import Identity, Lease, LeaseAttributes
from pyflannel.model.lease_protocol import (
    Acquired,
    Contested,
    Exhausted,
    Held,
    Lost,
    Report,
    SharedAddress,
    StoreAway,
    StoreBack,
    Taken,
)
from pyflannel.model.network_config import NetworkConfig


class Host:
    """A host that receives reports, changes its condition and writes its log, as in the supervisor."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock
        self._log = LeaseLog(clock)
        identity, now = Identity(owner="us"), clock.now()
        self.condition = HostCondition(
            identity=identity,
            inputs=Inputs(owner=identity.owner),
            lease=LeaseCondition(since_s=now),
            store=StoreCondition(since_s=now),
        )

    @property
    def lease(self) -> LeaseCondition:
        return self.condition.lease

    @property
    def store(self) -> StoreCondition:
        return self.condition.store

    def report(self, report: Report) -> None:
        before, now = self.condition, self._clock.now()
        lease, store = before.lease.after(report, now), before.store.after(report, now)
        self.condition = replace(before, lease=lease, store=store)
        self._log.log_report(report, before)

    def see_owners(self, owners: list[str]) -> None:
        self.condition = replace(self.condition, lease=self.lease.after_owners(owners))


def test_the_last_cause_of_an_outage_is_kept() -> None:
    """The first attempt may only report a lost connection. The cause follows later."""
    host = Host(FakeClock())

    host.report(StoreAway("the connection was lost", 0.1))
    host.report(StoreAway("the certificate expired", 0.2))

    assert host.store.error == "the certificate expired"


def test_a_reachable_store_may_become_unreachable_again() -> None:
    host = Host(FakeClock())

    host.report(StoreAway("one", 0.1))
    host.report(StoreBack())
    is_away_between = host.store.is_away
    host.report(StoreAway("two", 0.1))

    assert not is_away_between
    assert host.store.is_away


def test_the_time_of_the_last_error_is_known() -> None:
    """The time is kept after the store is reachable again, so that an operator sees an old problem."""
    clock = FakeClock()
    host = Host(clock)

    host.report(StoreAway("one", 0.1))
    asyncio.run(clock.advance(5))
    host.report(StoreAway("two", 0.1))
    when = clock.now()
    asyncio.run(clock.advance(60))
    host.report(StoreBack())

    assert (host.store.error, host.store.error_s) == ("two", when)


def test_a_host_with_the_same_address_is_reported_until_its_lease_ends() -> None:
    """The other host acquires a lease after its claim. In the second case, the other host is a copy of this
    host and has no separate lease.
    """
    host = Host(FakeClock())

    host.report(SharedAddress(IPv4Network("10.1.2.0/24"), "them", "10.0.0.9", is_ours=True))
    host.see_owners([])
    assert host.lease.shared is not None
    host.see_owners(["others", "them"])
    assert host.lease.shared is not None
    host.see_owners(["others"])
    assert host.lease.shared is None

    host.report(SharedAddress(IPv4Network("10.1.2.0/24"), "a copy of this host", "10.0.0.9", is_ours=None))
    host.see_owners(["others"])
    assert host.lease.shared is not None


def test_the_asked_host_is_known_until_the_lease_is_held() -> None:
    """A host waits ten seconds for the answer of the holder, and its status shows the reason."""
    host = Host(FakeClock())
    subnet = IPv4Network("10.100.156.0/24")
    lease = Lease(
        subnet=subnet, attributes=LeaseAttributes(public_ip=IPv4Address("10.10.10.101")), has_ttl=True
    )

    host.report(Contested(lease))
    assert host.lease.contested is not None
    asked = contested_text(host.lease.contested)
    host.report(Acquired(Held(lease=lease)))

    assert asked == (
        "the host at 10.10.10.101, which holds 10.100.156.0/24 with this host's address or identity,"
        " whether it is alive"
    )
    assert host.lease.contested is None


def test_a_lost_lease_is_counted_once() -> None:
    """Without the counter, no scrape would show a lease that was lost and acquired again within a second."""
    host = Host(FakeClock())
    subnet = IPv4Network("10.100.156.0/24")
    lease = Lease(
        subnet=subnet, attributes=LeaseAttributes(public_ip=IPv4Address("10.10.10.101")), has_ttl=True
    )

    host.report(Acquired(Held(lease=lease)))
    assert host.lease.losses == 0
    host.report(Lost(lease))
    host.report(Lost(lease))
    host.report(Taken(lease, lease))
    assert host.lease.losses == 1
    host.report(Acquired(Held(lease=lease)))
    host.report(Taken(lease, lease))
    assert host.lease.losses == 2


def test_the_holder_of_a_lease_reports_that_it_keeps_the_lease(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The host with the same address claimed this host's lease, and has no known lease of its own."""
    host = Host(FakeClock())

    host.report(SharedAddress(IPv4Network("10.1.2.0/24"), "them", "10.0.0.9", is_ours=True))

    assert host.lease.shared is not None
    text = shared_text(host.lease.shared)
    assert "them at 10.0.0.9" in text
    assert "this host keeps lease 10.1.2.0/24" in text
    assert text in caplog.text


def test_the_host_that_asked_reports_the_lease_of_the_holder() -> None:
    host = Host(FakeClock())

    host.report(SharedAddress(IPv4Network("10.1.2.0/24"), "them", "10.0.0.9", is_ours=False))

    assert host.lease.shared is not None
    assert "the other host holds lease 10.1.2.0/24" in shared_text(host.lease.shared)


def test_an_exhausted_network_is_known_until_a_lease_is_held(caplog: pytest.LogCaptureFixture) -> None:
    """The host lists again every ten seconds. The log has one line for each full network."""
    host = Host(FakeClock())
    config = NetworkConfig(network=IPv4Network("10.1.0.0/16"), subnet_length=24)
    lease = Lease(
        subnet=IPv4Network("10.1.2.0/24"), attributes=LeaseAttributes(public_ip=IPv4Address("10.0.0.1"))
    )

    host.report(Exhausted(config))
    host.report(Exhausted(config))
    assert host.lease.exhausted is not None
    exhausted = exhausted_text(host.lease.exhausted)
    host.report(Acquired(Held(lease=lease)))

    assert exhausted == "no /24 is free in 10.1.0.0/16"
    assert host.lease.exhausted is None
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_any_number_of_claims_cannot_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A client of the store can claim this host's subnet repeatedly, each time with another owner."""

    async def check() -> None:
        clock = FakeClock()
        host, subnet = Host(clock), IPv4Network("10.100.15.0/24")
        for number in range(1000):
            host.report(SharedAddress(subnet, f"owner{number}", "192.168.50.9", is_ours=True))
            await clock.advance(0.01)

    asyncio.run(check())

    assert caplog.text.count("two living hosts share an address") == LINES_A_MINUTE
    assert len(caplog.records) == LINES_A_MINUTE + 1
