"""The forwarder's counters, and its ICMP errors with a rate limit."""

from collections.abc import Callable, Mapping
from errno import errorcode
from time import monotonic

from pyflannel.datapath.forwarding import Drop, Strangers
from pyflannel.wire.packet import icmp_time_exceeded, icmp_unreachable

_OUTBOUND = (
    *(Drop.SHORT, Drop.NOT_IPV4, Drop.INCONSISTENT, Drop.LONG),
    *(Drop.LOOP, Drop.NO_ROUTE, Drop.EXPIRED),
)
_INBOUND = (
    *(Drop.SHORT, Drop.NOT_IPV4, Drop.INCONSISTENT, Drop.LONG),
    *(Drop.STRANGER, Drop.IMPOSTOR, Drop.NOT_OURS, Drop.EXPIRED, Drop.DETACHED),
)


class Counters:
    """Counters since the start of the forwarder. The counters never decrease.

    - sent_*: packets and bytes to peers; received_*: packets and bytes to the device
    - batches_*: system calls with several packets
    - dropped_out_*: dropped packets of the device; dropped_in_*: dropped packets of peers
    - icmp_*: sent errors, and errors not sent because of the rate limit
    - CALL_failed_ERRNO: packets lost because the kernel refused a call; the counter appears at the first
    refusal

    Attributes:
        strangers: the senders of packets that the guard dropped. A new forwarder does not take over these
            senders.
    """

    def __init__(self) -> None:
        self.sent_packets = self.sent_bytes = self.received_packets = self.received_bytes = 0
        self.batches_sent = self.batches_received = self.batches_written = 0
        self.strangers = Strangers()
        self._events: dict[str, int] = {
            **{f"dropped_out_{drop.value}": 0 for drop in _OUTBOUND},
            **{f"dropped_in_{drop.value}": 0 for drop in _INBOUND},
            **{f"icmp_{kind}": 0 for kind in ("unreachable", "time_exceeded", "held_back")},
        }

    def count_dropped_out(self, drop: Drop) -> None:
        """Count a dropped packet of the device."""
        self._events[f"dropped_out_{drop.value}"] += 1

    def count_dropped_in(self, drop: Drop, packets: int = 1) -> None:
        """Count dropped packets of a peer."""
        self._events[f"dropped_in_{drop.value}"] += packets

    def count_icmp(self, kind: str) -> None:
        """Count an ICMP error: `unreachable`, `time_exceeded`, or an error that was `held_back`."""
        self._events[f"icmp_{kind}"] += 1

    def count_failure(self, call: str, error: OSError, packets: int = 1) -> None:
        """Count the packets lost by a refusal of the kernel; `call` is `send`, `receive` or `write`."""
        name = f"{call}_failed_{errorcode.get(error.errno or 0, 'UNKNOWN')}"
        self._events[name] = self._events.get(name, 0) + packets

    def add(self, others: Mapping[str, int]) -> None:
        """Continue with the counters of the previous forwarder."""
        for name, value in others.items():
            if name in self._totals():
                setattr(self, name, getattr(self, name) + value)
            else:
                self._events[name] = self._events.get(name, 0) + value

    def by_name(self) -> dict[str, int]:
        """Return all counters."""
        return {**self._totals(), **self._events}

    def _totals(self) -> dict[str, int]:
        return {
            "sent_packets": self.sent_packets,
            "sent_bytes": self.sent_bytes,
            "received_packets": self.received_packets,
            "received_bytes": self.received_bytes,
            "batches_sent": self.batches_sent,
            "batches_received": self.batches_received,
            "batches_written": self.batches_written,
        }


class TokenBucket:
    """Grants at most `burst` packets at once, and at most `rate` packets per second on average."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at: float | None = None

    def take(self, now: float) -> bool:
        """Return whether one more packet is granted at `now`, in seconds of a monotonic clock."""
        if self._filled_at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


_RATE_PER_S = 100
_BURST = 50
"""The rate limits for each kind of ICMP error. RFC 1812 section 4.3.2.8 requires a limit, but does not
define values."""

Builder = Callable[[bytearray, int, int], bytes | None]


class IcmpErrors:
    """Creates ICMP errors with the tunnel's address as the source; returns None if an error is not allowed
    or exceeds the rate limit.
    """

    def __init__(self, source: int, counters: Counters) -> None:
        self._source = source
        self._counters = counters
        self._unreachables = TokenBucket(_RATE_PER_S, _BURST)
        self._time_exceededs = TokenBucket(_RATE_PER_S, _BURST)

    def unreachable(self, packet: bytearray, size: int) -> bytes | None:
        """Return the ICMP "net unreachable" message for a packet."""
        return self._make("unreachable", icmp_unreachable, self._unreachables, packet, size)

    def time_exceeded(self, packet: bytearray, size: int) -> bytes | None:
        """Return the ICMP "time exceeded" message for a packet."""
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
