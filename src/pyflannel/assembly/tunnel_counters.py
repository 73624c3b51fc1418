"""The counters of a tunnel, which are in several places of the kernel and of the forwarder."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from msgspec.structs import replace

from pyflannel.assembly.peer_counters import bytes_from_peers
from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.kernel.host.machine import device_bytes
from pyflannel.model.forwarder import Stranger
from pyflannel.model.lease import Lease, PeerEntry
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.status import (
    BackendStatus,
    FastPathStatus,
    ForwarderStatus,
    Status,
    carried_by_programs,
)
from pyflannel.processes.forwarder import ForwarderTarget

_ANSWER_S = 1.0
"""Deadline in seconds for an answer of the forwarder, because the forwarder may hang."""


class TunnelCounters:
    """The counters of one tunnel, in the eBPF programs, in the forwarder and in the tunnel guard."""

    def __init__(
        self, device: str, fast_path: BpfTarget, forwarder: ForwarderTarget, rules: TunnelGuardTarget
    ) -> None:
        self._device = device
        self._fast_path = fast_path
        self._forwarder = forwarder
        self._rules = rules

    async def strangers(self) -> list[Stranger]:
        """Return the senders whose packets were dropped; empty if no source responds."""
        found: list[Stranger] = []
        with suppress(TargetError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                found += await self._forwarder.strangers()
        with suppress(OSError):
            found += self._fast_path.strangers(self._device)
        with suppress(TargetError):
            found += await self._rules.strangers(self._device)
        return _joined(found)

    async def received_bytes(self, own: Lease, peer: Lease) -> int | None:
        """Return the bytes of the tunnel packets from a peer; None if they are not counted.

        The tunnel guard counts the packets that the programs leave to the kernel.

        Raises:
            TargetError: the kernel does not return the counters.
        """
        by_programs = self._fast_path.received_bytes(self._device, own, peer)
        by_guard = await self._rules.received_bytes(self._device, peer)
        return None if by_programs is None or by_guard is None else by_programs + by_guard

    async def bytes_from_peers(self, status: Status, peers: Sequence[PeerEntry]) -> Mapping[IpNetwork, int]:
        """Return the bytes of the tunnel packets from each peer, without unknown values."""
        return await bytes_from_peers(self._device, status, peers, self._fast_path.received)

    def of_programs(self, fast_path: FastPathStatus | None) -> FastPathStatus | None:
        """Return the status of the fast path with the counters of the programs, if they are readable."""
        if fast_path is None:
            return None
        try:
            counts = self._fast_path.counts(self._device)
        except OSError:
            return fast_path
        packets = {outcome.value: packets for outcome, (packets, _) in counts.items()}
        sizes = {outcome.value: size for outcome, (_, size) in counts.items()}
        return replace(fast_path, counters=packets, byte_counters=sizes)


def _joined(strangers: Iterable[Stranger]) -> list[Stranger]:
    """Merge entries with the same address and reason; the merged entry has the time of the latest packet."""
    joined: dict[tuple[IpAddress, str], Stranger] = {}
    for one in strangers:
        key = one.address, one.reason
        if (other := joined.get(key)) is not None:
            latest = min(one, other, key=lambda each: each.age_s)
            one = replace(latest, packets=one.packets + other.packets)
        joined[key] = one
    return list(joined.values())


def with_traffic(
    backend: BackendStatus | None, forwarder: ForwarderStatus | None, fast_path: FastPathStatus | None
) -> BackendStatus | None:
    """Return the backend with the bytes that it received and sent.

    The programs of the fast path move packets without passing the device, so the device does not count them.
    """
    if backend is None or backend.link is None:
        return backend
    by_programs = carried_by_programs({} if fast_path is None else fast_path.byte_counters)
    received: int | None
    sent: int | None
    if backend.type != "udp":
        received, sent = device_bytes(backend.link) or (None, None)
        if received is not None and sent is not None:
            received, sent = received + by_programs.received, sent + by_programs.sent
    elif forwarder is None and fast_path is None:
        received = sent = None
    else:
        by_process = {} if forwarder is None else forwarder.counters
        received = by_process.get("received_bytes", 0) + by_programs.received
        sent = by_process.get("sent_bytes", 0) + by_programs.sent
    return replace(backend, received=received, sent=sent)
