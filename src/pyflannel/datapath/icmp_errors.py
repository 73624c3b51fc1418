"""The ICMP errors that the forwarder sends, within their rate."""

from collections.abc import Callable
from time import monotonic

from pyflannel.datapath.counters import Counters
from pyflannel.datapath.token_bucket import TokenBucket
from pyflannel.wire.packet import icmp_time_exceeded, icmp_unreachable

_RATE_PER_S = 100
_BURST = 50
"""Of each kind. RFC 1812 section 4.3.2.8 wants a limit; the numbers are ours."""

Builder = Callable[[bytearray, int, int], bytes | None]


class IcmpErrors:
    """Makes errors from the tunnel's address; None where none may be sent, or none now."""

    def __init__(self, source: int, counters: Counters) -> None:
        self._source = source
        self._counters = counters
        self._unreachables = TokenBucket(_RATE_PER_S, _BURST)
        self._time_exceededs = TokenBucket(_RATE_PER_S, _BURST)

    def unreachable(self, packet: bytearray, size: int) -> bytes | None:
        """Return the net unreachable that answers a packet."""
        return self._make("unreachable", icmp_unreachable, self._unreachables, packet, size)

    def time_exceeded(self, packet: bytearray, size: int) -> bytes | None:
        """Return the time exceeded that answers a packet."""
        return self._make("time_exceeded", icmp_time_exceeded, self._time_exceededs, packet, size)

    def _make(
        self, kind: str, build: Builder, bucket: TokenBucket, packet: bytearray, size: int
    ) -> bytes | None:
        error = build(packet, size, self._source)
        if error is None:
            return None
        if not bucket.take(monotonic()):
            self._counters.count_icmp("held_back")
            return None
        self._counters.count_icmp(kind)
        return error
