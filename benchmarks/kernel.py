"""Measures the cost of many peers in the kernel, with pyflannel's adapter, and with ip(8) and bridge(8) for
the same objects.

Run by `scripts/bench kernel`, as root. The benchmark uses no store and no daemon, except for the last part,
which damages the fast path of a running daemon and measures the time until its repair.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from statistics import median

from rich.table import Table

from command.options import add_json, bench_parser, exit_status
from command.output import load, show, step
from testlab.fast_path_costs import Absences, TableCosts, measure_fast_path
from testlab.kernel_objects import AdapterCosts, BatchCosts, measure_adapter, measure_batch

TABLE_PEERS = 10_000
SIZES = {"vxlan": (1000, 10_000), "host-gw": (1000, 10_000)}

Point = tuple[AdapterCosts, BatchCosts]


def main() -> int:
    """Measure and print; return the exit status: 1 if the kernel refused an operation."""
    parser = bench_parser("kernel", __doc__)
    parser.add_argument("--backend", choices=list(SIZES), nargs="*", default=list(SIZES))
    parser.add_argument(
        "--peers", type=int, nargs="+", help="numbers of peers, one run for each (default 1000 10000)"
    )
    parser.add_argument("--programs", type=int, default=20, help="programs to remove; 0 for none")
    parser.add_argument("--entries", type=int, default=5, help="entries to remove, 5 s each")
    add_json(parser)
    options = parser.parse_args()
    points: list[Point] = []
    for backend in options.backend:
        for peers in options.peers or SIZES[backend]:
            step(f"{backend}, {peers} peers")
            points.append((measure_adapter(backend, peers), measure_batch(backend, peers)))
    path = None
    if options.programs:
        step("fast path")
        path = measure_fast_path(TABLE_PEERS, options.programs, options.entries)
    if options.json:
        objects = [{**asdict(ours), **asdict(batch)} for ours, batch in points]
        print(json.dumps({"objects": objects, "fast_path": [asdict(each) for each in path or ()]}))
    else:
        show([table(points)] if points else [], cost_lines(*path) if path is not None else [])
    return 1 if any(ours.refused for ours, _ in points) else 0


def table(points: Sequence[Point]) -> Table:
    """Return the figures as a table."""
    shown = Table(title=f"Peers in the kernel; load of the machine {load():.1f}")
    for heading in (
        "backend",
        "peers",
        "plan + look, s",
        "apply, s",
        "CPU, s",
        "ip -batch, s",
        "CPU, s",
        "first audit, CPU ms",
        "audit, CPU ms",
        "event p50, ms",
        "p99",
        "longest turn, ms",
        "resident, MB",
    ):
        shown.add_column(heading, justify="right")
    for ours, batch in points:
        shown.add_row(
            ours.backend,
            f"{ours.peers:,}",
            f"{ours.plan_s + ours.look_s:.2f}",
            f"{ours.apply_s:.2f}",
            f"{ours.apply_cpu_s:.2f}",
            f"{batch.batch_s:.2f}",
            f"{batch.batch_cpu_s:.2f}",
            f"{1000 * ours.first_audit_cpu_s:.0f}",
            f"{1000 * ours.audit_cpu_s:.0f}",
            f"{ours.event_p50_ms:.1f}",
            f"{ours.event_p99_ms:.1f}",
            f"{ours.turn_max_ms:.0f}",
            f"{ours.resident_mb:.0f}",
        )
    return shown


def cost_lines(table: TableCosts, absences: Absences) -> Iterator[str]:
    """Yield the costs of the fast path's table and programs as lines."""
    yield (
        f"fast path: {table.peers:,} peers are entered in {table.put_ms:.0f} ms"
        f" ({table.put_cpu_ms:.0f} ms of processor time) and read back in {table.look_ms:.0f} ms;"
        f" the kernel is probed in {table.features_ms:.1f} ms"
    )
    for what, times in (("program", absences.programs_s), ("peer's entry", absences.entries_s)):
        if times:
            yield (
                f"a removed {what} is restored after {1000 * median(times):.0f} ms,"
                f" {1000 * max(times):.0f} ms at most, {len(times)} times"
            )
    yield f"load of the machine {load():.1f}"


if __name__ == "__main__":
    sys.exit(exit_status(main))
