"""The keys of a network are below its name, and other keys are not visible."""

import asyncio

from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.model.store_record import Conflict, Delete, Put, PutSeen, StoreChanges, Unchanged, Written
from pyflannel.stores.prefixed import PrefixedStore


def put(key: str, expected: int | None = None) -> Put:
    return Put(key=key, value=b"v", ttl_s=60, expected=expected)


def test_each_network_sees_its_own_keys() -> None:
    async def check() -> None:
        whole = FakeStore(FakeClock())
        blue, red = PrefixedStore(whole, "blue"), PrefixedStore(whole, "red")
        await blue.write(put("config"))
        await red.write(put("subnets/10.1.1.0-24"))
        await whole.write(put("config"))

        assert [record.key for record in (await blue.list("")).records] == ["config"]
        assert [record.key for record in (await red.list("subnets/")).records] == ["subnets/10.1.1.0-24"]
        assert await red.get("config") is None
        assert [record.key for record in (await whole.list("blue/")).records] == ["blue/config"]
        record = await blue.get("config")
        assert record is not None
        assert record.key == "config"
        assert await blue.time_to_live(record) == 60

    asyncio.run(check())


def test_the_key_of_a_condition_is_prefixed_too() -> None:
    async def check() -> None:
        whole = FakeStore(FakeClock())
        blue = PrefixedStore(whole, "blue")
        written = await whole.write(put("blue/config"))
        assert isinstance(written, Written)
        lease = replace(put("subnets/10.1.1.0-24"), given=Unchanged("config", written.revision))

        assert isinstance(await blue.write(lease), Written)
        await whole.write(put("blue/config"))
        assert isinstance(await blue.write(lease), Conflict)

    asyncio.run(check())


def test_writes_are_conditional_and_watches_see_them() -> None:
    async def check() -> None:
        whole = FakeStore(FakeClock())
        blue = PrefixedStore(whole, "blue")
        await whole.write(put("red/config"))
        async with blue.watch("", 1) as watch:
            assert await watch.next() == StoreChanges((), 1)
            written = await blue.write(put("config", expected=0))
            conflict = await blue.write(put("config", expected=0))
            seen = await watch.next()

            assert isinstance(written, Written)
            assert isinstance(conflict, Conflict)
            assert conflict.current is not None
            assert conflict.current.key == "config"
            assert [change.record.key for change in seen.changes if isinstance(change, PutSeen)] == ["config"]
            await blue.write(Delete(key="config", expected=written.revision))
            gone = await watch.next()
            assert [change.key for change in gone.changes if not isinstance(change, PutSeen)] == ["config"]

    asyncio.run(check())
