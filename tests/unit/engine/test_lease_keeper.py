"""The lease keeper on a store and a clock in memory performs its decisions and survives faults."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.lease_log import SKIPPED_KEPT
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.pacing import LINES_A_MINUTE, READ_AT_ONCE
from pyflannel.model import lease_set
from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_protocol import Acquired, Lost, Report, SharedAddress, StoreAway, StoreBack, Wanted
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.store_record import Delete, Put, Record, Written
from pyflannel.wire.lease_record import lease_key, lease_value

NETWORK = NetworkConfig(
    network=IPv4Network("10.100.0.0/16"),
    subnet_length=24,
    subnet_min=IPv4Address("10.100.1.0"),
    subnet_max=IPv4Address("10.100.255.0"),
)


class Bench:
    """One store and clock, and the keepers of several hosts."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.reports: dict[str, list[Report]] = {}
        self.stores: dict[str, FakeStore] = {}

    def keeper(self, owner: str, address: str) -> LeaseKeeper:
        self.reports[owner] = []
        self.stores[owner] = self.store.client()
        return LeaseKeeper(
            store=self.stores[owner],
            clock=self.clock,
            draw=lambda n: n // 2,
            store_log=StoreLog(self.clock),
            wanted=Wanted(
                network=NETWORK,
                attributes=LeaseAttributes(public_ip=IPv4Address(address), owner=owner),
                ttl_s=60,
            ),
            held=None,
            report=self.reports[owner].append,
            leases_changed=lambda leases: None,
            reidentify=lambda attributes: replace(attributes, owner=f"{owner}-again"),
        )

    def heard(self, owner: str, kind: type[Report]) -> bool:
        return any(isinstance(report, kind) for report in self.reports[owner])

    async def leases(self) -> dict[str, Record]:
        return {record.key: record for record in (await self.store.list("subnets/")).records}


@asynccontextmanager
async def running(bench: Bench, *keepers: LeaseKeeper) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(keeper.run()) for keeper in keepers]
    try:
        await bench.clock.advance(2)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run(check: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(check())


def test_hosts_that_start_together_get_different_subnets_and_know_each_other() -> None:
    """All hosts draw the same random numbers. One host gets each subnet, and the other hosts choose again."""

    async def check() -> None:
        bench = Bench()
        keepers = [bench.keeper(f"host{n}", f"192.168.50.{n}") for n in range(1, 13)]
        async with running(bench, *keepers):
            await bench.clock.advance(60)

            subnets = {keeper.state.held.lease.subnet for keeper in keepers if keeper.state.held}
            assert len(subnets) == 12
            assert all({lease.subnet for lease in keeper.leases} == subnets for keeper in keepers)

    run(check)


def test_a_host_waits_for_a_store_that_is_unreachable_at_the_start() -> None:
    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        bench.stores["me"].is_unreachable = True
        async with running(bench, keeper):
            await bench.clock.advance(20)
            assert bench.heard("me", StoreAway)
            assert not bench.heard("me", Acquired)

            bench.stores["me"].is_unreachable = False
            await bench.clock.advance(6)

            assert bench.heard("me", StoreBack)
            assert bench.heard("me", Acquired)

    run(check)


def test_an_outage_longer_than_the_ttl_loses_nothing() -> None:
    """The lease expired meanwhile: the same subnet is acquired again."""

    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        async with running(bench, keeper):
            held = keeper.state.held
            assert held is not None
            bench.stores["me"].is_unreachable = True
            await bench.clock.advance(100)
            assert await bench.leases() == {}

            bench.stores["me"].is_unreachable = False
            await bench.clock.advance(6)

            assert keeper.state.held is not None
            assert keeper.state.held.lease.subnet == held.lease.subnet
            assert len(await bench.leases()) == 1
            assert bench.heard("me", StoreBack)

    run(check)


def test_a_cut_watch_continues_and_reports_the_restored_connection() -> None:
    """The report needs no change in the store, because an open watch is sufficient."""

    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        async with running(bench, keeper):
            bench.stores["me"].cut_watches()
            await bench.clock.advance(6)
            assert bench.heard("me", StoreAway)
            assert bench.heard("me", StoreBack)

            await bench.store.write(Delete(key=next(iter(await bench.leases())), expected=None))
            await bench.clock.advance(1)

            assert bench.heard("me", Lost)
            assert len(await bench.leases()) == 1

    run(check)


def test_a_lease_is_renewed_although_no_watch_opens() -> None:
    """A listing shows that the store has kept its data.

    The keeper makes one listing for each renewal, and no listing between renewals.
    """

    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        store = bench.stores["me"]
        async with running(bench, keeper):
            (before,) = (await bench.leases()).values()
            store.refuses_watches = True
            store.cut_watches()
            store.listings = 0
            await bench.clock.advance(130)  # the TTL is 60 s

            (after,) = (await bench.leases()).values()
            assert after.revision > before.revision
            assert not bench.heard("me", Lost)
            assert store.listings <= 5

    run(check)


def test_watches_that_end_immediately_are_opened_with_growing_pauses() -> None:
    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        store = bench.stores["me"]
        async with running(bench, keeper):
            store.ends_watches_at_once = True
            store.cut_watches()
            store.watches = 0
            await bench.clock.advance(60)
            assert store.watches < 30

            store.ends_watches_at_once = False
            await bench.clock.advance(20)
            store.cut_watches()
            store.watches = 0
            await bench.clock.advance(0.2)
            assert store.watches == 1

    run(check)


def test_compaction_during_a_cut_watch_is_not_an_empty_network() -> None:
    async def check() -> None:
        bench = Bench()
        me, other = bench.keeper("me", "192.168.50.1"), bench.keeper("other", "192.168.50.2")
        async with running(bench, me, other):
            bench.stores["me"].is_unreachable = True
            value = b'{"PublicIP":"192.168.50.9"}'
            await bench.store.write(Put(key="subnets/10.100.9.0-24", value=value, ttl_s=60, expected=0))
            bench.store.compact()
            bench.stores["me"].is_unreachable = False
            await bench.clock.advance(6)

            assert len(me.leases) == 3

    run(check)


def test_a_lost_answer_has_no_effect() -> None:
    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        bench.stores["me"].lose_next_answer()
        async with running(bench, keeper):
            await bench.clock.advance(6)

            assert len(await bench.leases()) == 1
            assert bench.heard("me", Acquired)

    run(check)


def test_an_invalid_lease_is_logged_once_and_hides_no_other_lease(caplog: pytest.LogCaptureFixture) -> None:
    """The store contains a bad key, a bad value, and a valid lease."""

    async def check() -> None:
        bench = Bench()
        for key, value in (
            ("subnets/rubbish", b"{}"),
            ("subnets/10.100.7.0-24", b"no json"),
            ("subnets/10.100.8.0-24", b'{"PublicIP":"192.168.50.8"}'),
            ("subnets-old/10.100.6.0-24", b'{"PublicIP":"192.168.50.6"}'),
        ):
            await bench.store.write(Put(key=key, value=value, ttl_s=None, expected=0))
        keeper = bench.keeper("me", "192.168.50.1")
        async with running(bench, keeper):
            known = {str(lease.subnet) for lease in keeper.leases}
            assert "10.100.8.0/24" in known
            assert known.isdisjoint({"10.100.7.0/24", "10.100.6.0/24"})

            bench.stores["me"].cut_watches()
            await bench.clock.advance(6)

    with caplog.at_level(logging.WARNING):
        run(check)
    assert caplog.text.count("Skipped subnets/rubbish") == 1
    assert caplog.text.count("Skipped subnets/10.100.7.0-24") == 1
    assert caplog.text.count("subnets/10.100.7.0-24") == 1  # the key is not logged twice


PEER = "subnets/10.100.8.0-24"


def test_a_compaction_removes_no_lease_that_became_unreadable() -> None:
    """The watch keeps the last valid value of an unreadable record, and so does a later listing."""

    async def check() -> None:
        bench = Bench()
        await bench.store.write(Put(key=PEER, value=b'{"PublicIP":"192.168.50.8"}', ttl_s=None, expected=0))
        keeper = bench.keeper("me", "192.168.50.1")
        async with running(bench, keeper):
            await bench.store.write(Put(key=PEER, value=b"no lease", ttl_s=None, expected=None))
            await bench.clock.advance(1)
            known = keeper.leases.by_subnet
            assert IPv4Network("10.100.8.0/24") in known

            bench.stores["me"].is_unreachable = True
            await bench.store.write(Put(key="other", value=b"", ttl_s=None, expected=None))
            bench.store.compact()
            bench.stores["me"].is_unreachable = False
            await bench.clock.advance(6)
            assert dict(keeper.leases.by_subnet.entries()) == dict(known.entries())

            await bench.store.write(Delete(key=PEER, expected=None))
            await bench.clock.advance(1)
            assert IPv4Network("10.100.8.0/24") not in keeper.leases.by_subnet

    run(check)


def test_an_invalid_lease_is_logged_again_only_if_it_changed(caplog: pytest.LogCaptureFixture) -> None:
    """A host that writes invalid records each second fills neither the log nor the memory."""

    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        async with running(bench, keeper):
            for _ in range(100):
                await bench.store.write(Put(key=PEER, value=b"no lease", ttl_s=None, expected=None))
                await bench.clock.advance(0.1)
            assert caplog.text.count(f"Skipped {PEER}") == 1

            await bench.store.write(Delete(key=PEER, expected=None))
            await bench.store.write(Put(key=PEER, value=b"no lease", ttl_s=None, expected=None))
            await bench.clock.advance(0.1)
            assert caplog.text.count(f"Skipped {PEER}") == 2

            bench.stores["me"].is_unreachable = True
            await bench.store.write(Delete(key=PEER, expected=None))
            bench.store.compact()
            bench.stores["me"].is_unreachable = False
            await bench.clock.advance(6)
            await bench.store.write(Put(key=PEER, value=b"no lease", ttl_s=None, expected=None))
            await bench.clock.advance(0.1)
            assert caplog.text.count(f"Skipped {PEER}") == 3

    run(check)


def test_many_bad_keys_need_little_log_and_memory(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        for number in range(3000):
            bench.store.change(Put(key=f"subnets/{number}", value=b"{}", ttl_s=None, expected=0))
        async with running(bench, keeper):
            for number in range(3000, 6000):
                bench.store.change(
                    Put(key=f"subnets/{number}", value=b"x" * number, ttl_s=None, expected=None)
                )
            await bench.clock.advance(5)
            assert len(keeper._skipped) == SKIPPED_KEPT
            assert keeper.state.held is not None

    run(check)
    assert caplog.text.count("Skipped subnets/") == LINES_A_MINUTE
    assert len(caplog.records) < LINES_A_MINUTE + 5


def test_more_leases_than_the_limit_of_a_host_are_reported(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_set, "LARGEST", 3)

    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        async with running(bench, keeper):
            for number in range(1, 6):
                value = b'{"PublicIP":"192.168.50.8"}'
                bench.store.change(
                    Put(key=f"subnets/10.100.{number}.0-24", value=value, ttl_s=None, expected=0)
                )
            await bench.clock.advance(5)
            assert len(keeper.leases) == 3
            assert keeper.leases.left_out == 3

    run(check)
    assert caplog.text.count("leases: the 3 latest are ignored") == 1


def test_two_running_hosts_with_one_address_both_report_the_address() -> None:
    async def check() -> None:
        bench = Bench()
        owner = bench.keeper("owner", "192.168.50.1")
        newcomer = bench.keeper("newcomer", "192.168.50.1")
        async with running(bench, owner):
            async with running(bench, newcomer):
                await bench.clock.advance(15)

                assert bench.heard("owner", SharedAddress)
                assert bench.heard("newcomer", SharedAddress)
                assert len(await bench.leases()) == 2

    run(check)


def test_the_successor_of_a_dead_host_gets_its_lease_after_ten_seconds() -> None:
    async def check() -> None:
        bench = Bench()
        dead = bench.keeper("dead", "192.168.50.1")
        async with running(bench, dead):
            assert dead.state.held is not None
        newcomer = bench.keeper("newcomer", "192.168.50.1")
        async with running(bench, newcomer):
            await bench.clock.advance(12)

            assert newcomer.state.held is not None
            assert newcomer.state.held.lease.subnet == dead.state.held.lease.subnet
            assert len(await bench.leases()) == 1

    run(check)


def test_a_subnet_is_acquired_only_if_its_config_is_unchanged() -> None:
    """A lost subnet is acquired again regardless of the new config, because containers use its addresses."""

    async def write_config(bench: Bench) -> int:
        written = await bench.store.write(Put(key="config", value=b"{}", ttl_s=None, expected=None))
        assert isinstance(written, Written)
        return written.revision

    async def check() -> None:
        bench = Bench()
        old, new = await write_config(bench), await write_config(bench)
        keeper = bench.keeper("a", "192.168.50.101")
        keeper.order(replace(keeper.state.wanted, config_revision=old))
        async with running(bench, keeper):
            assert not await bench.leases()

            keeper.order(replace(keeper.state.wanted, config_revision=new))
            await bench.clock.advance(1)
            taken = list(await bench.leases())
            assert len(taken) == 1

            await write_config(bench)
            await bench.store.write(Delete(key=taken[0], expected=None))
            await bench.clock.advance(1)
            assert list(await bench.leases()) == taken

    run(check)


def test_other_tasks_run_while_many_leases_are_read() -> None:
    """Ten thousand leases take a while. Other tasks of the daemon are not delayed."""

    async def check() -> None:
        bench = Bench()
        for number in range(10 * READ_AT_ONCE):
            lease = Lease(
                subnet=IPv4Network(f"10.100.{number + 1}.0/24"),
                attributes=LeaseAttributes(public_ip=IPv4Address("192.168.50.9")),
            )
            put = Put(key=lease_key(lease), value=lease_value(lease), ttl_s=None, expected=0)
            await bench.store.write(put)
        keeper = bench.keeper("me", "192.168.50.1")
        keeping = asyncio.ensure_future(keeper.run())
        turns = 0
        while not len(keeper.leases):
            await asyncio.sleep(0)
            turns += 1
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)

        assert turns >= 10

    run(check)


BOTH = "subnets/10.100.128.0-24&fd00:0:0:80::-64"
"""A key of the subnet that the first host draws, together with an IPv6 subnet."""


def both_families(address: str) -> bytes:
    return lease_value(
        Lease(
            subnet=IPv4Network("10.100.128.0/24"),
            attributes=LeaseAttributes(public_ip=IPv4Address(address)),
        )
    )


@pytest.mark.parametrize("value", [both_families("192.168.50.9"), b"no lease"])
def test_a_key_of_both_families_on_the_own_subnet_is_ignored(
    value: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the creation nor the deletion of a key with both subnets affects the host's lease. The host
    logs the key once.
    """

    async def check() -> None:
        bench = Bench()
        keeper = bench.keeper("me", "192.168.50.1")
        async with running(bench, keeper):
            assert keeper.state.held is not None
            own = keeper.state.held.lease.subnet
            assert lease_key(own) == BOTH.partition("&")[0]
            await bench.store.write(Put(key=BOTH, value=value, ttl_s=None, expected=0))
            await bench.clock.advance(70)  # renewed more than once

            written = (await bench.leases())[BOTH]
            assert [lease.attributes.public_ip for lease in keeper.leases] == [IPv4Address("192.168.50.1")]

            await bench.store.write(Delete(key=lease_key(own), expected=None))
            await bench.clock.advance(20)
            assert (await bench.leases())[BOTH] == written
            is_held_by_nobody = value == b"no lease"
            assert (lease_key(own) in await bench.leases()) == is_held_by_nobody

            await bench.store.write(Delete(key=BOTH, expected=None))
            await bench.clock.advance(20)
            assert (await bench.leases()).keys() == {lease_key(own)}
            assert [lease.subnet for lease in keeper.leases] == [own]

    run(check)
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if BOTH in text]) == 1


def test_a_peer_has_one_lease_even_if_its_subnet_has_several_keys() -> None:
    """After a change of EnableIPv6, for example, the previous key expires after a day."""

    async def check() -> None:
        bench = Bench()
        keeper, peer = bench.keeper("me", "192.168.50.1"), bench.keeper("peer", "192.168.50.2")
        async with running(bench, keeper, peer):
            assert peer.state.held is not None
            subnet = peer.state.held.lease.subnet
            key = f"{lease_key(subnet)}&fd00:0:0:9::-64"
            value = (await bench.leases())[lease_key(subnet)].value
            await bench.store.write(Put(key=key, value=value, ttl_s=30, expected=0))
            await bench.clock.advance(1)
            assert len(keeper.leases) == 2
            await bench.clock.advance(40)

            assert key not in await bench.leases()
            assert subnet in keeper.leases.by_subnet
            assert not bench.heard("peer", Lost)

    run(check)
