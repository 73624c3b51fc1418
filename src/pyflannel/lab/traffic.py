"""Pings between hosts or containers: reachability and round-trip times."""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from itertools import permutations
from math import ceil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Protocol

from msgspec import Struct

from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import RUN_TIMEOUT_S
from pyflannel.lab.waiting import together, wait_until

_RTT = re.compile(r"rtt min/avg/max/mdev = [\d.]+/(?P<average>[\d.]+)/")
_ANSWER = re.compile(r" icmp_seq=(?P<number>\d+) ttl=(?P<ttl>\d+) ")
_PING_INTERVAL_S = 0.1
_ANSWER_S = 1.0


class Station(Protocol):
    """A host or container: a station with its own address and network."""

    @property
    def name(self) -> str:
        """The name of the station in tables."""

    @property
    def address(self) -> IPv4Address | IPv6Address:
        """The address of the station."""

    def run_in_network(
        self, argv: Sequence[str | Path], *, check: bool = True, timeout_s: float = RUN_TIMEOUT_S
    ) -> CompletedProcess[str]:
        """Run a command of the machine in the network of the station."""

    def start_in_network(self, argv: Sequence[str | Path], *, name: str = "") -> Program:
        """Start a program of the machine in the network of the station."""


class PingResult(Struct, frozen=True, kw_only=True):
    """The result of a series of pings.

    Attributes:
        rtt_ms: average round-trip time; None without an answer.
        ttl: TTL of the last answer; None without an answer.
    """

    sent: int
    received: int
    rtt_ms: float | None
    ttl: int | None

    @property
    def is_reached(self) -> bool:
        """True if every ping was answered."""
        return self.received == self.sent > 0


def ping(source: Station, destination: IPv4Address | IPv6Address | str, *, count: int = 3) -> PingResult:
    """Ping an address `count` times at intervals of 0.1 s, with a deadline of 1 s for each answer.

    Without a deadline, ping(8) exits almost immediately after the last ping. With a deadline, ping sends
    until `count` answers have arrived, and answers to further pings are not counted here.
    """
    deadline_s = ceil((count - 1) * _PING_INTERVAL_S + _ANSWER_S)
    times = ["-c", str(count), "-i", str(_PING_INTERVAL_S), "-w", str(deadline_s)]
    said = source.run_in_network(["ping", "-n", *times, str(destination)], check=False).stdout
    answers, rtt = _ANSWER.findall(said), _RTT.search(said)
    return PingResult(
        sent=count,
        received=len({number for number, _ in answers} & set(map(str, range(1, count + 1)))),
        rtt_ms=float(rtt["average"]) if rtt else None,
        ttl=int(answers[-1][1]) if answers else None,
    )


def wait_reached(stations: Iterable[Station], *, deadline_s: float) -> None:
    """Wait until each station has received an answer from every other station.

    A host is ready when its own packets can flow. The other hosts learn of the host a moment later.

    Raises:
        LabError: a pair is not connected after `deadline_s` seconds; the message names the first pair that is
            not connected.
    """

    def reach(one: Station, other: Station) -> None:
        wait_until(
            lambda: ping(one, other.address, count=1).is_reached,
            what=f"{one.name} reaches {other.name} at {other.address}",
            deadline_s=deadline_s,
        )

    together([partial(reach, *pair) for pair in _pairs(stations)])


def ping_all(stations: Iterable[Station], *, count: int = 3) -> dict[tuple[str, str], PingResult]:
    """Ping every station from every other station at the same time; return the results by the names of
    both stations.
    """
    pairs = _pairs(stations)
    results = together([partial(ping, one, other.address, count=count) for one, other in pairs])
    return {(one.name, other.name): result for (one, other), result in zip(pairs, results, strict=True)}


def _pairs(stations: Iterable[Station]) -> list[tuple[Station, Station]]:
    return list(permutations(stations, 2))
