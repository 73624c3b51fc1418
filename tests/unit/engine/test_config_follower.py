"""The config follower on a store and a clock in memory."""

import asyncio

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.store_followers import ConfigFollower
from pyflannel.model.store_record import Put

CONFIG = b'{"Network":"10.100.0.0/16"}'


def test_a_store_that_ends_every_watch_is_listed_with_growing_pauses() -> None:
    """The pause between two attempts grows until a watch has stayed open."""

    async def check() -> int:
        clock = FakeClock()
        store = FakeStore(clock)
        await store.write(Put(key="config", value=CONFIG, ttl_s=None, expected=None))
        store.refuses_watches = True
        follower = ConfigFollower(
            store=store,
            clock=clock,
            draw=lambda n: n // 2,
            store_log=StoreLog(clock),
            found=lambda *_: None,
            waiting=lambda _: None,
            away=lambda _: None,
        )
        running = asyncio.ensure_future(follower.run())
        await clock.advance(60)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return store.listings

    assert asyncio.run(check()) < 30
