"""A pause that an event cuts short."""

import asyncio

from pyflannel.ports.clock import Clock


async def pause(clock: Clock, seconds: float, *, until: asyncio.Event) -> None:
    """Return when the event is set, at the latest after `seconds` by the clock."""
    waits = {asyncio.ensure_future(until.wait()), asyncio.ensure_future(clock.sleep(seconds))}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)
