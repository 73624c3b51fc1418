"""How long hosts need that join one network in the same moment: real keepers and watches on one real etcd.

Run by `scripts/bench join`, as root. The hosts have no kernel below them; etcd listens on loopback alone.
"""

import argparse
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

from rich.console import Console
from rich.table import Table

from pyflannel.errors import FlannelError
from pyflannel.lab.etcd_server import PREFIX
from pyflannel.lab.joining import Crowd, join_at_once
from pyflannel.lab.waiting import wait_until
from pyflannel.wire.network_config_json import parse_network_config

PICTURE = Path(__file__).parent / "results" / "join.svg"
SIZES = (100, 200, 500, 1000, 2000, 5000)
HOSTS_PER_PROCESS = 50
MOST_PROCESSES = 20
DELIVERIES = 1_000_000
"""At most so many leases are told to hosts: beyond a thousand hosts only some of them watch to the end."""

ROOMY = 3000
"""Up to so many hosts fit well into 10.0.0.0/12, which has 4,096 subnets; more get a /10."""

GOES_FIRST = -10
"""Priority (nice) of etcd: in life it has machines of its own, which a thousand hosts do not keep busy."""

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
    """What was measured with one number of hosts; `*_s` are seconds.

    Attributes:
        lost: hosts that got no lease.
        failures: requests and watches that etcd did not answer in time; each was tried again.
        watchers: hosts that stayed until they knew all others.
        hosts_s: processor time of all hosts together.
        etcd_s: processor time of etcd.
        request_ms: mean time that etcd took for a request, by its method.
        load: of the machine before, in processes that want a processor.
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
    """Measure and print; return the exit status: 1 when a host was left without a lease."""
    parser = argparse.ArgumentParser(prog="scripts/bench join", description=__doc__)
    parser.add_argument("--hosts", type=int, nargs="+", default=list(SIZES), help="how many, one run each")
    parser.add_argument("--deadline", type=float, default=240, help="seconds that one run may take")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--picture", type=Path, default=PICTURE, help=f"SVG to write (default {PICTURE})")
    options = parser.parse_args()
    points: list[Point] = []
    try:
        for hosts in options.hosts:
            print(f"· {hosts} hosts", file=sys.stderr)
            points.append(measure(hosts, options.deadline))
    except FlannelError as error:
        print(f"bench: {error}\n  {error.hint}", file=sys.stderr)
        return 1
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(points))
    if options.json:
        print(json.dumps([asdict(point) for point in points]))
    else:
        show(points)
        print(f"picture: {options.picture}")
    return 1 if any(point.lost or point.ignorant for point in points) else 0


def measure(hosts: int, deadline_s: float) -> Point:
    """Let so many hosts join a new etcd."""
    load = os.getloadavg()[0]
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
            load=load,
        )


@contextmanager
def running_etcd() -> Iterator[int]:
    """Run an etcd with new data on a real disk; yield its process id."""
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
    """Return whether etcd answers."""
    try:
        with urllib.request.urlopen(f"{CLIENT_URL}/health", timeout=2) as answer:
            return b'"true"' in answer.read()
    except OSError:
        return False


def processor_s(pid: int) -> float:
    """Return what a process took of the processors."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def mean_request_ms() -> dict[str, float]:
    """Return how long etcd took for a request of each kind, as it counted itself."""
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


def show(points: Sequence[Point]) -> None:
    """Print the figures as a table."""
    table = Table(title=TITLE)
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
        table.add_column(heading, justify="right")
    for point in points:
        table.add_row(
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
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(table)
    for point in points:
        console.print(proof(point), soft_wrap=True)


def proof(point: Point) -> str:
    """Return what etcd says of its own requests."""
    requests = ", ".join(f"{method} {mean:.0f} ms" for method, mean in sorted(point.request_ms.items()))
    return f"{point.hosts} hosts, etcd's mean: {requests}; load of the machine before: {point.load:.1f}"


def draw(points: Sequence[Point]) -> str:
    """Return the curves as an SVG: hosts to the right, seconds upwards."""
    left, top, width, height = 70, 50, 640, 340
    most_hosts = max(point.hosts for point in points)
    most_s = max(max(point.last_lease_s, point.all_known_s, point.etcd_s) for point in points) or 1.0

    def place(hosts: int, seconds: float) -> str:
        return f"{left + width * hosts / most_hosts:.1f},{top + height * (1 - seconds / most_s):.1f}"

    lines: list[str] = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        told = points if name != "all_known_s" else [point for point in points if not point.ignorant]
        places = [place(point.hosts, getattr(point, name)) for point in told]
        lines.append(
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        for spot in places:
            x, _, y = spot.partition(",")
            lines.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        lines.append(f'<text x="90" y="{70 + 18 * number}" fill="{colour}">{NAMES[name]}</text>')
    for quarter in range(5):
        level = top + height * (1 - quarter / 4)
        lines.append(f'<path d="M{left} {level}h{width}" stroke="#dddddd"/>')
        lines.append(
            f'<text x="{left - 8}" y="{level + 4}" text-anchor="end">{most_s * quarter / 4:.1f} s</text>'
        )
    for point in points:
        at = left + width * point.hosts / most_hosts
        lines.append(f'<text x="{at}" y="{top + height + 18}" text-anchor="middle">{point.hosts}</text>')
    foot = top + height + 44
    notes = [
        f'<text x="20" y="{foot + 15 * number}" font-size="10" fill="#555555">{proof(point)};'
        f" {point.lost} without lease in time, {point.watchers} watched</text>"
        for number, point in enumerate(points)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="860" height="{foot + 15 * len(notes)}"'
            ' font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="20" y="28" font-size="15">{TITLE}</text>',
            *lines,
            *notes,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
