"""Measures the time of hosts that join one network at the same time: real lease keepers and watches on one
real etcd.

Run by `scripts/bench join`, as root. The hosts have no kernel. etcd listens only on loopback.
"""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from command.options import add_json, add_picture, bench_parser, exit_status
from command.output import load, present, step
from drawing.curves import Curve, draw_curves
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.waiting import wait_until
from pyflannel.wire.network_config_json import parse_network_config
from testlab.joining import Crowd, join_at_once

SIZES = (100, 200, 500, 1000, 2000, 5000)
HOSTS_PER_PROCESS = 50
MOST_PROCESSES = 20
DELIVERIES = 1_000_000
"""Maximum number of leases that all hosts receive.

With more than a thousand hosts, only some watch to the end.
"""

ROOMY = 3000
"""Up to this number, hosts use 10.0.0.0/12, which has 4,096 subnets; more hosts get a /10."""

GOES_FIRST = -10
"""Priority (nice) of etcd: in reality, etcd has its own machines, without the load of a thousand hosts."""

CLIENT_URL, PEER_URL = "http://127.0.0.1:23791", "http://127.0.0.1:23801"
TITLE = "Hosts that join at once: seconds until the last lease, and until all know all"
COLOURS = {"last_lease_s": "#1f77b4", "all_known_s": "#2ca02c", "etcd_s": "#d62728"}
NAMES = {
    "last_lease_s": "lease: the last host has its own",
    "all_known_s": "watch: every watcher knows all",
    "etcd_s": "etcd's own processor time",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The results for one number of hosts; `*_s` are seconds.

    Attributes:
        lost: hosts that got no lease.
        failures: requests and watches without a response of etcd in time; each was retried.
        watchers: hosts that stayed until they knew all others.
        hosts_s: processor time of all hosts together.
        etcd_s: processor time of etcd.
        request_ms: mean time of etcd for a request, by method.
        load: load of the machine before the run, in processes that want a processor.
    """

    hosts: int
    lost: int
    failures: int
    lost_races: int
    watchers: int
    ignorant: int
    last_lease_s: float
    all_known_s: float
    hosts_s: float
    etcd_s: float
    request_ms: dict[str, float]
    load: float


def main() -> int:
    """Measure and print; return the exit status: 1 if a host got no lease."""
    parser = bench_parser("join", __doc__)
    parser.add_argument(
        "--hosts", type=int, nargs="+", default=list(SIZES), help="numbers of hosts, one run for each number"
    )
    parser.add_argument("--deadline", type=float, default=240, help="seconds that one run may take")
    add_json(parser)
    add_picture(parser, "join")
    options = parser.parse_args()
    points: list[Point] = []
    for hosts in options.hosts:
        step(f"{hosts} hosts")
        points.append(measure(hosts, options.deadline))
    present(
        options,
        figures=[asdict(point) for point in points],
        tables=[table(points)],
        proof=[proof(point) for point in points],
        picture=draw(points),
    )
    return 1 if any(point.lost or point.ignorant for point in points) else 0


def measure(hosts: int, deadline_s: float) -> Point:
    """Let this number of hosts join a new etcd."""
    before = load()
    watchers = min(hosts, DELIVERIES // hosts)
    network = "10.0.0.0/12" if hosts <= ROOMY else "10.0.0.0/10"
    with running_etcd() as etcd:
        joining = join_at_once(
            Crowd(
                url=f"etcd://{CLIENT_URL.removeprefix('http://')}{PREFIX}",
                network=parse_network_config(json.dumps({"Network": network})),
                hosts=hosts,
                processes=min(MOST_PROCESSES, -(-hosts // HOSTS_PER_PROCESS)),
                watchers=watchers,
                deadline_s=deadline_s,
            )
        )
        return Point(
            hosts=hosts,
            lost=len(joining.lost),
            failures=sum(host.failures for host in joining.hosts),
            lost_races=joining.lost_races,
            watchers=watchers,
            ignorant=sum(host.known_s is None for host in joining.hosts[:watchers]),
            last_lease_s=joining.last_lease_s,
            all_known_s=joining.all_known_s,
            hosts_s=joining.processor_s,
            etcd_s=processor_s(etcd),
            request_ms=mean_request_ms(),
            load=before,
        )


@contextmanager
def running_etcd() -> Iterator[int]:
    """Run an etcd with new data on a real disk; yield its process ID."""
    with tempfile.TemporaryDirectory(prefix="flannel-bench-") as directory:
        log = Path(directory) / "etcd.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    "nice",
                    f"--adjustment={GOES_FIRST}",
                    "etcd",
                    f"--data-dir={directory}/data",
                    f"--listen-client-urls={CLIENT_URL}",
                    f"--advertise-client-urls={CLIENT_URL}",
                    f"--listen-peer-urls={PEER_URL}",
                    f"--initial-advertise-peer-urls={PEER_URL}",
                    f"--initial-cluster=default={PEER_URL}",
                    "--metrics=extensive",
                ],
                stdout=output,
                stderr=output,
            )
        try:
            wait_until(is_healthy, what="etcd answers", deadline_s=30)
            yield process.pid
        finally:
            process.kill()
            process.wait()


def is_healthy() -> bool:
    """Return whether etcd responds."""
    try:
        with urllib.request.urlopen(f"{CLIENT_URL}/health", timeout=2) as answer:
            return b'"true"' in answer.read()
    except OSError:
        return False


def processor_s(pid: int) -> float:
    """Return the processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mean_request_ms() -> dict[str, float]:
    """Return etcd's mean time for a request of each kind, from its own counters."""
    totals: dict[tuple[str, str], float] = {}
    with urllib.request.urlopen(f"{CLIENT_URL}/metrics", timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            name, _, rest = line.partition("{")
            if name.startswith("grpc_server_handling_seconds_") and '"unary"' in rest:
                method = rest.partition('grpc_method="')[2].partition('"')[0]
                totals[method, name.rpartition("_")[2]] = float(rest.rpartition(" ")[2])
    return {
        method: 1000 * total / count
        for (method, kind), total in totals.items()
        if kind == "sum" and (count := totals[method, "count"]) > 0
    }


def table(points: Sequence[Point]) -> Table:
    """Return the figures as a table."""
    shown = Table(title=TITLE)
    for heading in (
        "hosts",
        "without lease",
        "last lease, s",
        "all known, s",
        "watchers",
        "races lost",
        "tried again",
        "hosts' processor, s",
        "etcd's processor, s",
        "load before",
    ):
        shown.add_column(heading, justify="right")
    for point in points:
        shown.add_row(
            str(point.hosts),
            str(point.lost),
            f"{point.last_lease_s:.1f}",
            "not in time" if point.ignorant else f"{point.all_known_s:.1f}",
            str(point.watchers),
            str(point.lost_races),
            str(point.failures),
            f"{point.hosts_s:.1f}",
            f"{point.etcd_s:.1f}",
            f"{point.load:.1f}",
        )
    return shown


def proof(point: Point) -> str:
    """Return etcd's counters of its requests."""
    requests = ", ".join(f"{method} {mean:.0f} ms" for method, mean in sorted(point.request_ms.items()))
    return f"{point.hosts} hosts, etcd's mean: {requests}; load of the machine before: {point.load:.1f}"


def draw(points: Sequence[Point]) -> str:
    """Return the curves as an SVG: hosts to the right, seconds upwards."""
    curves = [
        Curve(
            name=NAMES[figure],
            colour=colour,
            points=[
                (point.hosts, getattr(point, figure))
                for point in points
                if figure != "all_known_s" or not point.ignorant
            ],
        )
        for figure, colour in COLOURS.items()
    ]
    notes = [
        f"{proof(point)}; {point.lost} without lease in time, {point.watchers} watched" for point in points
    ]
    return draw_curves(TITLE, curves, notes, marks=sorted(point.hosts for point in points), width=640)


if __name__ == "__main__":
    sys.exit(exit_status(main))
