"""Traffic over a path, in the form of all benchmarks of paths."""

import re

from paths.path import Path
from pyflannel.lab.kernel_path import Datagrams, measure_datagrams

SMALL_BYTES = 64


def small_packets(path: Path, seconds: int, kpps: float = 0.0) -> Datagrams:
    """Send small datagrams at a rate, or with 0 at the maximum rate."""
    return measure_datagrams(path.left, path.right, size=SMALL_BYTES, seconds=seconds, kpps=kpps)


def ping_times(path: Path, *, pings: int, interval_s: float) -> list[float]:
    """Return the round trip of each answered ping in microseconds."""
    command = ["ping", "-n", "-i", str(interval_s), "-c", str(pings), str(path.right.address)]
    times = re.findall(r"time=([\d.]+)", path.left.run_in_network(command).stdout)
    return [1e3 * float(ms) for ms in times]
