"""What many peers cost in the kernel: our adapter beside ip(8) and bridge(8) with the same objects.

Run by `scripts/bench kernel`, as root. No store and no daemon takes part.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pyflannel.errors import FlannelError
from pyflannel.lab.kernel_objects import AdapterCosts, BatchCosts, measure_adapter, measure_batch

SIZES = {"vxlan": (1000, 10_000), "host-gw": (1000, 10_000)}

Point = tuple[AdapterCosts, BatchCosts]


def main() -> int:
    """Measure and print; return the exit status: 1 when the kernel refused something."""
    parser = argparse.ArgumentParser(prog="scripts/bench kernel", description=__doc__)
    parser.add_argument("--backend", choices=list(SIZES), nargs="+", default=list(SIZES))
    parser.add_argument("--peers", type=int, nargs="+", help="how many, one run each (default 1000 10000)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    points: list[Point] = []
    try:
        for backend in options.backend:
            for peers in options.peers or SIZES[backend]:
                print(f"· {backend}, {peers} peers", file=sys.stderr)
                points.append((measure_adapter(backend, peers), measure_batch(backend, peers)))
    except FlannelError as error:
        print(f"bench: {error}\n  {error.hint}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps([{**asdict(ours), **asdict(batch)} for ours, batch in points]))
    else:
        show(points)
    return 1 if any(ours.refused for ours, _ in points) else 0


def show(points: Sequence[Point]) -> None:
    """Print the figures as a table."""
    table = Table(title=f"Peers in the kernel; load of the machine {os.getloadavg()[0]:.1f}")
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
        table.add_column(heading, justify="right")
    for ours, batch in points:
        table.add_row(
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
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
