"""Ends a process that cannot be asked to."""

import asyncio
import os
import select
import signal

_GONE_S = 2.0


async def end_process(pid: int) -> None:
    """Kill a process and return when it is gone, and with it what it held; so it is when there was none."""
    await asyncio.to_thread(_end, pid)


def _end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        # One that sleeps in the kernel may take longer; whoever needs what it holds is then refused it.
        select.select([descriptor], [], [], _GONE_S)
    except ProcessLookupError:
        return
    finally:
        os.close(descriptor)
