"""Hosts that require signed leases, on a store to which an attacker writes."""

import asyncio
import logging
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Literal

import pytest
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from doubles.signing_bench import (
    NETWORK,
    PREFIX,
    Bench,
    MemoryDouble,
    is_signed,
    known,
    make_key,
    own,
    run,
    running,
    signed_by_eve,
)
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.lease_signing import Refusals
from pyflannel.model.lease import Claim, Lease, LeaseAttributes
from pyflannel.model.status import LeaseSigningStatus
from pyflannel.model.store_record import Put
from pyflannel.wire.lease_record import claim_key, claim_value, lease_key, lease_of, lease_value
from pyflannel.wire.lease_signature import is_authentic, sign


def test_hosts_sign_their_leases_and_know_each_other() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            assert {lease.attributes.owner for lease in a.leases} == {"a", "b"}
            for keeper in (a, b):
                assert is_signed(await bench.record(lease_key(own(keeper))))

    run(check)


@pytest.mark.parametrize("pins", [False, True], ids=["allow-list", "first key"])
@pytest.mark.parametrize("how", ["forged", "unsigned", "other key", "rubbish"])
def test_a_replaced_lease_gets_no_packets_and_is_written_again(how: str, pins: bool) -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", pins=pins), bench.keeper("b", pins=pins)
        async with running(bench, a, b):
            lease = own(a)
            eves = replace(lease.attributes, public_ip=IPv4Address("192.0.2.250"))
            stored = lease_of(await bench.record(lease_key(lease)))
            match how:
                case "forged":
                    value = lease_value(
                        replace(stored, attributes=replace(stored.attributes, public_ip=eves.public_ip))
                    )
                case "unsigned":
                    value = lease_value(replace(lease, attributes=eves))
                case "other key":
                    value = lease_value(sign(PREFIX, replace(lease, attributes=eves), 99, bench.keys["eve"]))
                case _:
                    value = b"rubbish"

            await bench.put(lease_key(lease), value)

            assert known(b, lease.subnet) == lease.attributes
            await bench.clock.advance(30)
            assert own(a).subnet == lease.subnet
            written = lease_of(await bench.record(lease_key(lease)))
            assert is_authentic(PREFIX, written, lease_value(written))
            assert written.attributes.public_ip == lease.attributes.public_ip
            assert known(b, lease.subnet) == lease.attributes

    run(check)


@pytest.mark.parametrize("pins", [False, True], ids=["allow-list", "first key"])
@pytest.mark.parametrize("how", ["forged", "other key"])
def test_a_replaced_lease_gets_no_packets_while_its_holder_does_not_run(how: str, pins: bool) -> None:
    """A running holder writes its lease again before other hosts read the replaced lease."""

    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", pins=pins), bench.keeper("b", pins=pins)
        async with running(bench, b):
            async with running(bench, a):
                lease = own(a)
            eves = replace(lease.attributes, public_ip=IPv4Address("192.0.2.250"))
            stored = lease_of(await bench.record(lease_key(lease)))
            if how == "forged":  # the lease with the key, the counter and the signature of the holder
                attributes = replace(stored.attributes, public_ip=eves.public_ip)
                replaced = replace(stored, attributes=attributes)
            else:
                replaced = sign(PREFIX, replace(lease, attributes=eves), 99, bench.keys["eve"])

            await bench.put(lease_key(lease), lease_value(replaced))
            await bench.clock.advance(30)

            assert lease_of(await bench.record(lease_key(lease))).attributes.public_ip == eves.public_ip
            assert known(b, lease.subnet) == lease.attributes

    run(check)


def test_an_old_lease_is_refused_after_a_restart_too() -> None:
    """A host moved to another subnet, and its old lease is written again."""

    async def check(bench: Bench) -> None:
        subnet = IPv4Network("10.100.7.0/24")
        attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.97"), owner="a")
        old = sign(PREFIX, Lease(subnet=subnet, attributes=attributes), 1, bench.keys["a"])
        await bench.put(lease_key(old), lease_value(old))
        b = bench.keeper("b")
        async with running(bench, b):
            assert known(b, subnet) is not None
            new = replace(old, subnet=IPv4Network("10.100.8.0/24"))
            new = sign(PREFIX, new, 2, bench.keys["a"])
            await bench.put(lease_key(new), lease_value(new))
            await bench.delete(lease_key(old))
            assert known(b, subnet) is None

            await bench.put(lease_key(old), lease_value(old))

            assert known(b, subnet) is None
        again = bench.keeper("b", previous=str(own(b).subnet))
        async with running(bench, again):
            assert known(again, new.subnet) is not None
            assert known(again, subnet) is None

    run(check)


@pytest.mark.parametrize("pins", [False, True], ids=["allow-list", "first key"])
def test_a_lease_on_a_subnet_that_another_host_took_is_refused_after_a_restart_too(pins: bool) -> None:
    """A host left, its subnet was given to another host, and its last lease is written again."""

    async def check(bench: Bench) -> None:
        subnet = IPv4Network("10.100.7.0/24")
        attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.97"), owner="a")
        old = sign(PREFIX, Lease(subnet=subnet, attributes=attributes), 5, bench.keys["a"])
        new = sign(PREFIX, replace(old, attributes=replace(attributes, owner="eve")), 1, bench.keys["eve"])
        bench.allow("a", "b", "eve")
        b = bench.keeper("b", pins=pins)
        async with running(bench, b):
            await bench.put(lease_key(old), lease_value(old))
            assert known(b, subnet) is not None
        again = bench.keeper("b", pins=pins, previous=str(own(b).subnet))
        async with running(bench, again):
            await bench.delete(lease_key(old))
            await bench.put(lease_key(new), lease_value(new))
            await bench.delete(lease_key(new))

            await bench.put(lease_key(old), lease_value(old))

            assert known(again, subnet) is None

    run(check)


def test_without_a_list_a_subnet_may_change_hosts_while_this_host_does_not_run() -> None:
    async def check(bench: Bench) -> None:
        b = bench.keeper("b", pins=True)
        subnet = IPv4Network("10.100.7.0/24")
        attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.97"), owner="a")
        old = sign(PREFIX, Lease(subnet=subnet, attributes=attributes), 5, bench.keys["a"])
        async with running(bench, b):
            await bench.put(lease_key(old), lease_value(old))
        new = signed_by_eve(bench, str(subnet))
        await bench.put(lease_key(new), lease_value(new))
        again = bench.keeper("b", pins=True, previous=str(own(b).subnet))
        async with running(bench, again):
            assert known(again, subnet) is not None

    run(check)


def test_a_host_with_an_old_counter_continues_from_its_lease_in_the_store() -> None:
    """The state directory was restored from a backup."""

    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, b):
            async with running(bench, a):
                lease = own(a)
            async with running(bench, bench.keeper("a", previous=str(lease.subnet))):
                pass
            bench.memories["a"].content = None
            again = bench.keeper("a", previous=str(lease.subnet))
            # The host has another address now.
            moved = replace(again.state.wanted.attributes, public_ip=IPv4Address("192.0.2.77"))
            again.state = replace(again.state, wanted=replace(again.state.wanted, attributes=moved))
            async with running(bench, again):
                known_to_b = known(b, lease.subnet)
                assert known_to_b is not None
                assert known_to_b.public_ip == moved.public_ip

    run(check)


def test_a_deleted_lease_is_written_again_and_no_other_key_gets_its_traffic() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            lease = own(a)
            await bench.delete(lease_key(lease))
            await bench.clock.advance(30)

            assert own(a).subnet == lease.subnet
            assert known(b, lease.subnet) == lease.attributes

    run(check)


def test_a_lease_that_names_a_host_which_has_not_signed_it_does_not_move_the_host() -> None:
    async def check(bench: Bench) -> None:
        attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.97"), owner="a")
        forged = Lease(subnet=IPv4Network("10.100.9.0/24"), attributes=attributes)
        await bench.put(lease_key(forged), lease_value(forged))
        a = bench.keeper("a")
        async with running(bench, a):
            assert own(a).subnet != forged.subnet

    run(check)


# Things that a writer of the store can still do.


def test_a_holder_writes_its_lease_again_for_each_claim_of_a_writer_of_the_store() -> None:
    """Claims have no signature. The lease does not change."""

    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            lease = own(a)
            for number in range(3):
                before = await bench.record(lease_key(lease))
                claim = Claim(
                    subnet=lease.subnet, owner=f"eve {number}", public_ip=IPv4Address("192.0.2.250")
                )
                await bench.put(claim_key(claim.subnet), claim_value(claim))
                await bench.clock.advance(20)

                after = await bench.record(lease_key(lease))
                assert after.revision > before.revision
                assert own(a).subnet == lease.subnet
                assert known(b, lease.subnet) == lease.attributes

    run(check)


@pytest.mark.parametrize("answers", [False, True])
def test_an_answer_to_its_claim_keeps_a_host_without_its_state_from_its_former_subnet(answers: bool) -> None:
    """A writer of the store writes the former lease, which the host's key signed, again after each claim."""

    async def check(bench: Bench) -> None:
        attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.50"), owner="a")
        former = sign(
            PREFIX, Lease(subnet=IPv4Network("10.100.9.0/24"), attributes=attributes), 1, bench.keys["a"]
        )
        await bench.put(lease_key(former), lease_value(former))
        a = bench.keeper("a")
        tasks = [asyncio.ensure_future(each.run()) for each in (a, bench.signings["a"])]
        for _ in range(120):
            await bench.clock.advance(0.5)
            claims = (await bench.store.client().list("claims/")).records
            if answers and claims and a.state.held is None:
                await bench.put(lease_key(former), lease_value(former))

        assert (own(a).subnet == former.subnet) is not answers
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(check)


def test_the_key_of_an_allowed_host_can_use_any_subnet_until_it_is_removed_from_the_list() -> None:
    async def check(bench: Bench) -> None:
        b = bench.keeper("b")
        async with running(bench, b):
            attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.250"), owner="eve")
            subnet = IPv4Network("10.100.77.0/24")
            stolen = sign(PREFIX, Lease(subnet=subnet, attributes=attributes), 9, bench.keys["a"])
            await bench.put(lease_key(stolen), lease_value(stolen))
            assert known(b, subnet) is not None

            bench.allow("b")
            await bench.clock.advance(5)

            assert known(b, subnet) is None

    run(check)


def test_a_new_host_gets_no_subnet_if_a_writer_of_the_store_occupies_all() -> None:
    """Running hosts keep their subnets."""

    async def check(bench: Bench) -> None:
        b = bench.keeper("b")
        async with running(bench, b):
            for subnet in NETWORK.network.subnets(new_prefix=24):
                if subnet != own(b).subnet:
                    attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.250"), owner="eve")
                    occupied = Lease(subnet=subnet, attributes=attributes)
                    value = lease_value(occupied)
                    await bench.store.write(
                        Put(key=lease_key(occupied), value=value, ttl_s=3600, expected=None)
                    )
            a = bench.keeper("a")
            async with running(bench, a):
                assert a.state.held is None
                assert own(b).subnet == (await subnet_of_the_lease(bench, b))

    run(check)


async def subnet_of_the_lease(bench: Bench, keeper: LeaseKeeper) -> IPv4Network:
    """Return the subnet of the record of a host, whose signature is valid."""
    record = await bench.record(lease_key(own(keeper)))
    assert is_signed(record)
    return lease_of(record).subnet


def test_a_host_keeps_the_subnet_that_it_had_before_it_signed() -> None:
    async def check(bench: Bench) -> None:
        attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.97"), owner="a")
        before = Lease(subnet=IPv4Network("10.100.9.0/24"), attributes=attributes)
        await bench.put(lease_key(before), lease_value(before))
        a = bench.keeper("a", previous=str(before.subnet))
        async with running(bench, a):
            assert own(a).subnet == before.subnet
            assert is_signed(await bench.record(lease_key(before)))

    run(check)


def test_a_warning_names_the_lease_that_would_be_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def check(bench: Bench) -> None:
        attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.9"), owner="old")
        unsigned = Lease(subnet=IPv4Network("10.100.9.0/24"), attributes=attributes)
        await bench.put(lease_key(unsigned), lease_value(unsigned))
        a = bench.keeper("a", requires=False)
        async with running(bench, a):
            assert known(a, unsigned.subnet) is not None

    run(check)
    text = "--lease-signing=require would refuse the lease 10.100.9.0/24 of 192.0.2.9: it is not signed"
    assert caplog.text.count(text) == 1


def counted(status: LeaseSigningStatus) -> Mapping[str, int]:
    return {fault: count for fault, count in status.refusals.items() if count}


@pytest.mark.parametrize("mode", ["require", "warn"])
def test_the_status_names_each_refused_lease_also_after_it_is_gone(mode: Literal["require", "warn"]) -> None:
    async def check(bench: Bench) -> None:
        a = bench.keeper("a", requires=mode == "require")
        async with running(bench, a):
            lease = signed_by_eve(bench, "10.100.9.0/24")
            await bench.put(lease_key(lease), lease_value(lease))
            await bench.put(lease_key(lease), lease_value(lease))
            await bench.clock.advance(7)

            status = bench.signings["a"].status()
            (refused,) = status.refused
            assert (status.mode, status.allowed, counted(status)) == (mode, 2, {"not_allowed": 2})
            assert (refused.subnet, refused.host_text) == (lease.subnet, "eve1 (192.0.2.250)")
            assert (refused.fault, refused.cause) == ("not_allowed", "its key is not allowed")
            assert (refused.times, refused.age_s, refused.is_in_store) == (2, 7.5, True)

            await bench.delete(lease_key(lease))

            (gone,) = bench.signings["a"].status().refused
            assert gone == replace(refused, age_s=8.0, is_in_store=False)

    run(check)


def test_a_changed_key_and_a_replayed_lease_are_refused_by_name() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", pins=True), bench.keeper("b", pins=True)
        async with running(bench, a, b):
            old = await bench.record(lease_key(own(b)))
            lease = signed_by_eve(bench, "10.100.9.0/24", owner="b")
            await bench.put(lease_key(lease), lease_value(lease))
            await bench.put(old.key, b"rubbish")
            await bench.clock.advance(30)
            await bench.put(old.key, old.value)

            faults = {one.fault for one in bench.signings["a"].status().refused}
            assert faults == {"changed_key", "replayed"}

    run(check)


def test_without_a_list_a_host_knows_a_limited_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer of the store can make any number of keys."""
    monkeypatch.setattr("pyflannel.plan.lease.trust.LARGEST", 2)

    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", pins=True), bench.keeper("b", pins=True)
        async with running(bench, a, b):
            for number in range(3):
                bench.keys["eve"] = make_key()
                lease = signed_by_eve(bench, f"10.100.{number + 1}.0/24", owner=f"eve{number}")
                await bench.put(lease_key(lease), lease_value(lease))

            assert known(a, own(b).subnet) is not None
            assert counted(bench.signings["a"].status()) == {"too_many_keys": 2}

    run(check)


def test_refused_leases_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflannel.engine.lease_signing.REFUSALS_KEPT", 3)
    refusals = Refusals(FakeClock())
    for number in range(5):
        attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.250"))
        lease = Lease(subnet=IPv4Network(f"10.100.{number}.0/24"), attributes=attributes, revision=number)
        assert refusals.add(lease, "unsigned")

    assert [one.subnet.network_address.packed[2] for one in refusals.shown()] == [4, 3, 2]
    assert refusals.counts == {"unsigned": 5}


@pytest.mark.parametrize("how", ["a claim", "the same lease, and no claim"])
def test_a_writer_of_the_store_cannot_make_a_host_give_up_its_identity(how: str) -> None:
    """The writer claims the lease for a copy of the host with an earlier start. A new key is not allowed."""

    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            lease = own(a)
            if how == "a claim":
                claim = Claim(
                    subnet=lease.subnet, owner="a", public_ip=IPv4Address("192.0.2.250"), held_s=1e9
                )
                await bench.put(claim_key(claim.subnet), claim_value(claim))
            else:
                record = await bench.record(lease_key(lease))
                await bench.put(record.key, record.value)
                await bench.clock.advance(1)
                for claims in (await bench.store.client().list("claims/")).records:
                    await bench.delete(claims.key)
            await bench.clock.advance(60)

            assert bench.reidentified == 0
            assert (own(a).subnet, own(a).attributes.owner) == (lease.subnet, "a")
            assert known(b, lease.subnet) == lease.attributes

    run(check)


@pytest.mark.parametrize("requires", [True, False])
def test_a_copy_that_signs_with_the_key_of_a_host_gives_up_its_identity(requires: bool) -> None:
    """The copy is a second virtual machine from a snapshot, with the state directory."""

    async def check(bench: Bench) -> None:
        a = bench.keeper("a", requires=requires)
        async with running(bench, a):
            subnet = own(a).subnet
            await bench.clock.advance(100)
            content, bench.memories["a"] = bench.memories["a"].content, MemoryDouble()
            bench.memories["a"].content = content
            copy = bench.keeper("a", requires=requires, previous=str(subnet))
            async with running(bench, copy):
                await bench.clock.advance(200)

                assert bench.reidentified == 1
                assert (own(a).subnet, own(a).attributes.owner) == (subnet, "a")
                assert copy.state.wanted.owner == "new"

    run(check)


# The allow-list in the store.
