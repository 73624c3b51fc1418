"""A host that starts among standing leases: its figures, and how they are told."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from rich.table import Table

from drawing.curves import Curve

TITLE = "Start of a host in a large network: seconds until the last peer is in the kernel"
HAND_PATIENCE_S = 30.0
"""The longest wait for `ip -batch`: its time for each gateway grows with the number of gateways."""

COLOURS = {"udp": "#2ca02c", "host-gw": "#1f77b4", "vxlan": "#d62728"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One start among standing leases; `*_s` are seconds from the exec.

    Attributes:
        hand_s: what ip(8) and bridge(8) needed for the same objects; None for udp, which has none.
        last_s: until the last route is in the kernel; for udp, until the forwarder knows all.
        ready_s: until the daemon said so.
        processor_s: of the daemon, until it was ready.
        resident_mib: memory when all is done, and in the last start, but for the largest network's, saved;
            of several starts the most, as `peak_mib`.
    """

    backend: str
    leases: int
    hand_s: float | None
    last_s: float
    ready_s: float
    processor_s: float
    resident_mib: float
    peak_mib: float

    @property
    def by_hand(self) -> str:
        """Seconds of `ip -batch` for the same objects; empty if it was not run."""
        if self.hand_s is None:
            return ""
        return f"{self.hand_s:.2f}" if self.hand_s < HAND_PATIENCE_S else f"> {HAND_PATIENCE_S:.0f}"

    @property
    def line(self) -> str:
        """What was found out, in a line."""
        hand = f", ip -batch {self.by_hand} s" if self.by_hand else ""
        return (
            f"{self.backend}, {self.leases} leases: {self.last_s:.2f} s{hand};"
            f" processor {self.processor_s:.2f} s; {self.resident_mib:.1f} to {self.peak_mib:.1f} MiB"
        )


def typical(starts: Sequence[Start]) -> Start:
    """Return a start with three values: median time until the last route and of `ip -batch`, most memory."""
    ordered = sorted(starts, key=lambda start: start.last_s)
    hand = [start.hand_s for start in starts if start.hand_s is not None]
    return replace(
        ordered[len(ordered) // 2],
        hand_s=median(hand) if hand else None,
        resident_mib=max(start.resident_mib for start in starts),
        peak_mib=max(start.peak_mib for start in starts),
    )


def starts_table(starts: Sequence[Start]) -> Table:
    """Return the figures as a table."""
    shown = Table(title=TITLE)
    shown.add_column("backend")
    for heading in (
        "leases",
        "ip -batch, s",
        "last route, s",
        "ratio",
        "ready, s",
        "processor, s",
        "µs per lease",
        "MiB",
        "MiB peak",
    ):
        shown.add_column(heading, justify="right")
    for start in starts:
        shown.add_row(
            start.backend,
            str(start.leases),
            start.by_hand,
            f"{start.last_s:.2f}",
            "" if start.hand_s in (None, HAND_PATIENCE_S) else f"{start.last_s / start.hand_s:.1f}",
            f"{start.ready_s:.2f}",
            f"{start.processor_s:.2f}",
            f"{1e6 * start.last_s / start.leases:.0f}",
            f"{start.resident_mib:.1f}",
            f"{start.peak_mib:.1f}",
        )
    return shown


def starts_in_markdown(starts: Sequence[Start]) -> Iterator[str]:
    """Yield the table of starts as the documentation has it."""
    yield (
        "| backend | leases | processor, s | last route, s | `ip -batch`, s"
        " | memory after the start and peak, MiB |"
    )
    yield "|---|---|---|---|---|---|"
    for start in starts:
        yield (
            f"| {start.backend} | {start.leases:,} | {start.processor_s:.2f} | {start.last_s:.2f}"
            f" | {start.by_hand} | {start.resident_mib:.1f}, {start.peak_mib:.1f} |"
        )


def start_curves(starts: Sequence[Start]) -> Iterator[Curve]:
    """Yield the curve of each backend, and beside it the curve of `ip -batch`."""
    for backend, colour in COLOURS.items():
        own = [start for start in starts if start.backend == backend]
        yield Curve(
            name=backend,
            colour=colour,
            points=[(start.leases, start.last_s) for start in own],
            beside=[(start.leases, start.hand_s) for start in own if start.hand_s is not None],
        )
