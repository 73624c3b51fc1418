"""Who guards the tunnel of this host: the programs in the kernel, and the forwarder."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.model.stranger import Stranger
from pyflannel.processes.forwarder import ForwarderTarget

_ANSWER_S = 1.0
"""Whoever asks does not wait for a forwarder that stands still."""


class TunnelGuard:
    """A Guard that asks both, of the tunnel with this device."""

    def __init__(self, device: str, fast_path: BpfTarget, forwarder: ForwarderTarget) -> None:
        self._device = device
        self._fast_path = fast_path
        self._forwarder = forwarder

    async def strangers(self) -> list[Stranger]:
        """Return whom either turned away; nobody where neither can be asked."""
        found: list[Stranger] = []
        with suppress(TargetError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                found += await self._forwarder.strangers()
        with suppress(OSError):
            found += self._fast_path.strangers(self._device)
        return _joined(found)


def _joined(strangers: Iterable[Stranger]) -> list[Stranger]:
    """Return one for each address and reason, with the latest packet."""
    joined: dict[tuple[IPv4Address, str], Stranger] = {}
    for one in strangers:
        key = one.address, one.reason
        if (other := joined.get(key)) is not None:
            latest = min(one, other, key=lambda each: each.age_s)
            one = replace(latest, packets=one.packets + other.packets)
        joined[key] = one
    return list(joined.values())
