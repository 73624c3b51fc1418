"""Traffic over a path, as every bench of paths measures it."""

import re

from paths.path import Path
from pyflannel.lab.kernel_path import Datagrams, measure_datagrams

SMALL_BYTES = 64


def small_packets(path: Path, seconds: int) -> Datagrams:
    """Send small datagrams as fast as they go out."""
    return measure_datagrams(path.left, path.right, octets=SMALL_BYTES, seconds=seconds)


def round_trips_us(path: Path, *, pings: int, interval_s: float) -> list[float]:
    """Return what each ping took that was answered, in microseconds."""
    command = ["ping", "-n", "-i", str(interval_s), "-c", str(pings), str(path.right.address)]
    times = re.findall(r"time=([\d.]+)", path.left.run_in_network(command).stdout)
    return [1e3 * float(ms) for ms in times]
