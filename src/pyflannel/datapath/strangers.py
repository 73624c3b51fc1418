"""Who sent what the guard dropped: by address and reason, with the latest packet's inner addresses."""

from socket import inet_aton
from time import monotonic

from pyflannel.datapath.forwarding import Drop
from pyflannel.wire.forwarder_control import Stranger

REMEMBERED = 256
"""As an address is easily forged there may be any number: whom we saw least recently we forget."""

_LONGEST_AGE_MS = (1 << 32) - 1

GUARDED = frozenset({Drop.STRANGER, Drop.IMPOSTOR, Drop.NOT_OURS})
"""Reasons that say more of the sender than of the packet."""


class Strangers:
    """Senders since the start, the latest last."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, Drop], tuple[int, float, int, int]] = {}

    def note(self, sender: str, drop: Drop, source: int, destination: int) -> None:
        """Remember a dropped packet with these inner addresses."""
        seen, key = self._seen, (sender, drop)
        packets = seen.pop(key)[0] if key in seen else 0
        seen[key] = packets + 1, monotonic(), source, destination
        if len(seen) > REMEMBERED:
            del seen[next(iter(seen))]

    def all(self) -> list[Stranger]:
        """Return them as values of the control protocol."""
        now = monotonic()
        return [
            Stranger(
                int.from_bytes(inet_aton(sender), "big"),
                drop.value,
                packets,
                min(int((now - seen_at) * 1000), _LONGEST_AGE_MS),
                source,
                destination,
            )
            for (sender, drop), (packets, seen_at, source, destination) in self._seen.items()
        ]
