"""flannelctl leases reserve and release write only leases that an operator may change."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

import pytest

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.commands import reservations
from pyflannel.commands.reservations import examine_release, parse_subnets, release, reserve
from pyflannel.errors import ConfigError, FlannelError, NotReadyError, StoreError, UsageError
from pyflannel.model.store_record import Delete, Put, PutSeen

CONFIG = b'{"Network":"10.100.0.0/16"}'
BOTH = b'{"Network":"10.100.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/48"}'
OURS = b'{"PublicIP":"10.0.0.1","Pyflannel":{"Owner":"5d0f","Host":"docker1"}}'
ORIGINAL = b'{"PublicIP":"10.0.0.2"}'
SUBNET = (IPv4Network("10.100.1.0/24"), None)
FREE = (IPv4Network("10.100.9.0/24"), None)
HOST = IPv4Address("10.0.0.9")


def store_with(config: bytes | None = CONFIG, **values: tuple[bytes, int | None]) -> FakeStore:
    """Return a store with these leases. A name such as `n1` contains the third number of the subnet."""
    store = FakeStore(FakeClock())
    if config is not None:
        store.change(Put(key="config", value=config, ttl_s=None, expected=0))
    for number, (value, ttl_s) in values.items():
        key = f"subnets/10.100.{number[1:]}.0-24"
        store.change(Put(key=key, value=value, ttl_s=ttl_s, expected=0))
    return store


def record_at(store: FakeStore, key: str) -> Any:
    return next((one for one in store.listing().records if one.key == key), None)


@asynccontextmanager
async def living_holder(store: FakeStore) -> Any:
    """Answer claims as a running flanneld does, within the block."""
    begin = store.listing().revision

    async def answer() -> None:
        async with store.watch("claims/", begin) as watcher:
            while True:
                for change in (await watcher.next()).changes:
                    if isinstance(change, PutSeen):
                        key, revision = change.record.key, change.record.revision
                        await store.write(Delete(key=key, expected=revision))

    task = asyncio.ensure_future(answer())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def test_the_lease_of_a_host_becomes_a_reservation_with_the_same_value() -> None:
    store = store_with(n1=(OURS, 86400))

    made = asyncio.run(reserve(store, SUBNET, None))

    record = record_at(store, "subnets/10.100.1.0-24")
    assert (record.value, record.lease_id) == (OURS, 0)
    assert (made.was_written, made.host_name, made.revision) == (True, "docker1", record.revision)


def test_a_second_reservation_writes_nothing() -> None:
    store = store_with(n1=(OURS, None))
    before = store.listing()

    made = asyncio.run(reserve(store, SUBNET, IPv4Address("10.0.0.1")))

    assert not made.was_written
    assert store.listing() == before


def test_a_free_subnet_is_reserved_for_an_address() -> None:
    store = store_with()

    asyncio.run(reserve(store, FREE, HOST))

    record = record_at(store, "subnets/10.100.9.0-24")
    assert (record.value, record.lease_id) == (b'{"PublicIP":"10.0.0.9","PublicIPv6":null}', 0)


def test_the_key_of_a_reservation_contains_the_ipv6_subnet_with_the_same_number() -> None:
    store = store_with(BOTH)

    made = asyncio.run(reserve(store, FREE, HOST))

    assert made.ipv6_subnet == IPv6Network("fd00:0:0:9::/64")
    assert record_at(store, "subnets/10.100.9.0-24&fd00:0:0:9::-64") is not None


@pytest.mark.parametrize(
    ("subnets", "address", "config", "error", "message"),
    [
        (SUBNET, HOST, CONFIG, FlannelError, "leased to docker1 (10.0.0.1), not to 10.0.0.9"),
        (FREE, None, CONFIG, UsageError, "no host has a lease for 10.100.9.0/24"),
        (FREE, HOST, None, NotReadyError, "no network config"),
        (FREE, IPv4Address("10.100.3.4"), CONFIG, UsageError, "an address of the overlay"),
        (FREE, IPv4Address("0.0.0.0"), CONFIG, UsageError, "not the address of a host"),
        (FREE, IPv4Address("10.0.0.1"), CONFIG, FlannelError, "already has the lease of 10.100.1.0/24"),
        ((IPv4Network("10.100.9.0/25"), None), HOST, CONFIG, ConfigError, "does not allow 10.100.9.0/25"),
        ((IPv4Network("10.99.9.0/24"), None), HOST, CONFIG, ConfigError, "does not allow 10.99.9.0/24"),
        (
            (IPv4Network("10.100.0.0/23"), None),
            HOST,
            b'{"Network":"10.100.0.0/16","SubnetLen":23,"SubnetMin":"10.100.0.0"}',
            FlannelError,
            "overlaps the lease of 10.100.1.0/24",
        ),
    ],
)
def test_a_wrong_reservation_is_refused(
    subnets: Any, address: IPv4Address | None, config: bytes | None, error: type[Exception], message: str
) -> None:
    store = store_with(config, n1=(OURS, 86400))
    before = store.listing()

    with pytest.raises(error) as raised:
        asyncio.run(reserve(store, subnets, address))

    assert message in str(raised.value)
    assert store.listing() == before


def test_a_config_that_changes_meanwhile_prevents_the_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_with()
    write, other = store.write, store.client()

    async def late(operation: Any) -> Any:
        other.change(Put(key="config", value=BOTH, ttl_s=None, expected=None))
        return await write(operation)

    monkeypatch.setattr(store, "write", late)

    with pytest.raises(StoreError, match="written by another program in the meantime"):
        asyncio.run(reserve(store, FREE, HOST))


@pytest.mark.parametrize(
    ("text", "subnets"),
    [
        ("10.100.5.0/24", (IPv4Network("10.100.5.0/24"), None)),
        ("10.100.5.0/24,fd00:5::/64", (IPv4Network("10.100.5.0/24"), IPv6Network("fd00:5::/64"))),
        ("10.100.5.0-24&fd00:5::-64", (IPv4Network("10.100.5.0/24"), IPv6Network("fd00:5::/64"))),
    ],
)
def test_a_subnet_is_read_in_each_form(text: str, subnets: Any) -> None:
    assert parse_subnets(text) == subnets


@pytest.mark.parametrize("text", ["", "docker1", "10.100.5.7/24", "10.100.5.0/24,x", "10.100.5.0"])
def test_a_text_that_is_no_subnet_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a subnet"):
        parse_subnets(text)


def examined(store: FakeStore, holder: Callable[[FakeStore], Any] | None = None) -> str:
    """Return the state of the holder, and check that no claim remains."""

    async def examine() -> str:
        if holder is None:
            return (await examine_release(store, SUBNET))[0].holder
        async with holder(store.client()):
            return (await examine_release(store, SUBNET))[0].holder

    found = asyncio.run(examine())
    assert not [one for one in store.listing().records if one.key.startswith("claims/")]
    return found


def test_a_running_holder_answers() -> None:
    assert examined(store_with(n1=(OURS, 86400)), living_holder) == "alive"


def test_a_silent_holder_is_distinguished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "ANSWER_S", 0.01)

    assert examined(store_with(n1=(OURS, 86400))) == "silent"


def test_an_original_flannel_cannot_be_asked() -> None:
    assert examined(store_with(n1=(ORIGINAL, 86400))) == "unknown"


def test_a_reservation_that_no_host_has_used_has_no_holder() -> None:
    assert examined(store_with(n1=(ORIGINAL, None))) == "none"


def test_a_lease_that_its_holder_wrote_meanwhile_is_kept() -> None:
    store = store_with(n1=(ORIGINAL, None))

    async def test() -> None:
        _, record = await examine_release(store, SUBNET)
        store.change(Put(key=record.key, value=OURS, ttl_s=None, expected=None))
        await release(store, record)

    with pytest.raises(StoreError, match="written in the meantime"):
        asyncio.run(test())
    assert record_at(store, "subnets/10.100.1.0-24").value == OURS


def test_several_keys_of_a_subnet_are_not_confused() -> None:
    store = store_with(n1=(OURS, 86400))
    other = "subnets/10.100.1.0-24&fd00::-64"
    store.change(Put(key=other, value=ORIGINAL, ttl_s=None, expected=0))

    with pytest.raises(UsageError, match="several keys"):
        asyncio.run(examine_release(store, SUBNET))

    async def test() -> Awaitable[None] | None:
        _, record = await examine_release(store, (SUBNET[0], IPv6Network("fd00::/64")))
        return await release(store, record)

    asyncio.run(test())
    assert record_at(store, other) is None
    assert record_at(store, "subnets/10.100.1.0-24") is not None
