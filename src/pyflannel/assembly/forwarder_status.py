"""The forwarder of a run directory, asked itself: it outlives every daemon."""

import asyncio
from pathlib import Path

from pyflannel.errors import TargetError, WireError
from pyflannel.model.status import ForwarderStatus
from pyflannel.processes.forwarder_client import connected
from pyflannel.wire.forwarder_control import (
    SOCKET_NAME,
    Kind,
    decode_counters,
    decode_state,
    decode_summary,
)

_ANSWER_S = 1.0
"""Whoever asks for a status does not wait for a forwarder that stands still."""


async def forwarder_status(run_dir: Path) -> ForwarderStatus | None:
    """Return the forwarder that runs there; None when none answers soon.

    Its table of peers is not asked for: it may be long, and packets would wait for it.
    """
    try:
        async with asyncio.timeout(_ANSWER_S), connected(run_dir / SOCKET_NAME) as client:
            summary = decode_summary(await client.ask(Kind.READ_SUMMARY))
            counters = decode_counters(await client.ask(Kind.READ_COUNTERS))
            return ForwarderStatus(pid=client.pid, is_attached=summary.is_attached, counters=counters)
    except (TargetError, WireError, TimeoutError):
        return None


async def forwarder_link(run_dir: Path) -> str | None:
    """Return the device of the forwarder that runs there; None when none answers soon."""
    try:
        async with asyncio.timeout(_ANSWER_S), connected(run_dir / SOCKET_NAME) as client:
            return decode_state(await client.ask(Kind.READ_STATE)).settings.link
    except (TargetError, WireError, TimeoutError):
        return None
