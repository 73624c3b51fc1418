"""Figures of a host that starts in a network with existing leases, and their output."""

from collections.abc import Iterator, Sequence
from statistics import median

from msgspec import Struct
from msgspec.structs import replace
from rich.table import Table

from drawing.curves import Curve

TITLE = "Start of a host in a large network: seconds until the last peer is in the kernel"
IP_BATCH_PATIENCE_S = 30.0
"""Maximum time for `ip -batch` in seconds: its time for each gateway grows with the number of gateways."""

COLOURS = {"udp": "#2ca02c", "host-gw": "#1f77b4", "vxlan": "#d62728", "vxlan-dual": "#9467bd"}


class Start(Struct, frozen=True, kw_only=True):
    """One start with existing leases; `*_s` are seconds since the exec.

    Attributes:
        ip_batch_s: time of ip(8) and bridge(8) for the same objects; None for udp, which has no such objects.
        last_s: time until the last route is in the kernel; for udp, until the forwarder knows all peers.
        ready_s: time until the daemon reported that it was ready.
        processor_s: processor time of the daemon until it was ready.
        resident_mib: memory after the end of all work, in the last start also after the leases were saved,
            except for the largest network; the maximum of several starts, like `peak_mib`.
    """

    backend: str
    leases: int
    ip_batch_s: float | None
    last_s: float
    ready_s: float
    processor_s: float
    resident_mib: float
    peak_mib: float

    @property
    def batch_s(self) -> str:
        """Seconds of `ip -batch` for the same objects; empty if `ip -batch` was not run."""
        if self.ip_batch_s is None:
            return ""
        return (
            f"{self.ip_batch_s:.2f}"
            if self.ip_batch_s < IP_BATCH_PATIENCE_S
            else f"> {IP_BATCH_PATIENCE_S:.0f}"
        )

    @property
    def line(self) -> str:
        """The figures in one line."""
        ip_batch = f", ip -batch {self.batch_s} s" if self.batch_s else ""
        return (
            f"{self.backend}, {self.leases} leases: {self.last_s:.2f} s{ip_batch};"
            f" processor {self.processor_s:.2f} s; {self.resident_mib:.1f} to {self.peak_mib:.1f} MiB"
        )


def typical(starts: Sequence[Start]) -> Start:
    """Return a start with three values: medians of the last route and of `ip -batch`, maximum memory."""
    ordered = sorted(starts, key=lambda start: start.last_s)
    ip_batch = [start.ip_batch_s for start in starts if start.ip_batch_s is not None]
    return replace(
        ordered[len(ordered) // 2],
        ip_batch_s=median(ip_batch) if ip_batch else None,
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
            start.batch_s,
            f"{start.last_s:.2f}",
            ""
            if start.ip_batch_s in (None, IP_BATCH_PATIENCE_S)
            else f"{start.last_s / start.ip_batch_s:.1f}",
            f"{start.ready_s:.2f}",
            f"{start.processor_s:.2f}",
            f"{1e6 * start.last_s / start.leases:.0f}",
            f"{start.resident_mib:.1f}",
            f"{start.peak_mib:.1f}",
        )
    return shown


def starts_in_markdown(starts: Sequence[Start]) -> Iterator[str]:
    """Yield the table of starts in the form of the documentation."""
    yield (
        "| backend | leases | processor, s | last route, s | `ip -batch`, s"
        " | memory after the start and peak, MiB |"
    )
    yield "|---|---|---|---|---|---|"
    for start in starts:
        yield (
            f"| {start.backend} | {start.leases:,} | {start.processor_s:.2f} | {start.last_s:.2f}"
            f" | {start.batch_s} | {start.resident_mib:.1f}, {start.peak_mib:.1f} |"
        )


def start_curves(starts: Sequence[Start]) -> Iterator[Curve]:
    """Yield the curve of each backend, and the curve of `ip -batch` for comparison."""
    for backend, colour in COLOURS.items():
        own = [start for start in starts if start.backend == backend]
        yield Curve(
            name=backend,
            colour=colour,
            points=[(start.leases, start.last_s) for start in own],
            beside=[(start.leases, start.ip_batch_s) for start in own if start.ip_batch_s is not None],
        )
