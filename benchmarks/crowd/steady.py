"""Figures of a host in a large network without changes of its own, and their output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

STORM_PER_S = 200
"""Number of hosts that join each second, while the same number leaves."""

FOREIGN = 30_000
"""Foreign routes that are added and removed while the daemon is stopped: more than the kernel's queue holds.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """Processor time of an idle daemon in per cent of a core: total, and between audits."""

    lasted_s: float
    percent: float
    quiet_percent: float
    passes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Figures of a host in a large network; `*_ms` are pairs of p50 and p99.

    Attributes:
        write_ms: etcd's response to the write of a lease.
        join_ms: time from the write to the route in the kernel.
        join_during_repairs_ms: the same time while the host repairs damage, and scans the kernel constantly.
        leave_ms: time from the deletion of a lease to the removal of the route, including two seconds of
            delay.
        rest: processor time of the idle daemon.
        storm_percent: processor time in per cent of a core, while hosts joined and left.
        storm_settled_s: time from the last join or leave until the kernel was correct.
        flood_passes: number of passes after more changes than the kernel's queue holds.
    """

    backend: str
    leases: int
    write_ms: tuple[float, float]
    join_ms: tuple[float, float]
    join_during_repairs_ms: tuple[float, float]
    leave_ms: tuple[float, float]
    rest: Rest
    storm_percent: float
    storm_settled_s: float
    flood_passes: int
    resident_mib: float
    peak_mib: float

    def lines(self) -> Iterator[str]:
        """Yield the figures, one line for each subject."""
        name, rest = f"{self.backend}, {self.leases} leases", self.rest

        def pair(of: tuple[float, float]) -> str:
            return f"p50 {of[0]:.1f} ms, p99 {of[1]:.1f} ms"

        yield (
            f"{name}: etcd's response to the write of a lease: {pair(self.write_ms)};"
            f" the route in the kernel, from the same moment: {pair(self.join_ms)};"
            f" the same while flanneld continuously repairs damage: {pair(self.join_during_repairs_ms)}"
        )
        yield (
            f"{name}: from a lease's deletion to its route's removal, with the delay of 2 s:"
            f" {pair(self.leave_ms)}"
        )
        yield (
            f"{name}: idle for {rest.lasted_s:.0f} s: {rest.percent:.2f} % of a core"
            f" with {rest.passes} audits, {rest.quiet_percent:.3f} % between them"
        )
        yield (
            f"{name}: {STORM_PER_S} hosts join and {STORM_PER_S} leave every second:"
            f" {self.storm_percent:.0f} % of a core, kernel correct"
            f" {self.storm_settled_s:.1f} s after the last"
        )
        yield (
            f"{name}: {2 * FOREIGN} changes while flanneld was suspended, more than the kernel can announce:"
            f" full reads until correct: {self.flood_passes}"
        )
        yield f"{name}: memory {self.resident_mib:.1f} MiB at the end, {self.peak_mib:.1f} MiB peak"


def steady_in_markdown(steady: Sequence[Steady]) -> Iterator[str]:
    """Yield the table of a host in a large network, with one column for each backend."""

    def pair(of: tuple[float, float]) -> str:
        return f"{of[0]:.1f}, {of[1]:.1f} ms"

    rows = {
        "etcd's response to the write of a lease, p50 and p99": [pair(one.write_ms) for one in steady],
        "the lease's route is in the kernel, from the same moment": [pair(one.join_ms) for one in steady],
        "the same while flanneld continuously repairs damage": [
            pair(one.join_during_repairs_ms) for one in steady
        ],
        "idle, with audits and between them": [
            f"{one.rest.percent:.2f} %, {one.rest.quiet_percent:.3f} % of a core" for one in steady
        ],
        f"{STORM_PER_S} hosts join and {STORM_PER_S} leave every second": [
            f"{one.storm_percent:.0f} % of a core" for one in steady
        ],
        "kernel correct after the last of them, including the 2 s delay of removals": [
            f"{one.storm_settled_s:.1f} s" for one in steady
        ],
        f"{2 * FOREIGN:,} changes by another program while flanneld was suspended,"
        " one of its routes deleted": [f"full reads: {one.flood_passes}" for one in steady],
        "memory at the end and peak": [f"{one.resident_mib:.1f}, {one.peak_mib:.1f} MiB" for one in steady],
    }
    yield f"| | {' | '.join(one.backend for one in steady)} |"
    yield f"|{'---|' * (len(steady) + 1)}"
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"
