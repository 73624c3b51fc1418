"""Hosts that require signed leases, on a store that an adversary writes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.engine.allowed_keys import AllowedKeys, AllowList, SignedKeys
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.lease_signing import LeaseSigning, Refusals
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.pacing import LINES_A_MINUTE
from pyflannel.errors import TargetError
from pyflannel.model.lease import LARGEST_COUNTER, Claim, Lease, LeaseAttributes, LeaseKey
from pyflannel.model.lease_protocol import Wanted
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.status import LeaseSigningStatus
from pyflannel.model.store_record import Delete, Put, Record, Secret
from pyflannel.ports import Announce, ChangeChannel, Changes
from pyflannel.wire.lease_record import ALLOW_LIST, claim_key, claim_value, lease_key, lease_of, lease_value
from pyflannel.wire.lease_signature import format_signed_list, is_authentic, sign, sign_list

PREFIX = "/coreos.com/network"
NETWORK = NetworkConfig(
    network=IPv4Network("10.100.0.0/16"),
    subnet_length=24,
    subnet_min=IPv4Address("10.100.1.0"),
    subnet_max=IPv4Address("10.100.255.0"),
)


def make_key() -> LeaseKey:
    pair = Ed25519PrivateKey.generate()
    return LeaseKey(pair.public_key().public_bytes_raw(), Secret(pair.private_bytes_raw().hex()))


class MemoryDouble:
    """A file in memory."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    async def load(self) -> bytes | None:
        return self.content

    async def save(self, parts: Iterable[bytes]) -> bool:
        self.content = b"".join(parts)
        return True


class KeyFileDouble:
    """A file of keys in memory."""

    name = "/etc/flannel/lease-keys"

    def __init__(self) -> None:
        self.text: str | None = None
        self._written: list[Announce] = []

    def write(self, text: str | None) -> None:
        self.text = text
        for announce in self._written:
            announce()

    async def read(self) -> str:
        if self.text is None:
            raise TargetError("cannot be read: no such file", hint="Write it.")
        return self.text

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Changes]:
        async def read(announce: Announce) -> None:
            self._written.append(announce)
            await asyncio.Event().wait()

        async with ChangeChannel(read) as changes:
            yield changes


class Bench:
    """A store, and the hosts a and b, whose keys are allowed; eve has a key too."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.keys = {name: make_key() for name in ("a", "b", "eve", "new")}
        self.reidentified = 0
        self.memories = {name: MemoryDouble() for name in self.keys}
        self.signings: dict[str, LeaseSigning] = {}
        self.file, self.operator_file = KeyFileDouble(), KeyFileDouble()
        self.operator = make_key()
        self.operator_file.write(self.operator.public.hex())
        self.lists = {name: MemoryDouble() for name in self.keys}
        self.allow("a", "b")

    def keeper(
        self,
        name: str,
        *,
        requires: bool = True,
        pins: bool = False,
        operated: bool = False,
        previous: str | None = None,
    ) -> LeaseKeeper:
        allowed = frozenset({self.keys["a"].public, self.keys["b"].public})
        allow_list: AllowList = AllowedKeys(self.file, self.clock, allowed)
        if operated:
            operators = AllowedKeys(self.operator_file, self.clock, frozenset({self.operator.public}))
            allow_list = SignedKeys(operators, PREFIX, self.lists[name], self.clock)
        self.signings[name] = LeaseSigning(
            requires=requires,
            prefix=PREFIX,
            key_of=lambda owner: self.keys[owner],
            allowed=None if pins else allow_list,
            memory=self.memories[name],
            clock=self.clock,
        )
        attributes = LeaseAttributes(
            public_ip=IPv4Address(f"192.0.2.{ord(name[0])}"), owner=name, signing_key=self.keys[name].public
        )
        return LeaseKeeper(
            store=self.store.client(),
            clock=self.clock,
            draw=lambda n: n // 2,
            store_log=StoreLog(self.clock),
            wanted=Wanted(
                network=NETWORK,
                attributes=attributes,
                ttl_s=3600,
                previous=None if previous is None else IPv4Network(previous),
            ),
            held=None,
            report=lambda report: None,
            leases_changed=lambda leases: None,
            reidentify=self.reidentify,
            signing=self.signings[name],
        )

    def reidentify(self, attributes: LeaseAttributes) -> LeaseAttributes:
        self.reidentified += 1
        return replace(attributes, owner="new", signing_key=self.keys["new"].public)

    def allow(self, *names: str) -> None:
        self.file.write(self.list_of(*names))

    def list_of(self, *names: str) -> str:
        return "".join(f"{self.keys[name].public.hex()} {name}\n" for name in names)

    async def publish(
        self, counter: int, *names: str, key: LeaseKey | None = None, prefix: str = PREFIX
    ) -> None:
        """Write a list that an operator signed."""
        signed = sign_list(prefix, self.list_of(*names), counter, key or self.operator)
        await self.put(ALLOW_LIST, format_signed_list(signed))
        await self.clock.advance(5)

    def trouble(self, name: str) -> str:
        trouble = self.signings[name].status().trouble
        return "" if trouble is None else trouble.text

    async def record(self, key: str) -> Record:
        record = await self.store.get(key)
        assert record is not None
        return record

    async def put(self, key: str, value: bytes) -> None:
        """Write as the adversary, regardless of the current value."""
        await self.store.write(Put(key=key, value=value, ttl_s=3600, expected=None))
        await self.clock.advance(0.5)

    async def delete(self, key: str) -> None:
        await self.store.write(Delete(key=key, expected=(await self.record(key)).revision))
        await self.clock.advance(0.5)


@asynccontextmanager
async def running(bench: Bench, *keepers: LeaseKeeper) -> AsyncIterator[None]:
    runs = [keeper.run() for keeper in keepers] + [signing.run() for signing in bench.signings.values()]
    tasks = [asyncio.ensure_future(each) for each in runs]
    try:
        await bench.clock.advance(60)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def own(keeper: LeaseKeeper) -> Lease:
    assert keeper.state.held is not None
    return keeper.state.held.lease


def known(keeper: LeaseKeeper, subnet: IPv4Network) -> LeaseAttributes | None:
    lease = keeper.leases.by_subnet.get(subnet)
    return None if lease is None else lease.attributes


def is_signed(record: Record) -> bool:
    return is_authentic(PREFIX, lease_of(record), record.value)


def run(check: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(check(Bench()))


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
def test_a_replaced_lease_takes_no_traffic_and_is_written_again(how: str, pins: bool) -> None:
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
def test_a_lease_with_another_key_takes_no_traffic_while_its_holder_does_not_run(pins: bool) -> None:
    """A holder that runs writes its lease again before others read the replaced one."""

    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", pins=pins), bench.keeper("b", pins=pins)
        async with running(bench, b):
            async with running(bench, a):
                lease = own(a)
            eves = replace(lease.attributes, public_ip=IPv4Address("192.0.2.250"))
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
    """As after a restore of its state directory from a backup."""

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


# Remaining abilities of a writer of the store.


def test_a_holder_writes_its_lease_again_for_each_claim_of_a_writer_of_the_store() -> None:
    """Claims have no signature. The lease stays the same."""

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


def test_the_key_of_an_allowed_host_takes_any_subnet_until_it_is_removed_from_the_list() -> None:
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


def signed_by_eve(bench: Bench, subnet: str, counter: int = 1, owner: str = "eve") -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.250"), host_name="eve1", owner=owner)
    return sign(PREFIX, Lease(subnet=IPv4Network(subnet), attributes=attributes), counter, bench.keys["eve"])


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


def test_a_key_that_is_added_to_the_file_is_accepted_without_a_restart() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            lease = signed_by_eve(bench, "10.100.9.0/24")
            await bench.put(lease_key(lease), lease_value(lease))
            before = own(a).subnet
            assert known(a, lease.subnet) is None

            bench.allow("a", "b", "eve")
            await bench.clock.advance(10)

            assert known(a, lease.subnet) is not None
            assert known(a, own(b).subnet) is not None
            assert own(a).subnet == before
            (refused,) = bench.signings["a"].status().refused
            assert not refused.is_in_store

    run(check)


def test_a_key_that_is_removed_from_the_file_gets_no_more_traffic() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            bench.allow("a")
            await bench.clock.advance(10)

            assert known(a, own(b).subnet) is None
            assert known(a, own(a).subnet) is not None
            (refused,) = bench.signings["a"].status().refused
            assert (refused.fault, refused.is_in_store) == ("not_allowed", True)
            assert bench.signings["b"].status().is_own_key_allowed is False
            assert known(b, own(b).subnet) is not None  # a host does not need its own permission
            # A host that joins later, or a renewal, changes nothing about it.
            await bench.clock.advance(3600)
            assert known(a, own(b).subnet) is None

    run(check)


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "rubbish\n"])
def test_a_broken_file_keeps_the_last_good_list(text: str | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            bench.file.write(text)
            await bench.clock.advance(200)

            status = bench.signings["a"].status()
            assert status.allowed == 2
            assert status.trouble is not None
            assert status.trouble.text.startswith("/etc/flannel/lease-keys: ")
            assert caplog.text.count("Kept the last good list of 2 allowed keys: /etc/flannel/lease") == 2
            assert known(a, own(b).subnet) is not None

            bench.allow("a", "b")
            await bench.clock.advance(10)

            assert bench.signings["a"].status().trouble is None

    run(check)


def test_a_file_is_read_when_it_has_been_written_completely() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            for names in (("a",), ("a", "b")):
                bench.allow(*names)
                await bench.clock.advance(0.1)

            assert known(a, own(b).subnet) is not None
            await bench.clock.advance(10)
            assert known(a, own(b).subnet) is not None

    run(check)


def test_without_an_announcement_the_file_is_read_every_minute_and_on_request() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            text = bench.file.text
            bench.file.text = f"{bench.keys['a'].public.hex()}\n"
            assert bench.signings["a"].reload()
            await bench.clock.advance(5)
            assert known(a, own(b).subnet) is None
            bench.file.text = text
            await bench.clock.advance(65)
            assert known(a, own(b).subnet) is not None

    run(check)


def test_a_list_that_changes_while_the_leases_are_listed_takes_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leases that were checked by the old list are checked again."""

    async def check(bench: Bench) -> None:
        b = bench.keeper("b")
        async with running(bench, b):
            a = bench.keeper("a")
            save, first = bench.memories["a"].save, [True]

            async def slow_save(parts: Iterable[bytes]) -> bool:
                if first and first.pop():
                    bench.allow("a")
                    bench.signings["a"].reload()
                    await bench.clock.sleep(5)
                return await save(parts)

            monkeypatch.setattr(bench.memories["a"], "save", slow_save)
            async with running(bench, a):
                assert known(a, own(b).subnet) is None

    run(check)


# Copies of a host: they have the same key.


@pytest.mark.parametrize("how", ["a claim", "the same lease, and no claim"])
def test_a_writer_of_the_store_cannot_make_a_host_give_up_its_identity(how: str) -> None:
    """It pretends that a copy of the host has held the lease for longer. A new key would not be allowed."""

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
    """As a snapshot with the state directory that is started a second time."""

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


def test_hosts_follow_the_list_that_an_operator_signed() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)
        async with running(bench, a, b):
            assert known(a, own(b).subnet) is None
            assert bench.trouble("a") == "the store contains no allow-list"
            assert bench.signings["a"].status().allowed == 0

            await bench.publish(1, "a", "b")

            assert known(a, own(b).subnet) is not None
            assert known(b, own(a).subnet) is not None
            status = bench.signings["a"].status()
            assert (status.allowed, status.counter, status.trouble) == (2, 1, None)

            await bench.publish(2, "a")

            assert known(a, own(b).subnet) is None

            await bench.publish(1, "a", "b")

            assert known(a, own(b).subnet) is None
            assert bench.trouble("a").endswith("its counter 1 is not above 2, the counter of the last list")
        # After a restart, the older list is refused too.
        again = bench.keeper("a", operated=True, previous=str(own(a).subnet))
        async with running(bench, again, b):
            assert known(again, own(b).subnet) is None
            assert bench.trouble("a").endswith("its counter 1 is not above 2, the counter of the last list")

    run(check)


def test_a_deleted_list_stays_in_force_after_a_restart_too() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)
        async with running(bench, a, b):
            await bench.publish(3, "a", "b")
            await bench.delete(ALLOW_LIST)
            await bench.clock.advance(5)

            assert known(a, own(b).subnet) is not None
            assert bench.trouble("a") == "the store does not contain the allow-list any more"
        again = bench.keeper("a", operated=True, previous=str(own(a).subnet))
        async with running(bench, again, b):
            assert known(again, own(b).subnet) is not None
            status = bench.signings["a"].status()
            assert (status.allowed, status.counter) == (2, 3)

    run(check)


@pytest.mark.parametrize("how", ["other key", "other prefix", "forged", "rubbish", "no keys", "same counter"])
def test_a_list_that_no_operator_signed_for_this_network_changes_nothing(how: str) -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)
        async with running(bench, a, b):
            await bench.publish(1, "a", "b")
            match how:
                case "other key":
                    await bench.publish(2, "a", "b", "eve", key=bench.keys["eve"])
                    text = f"the key {bench.keys['eve'].public.hex()} signed it, which is no operator's"
                case "other prefix":
                    await bench.publish(2, "eve", prefix="/other")
                    text = "its signature is not that of its key for this prefix of the store"
                case "forged":
                    signed = sign_list(PREFIX, bench.list_of("a", "b"), 2, bench.operator)
                    forged = signed._replace(text=bench.list_of("a", "b", "eve"))
                    await bench.put(ALLOW_LIST, format_signed_list(forged))
                    text = "its signature is not that of its key for this prefix of the store"
                case "rubbish":
                    await bench.put(ALLOW_LIST, b"rubbish")
                    text = "it is not a signed allow-list: JSON is malformed: invalid character (byte 0)"
                case "no keys":
                    await bench.publish(2)
                    text = "it contains no key"
                case _:
                    await bench.publish(1, "a", "b", "eve")
                    text = "its counter 1 is not above 1, the counter of the last list"

            assert bench.trouble("a") == f"the list in the store is not used: {text}"
            assert bench.signings["a"].rules == {bench.keys["a"].public, bench.keys["b"].public}
            assert known(a, own(b).subnet) is not None

    run(check)


def test_lists_of_strangers_fill_no_log(caplog: pytest.LogCaptureFixture) -> None:
    async def check(bench: Bench) -> None:
        a = bench.keeper("a", operated=True)
        async with running(bench, a):
            signed = sign_list(PREFIX, bench.list_of("eve"), 1, bench.keys["eve"])
            for number in range(200):
                value = format_signed_list(signed._replace(operator=bytes([number]) * 32))
                await bench.store.write(Put(key=ALLOW_LIST, value=value, ttl_s=None, expected=None))
            await bench.clock.advance(1)

            assert bench.trouble("a").endswith("signed it, which is no operator's")

    run(check)
    assert caplog.text.count("which is no operator's") == LINES_A_MINUTE


def test_an_operator_whose_key_was_stolen_is_replaced() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)
        async with running(bench, a, b):
            new = make_key()
            await bench.publish(1, "a", "b")
            await bench.publish(LARGEST_COUNTER, "a", "b", "eve")  # the thief

            bench.operator_file.write(new.public.hex())
            await bench.clock.advance(5)
            assert len(bench.signings["a"].rules or ()) == 3  # until there is another list
            await bench.publish(2, "a", "b", key=new)

            assert bench.signings["a"].rules == {bench.keys["a"].public, bench.keys["b"].public}
            await bench.publish(LARGEST_COUNTER, "a", "b", "eve")
            assert bench.trouble("a").endswith("signed it, which is no operator's")

    run(check)


def test_a_list_of_an_operator_who_is_added_later_takes_effect() -> None:
    async def check(bench: Bench) -> None:
        a, b, new = bench.keeper("a", operated=True), bench.keeper("b", operated=True), make_key()
        async with running(bench, a, b):
            await bench.publish(1, "a", "b", key=new)
            assert known(a, own(b).subnet) is None

            bench.operator_file.write(f"{bench.operator.public.hex()}\n{new.public.hex()}\n")
            await bench.clock.advance(5)

            assert known(a, own(b).subnet) is not None

    run(check)


def test_a_list_that_cannot_be_kept_is_used_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)

        async def full(parts: object) -> bool:
            return False

        monkeypatch.setattr(bench.lists["a"], "save", full)
        async with running(bench, a, b):
            await bench.publish(1, "a", "b")

            assert known(a, own(b).subnet) is not None
            assert bench.trouble("a") == "could not save the list for the next start"
            monkeypatch.undo()
            await bench.publish(1, "a", "b")
            assert bench.trouble("a") == ""
            assert bench.lists["a"].content is not None

    run(check)
