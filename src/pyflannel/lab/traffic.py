"""Traffic between hosts or containers: reached or not, and how long it takes."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from itertools import permutations
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

from pyflannel.lab.sandboxes.program import Program
from pyflannel.lab.sandboxes.sandbox import RUN_TIMEOUT_S
from pyflannel.lab.together import together
from pyflannel.lab.waiting import wait_until

_RECEIVED = re.compile(r"(?P<sent>\d+) packets transmitted, (?P<received>\d+) received")
_RTT = re.compile(r"rtt min/avg/max/mdev = [\d.]+/(?P<average>[\d.]+)/")
_TTL = re.compile(r" ttl=(?P<ttl>\d+) ")
_PING_INTERVAL_S = 0.1


class Station(Protocol):
    """What has an address and a network of its own: a host or a container."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    @property
    def address(self) -> IPv4Address:
        """Where it is reached."""

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run one of the machine's commands in its network."""

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start one of the machine's programs in its network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PingResult:
    """What a series of pings found.

    Attributes:
        rtt_ms: average of the answered; None when none was.
        ttl: of the last answer; None when none was.
    """

    sent: int
    received: int
    rtt_ms: float | None
    ttl: int | None

    @property
    def is_reached(self) -> bool:
        """Whether every ping was answered."""
        return self.received == self.sent > 0


def ping(source: Station, destination: IPv4Address | str, *, count: int = 3) -> PingResult:
    """Ping an address `count` times, a tenth of a second apart; each may take a second."""
    command = ["ping", "-n", "-c", str(count), "-i", str(_PING_INTERVAL_S), "-W", "1", str(destination)]
    said = source.run_in_network(command, check=False).stdout
    counts = _RECEIVED.search(said)
    if counts is None:
        return PingResult(sent=count, received=0, rtt_ms=None, ttl=None)
    rtt, ttls = _RTT.search(said), _TTL.findall(said)
    return PingResult(
        sent=int(counts["sent"]),
        received=int(counts["received"]),
        rtt_ms=float(rtt["average"]) if rtt else None,
        ttl=int(ttls[-1]) if ttls else None,
    )


def wait_reached(stations: Iterable[Station], *, deadline_s: float) -> None:
    """Return when each station has had an answer from each other one.

    A host is ready when its own packets can flow; the others hear of it a moment later.

    Raises:
        LabError: a pair is not joined after `deadline_s` seconds; the message names the first such.
    """

    def reach(one: Station, other: Station) -> None:
        wait_until(
            lambda: ping(one, other.address, count=1).is_reached,
            what=f"{one.name} reaches {other.name} at {other.address}",
            deadline_s=deadline_s,
        )

    together([partial(reach, *pair) for pair in _pairs(stations)])


def ping_all(stations: Iterable[Station], *, count: int = 3) -> dict[tuple[str, str], PingResult]:
    """Ping from each station to each other one, all at once; by source's and destination's name."""
    pairs = _pairs(stations)
    results = together([partial(ping, one, other.address, count=count) for one, other in pairs])
    return {(one.name, other.name): result for (one, other), result in zip(pairs, results, strict=True)}


def _pairs(stations: Iterable[Station]) -> list[tuple[Station, Station]]:
    return list(permutations(stations, 2))
