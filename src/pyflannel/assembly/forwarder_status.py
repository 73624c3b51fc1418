"""The forwarder of a run directory, asked itself: it outlives every daemon."""

import asyncio
from pathlib import Path

from pyflannel.errors import TargetError
from pyflannel.model.forwarder import Forwarder
from pyflannel.model.state import State
from pyflannel.model.status import ForwarderStatus
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.forwarder_client import connected
from pyflannel.wire.forwarder_control import SOCKET_NAME

_ANSWER_S = 1.0
"""Whoever asks for a status does not wait for a forwarder that stands still."""


async def forwarder_status(run_dir: Path) -> tuple[ForwarderStatus | None, str | None]:
    """Return the forwarder that runs there, and its device; nothing when none answers soon."""
    target = ForwarderTarget(run_dir)
    try:
        async with asyncio.timeout(_ANSWER_S):
            async with connected(run_dir / SOCKET_NAME) as client:
                pid = client.pid
            found = [item for item in await target.snapshot(State.EMPTY) if isinstance(item, Forwarder)]
            counters = await target.counters()
    except (TargetError, TimeoutError):
        return None, None
    forwarder = found[0] if found else None
    is_attached = forwarder is not None and forwarder.is_attached
    status = ForwarderStatus(pid=pid, is_attached=is_attached, counters=counters)
    return status, forwarder.link if forwarder else None
