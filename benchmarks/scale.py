"""A real host in a network of thousands of leases in a real etcd: its start, an event, its rest, a storm.

Run by `scripts/bench scale`, as root. The kernel's own share is what ip(8) and bridge(8) need to lay the same
objects in a network namespace beside, in the same run. Where a kernel is not right in the end, it fails.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from ipaddress import IPv4Interface
from itertools import pairwise
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from pyflannel.errors import FlannelError, LabError
from pyflannel.lab.crowded_network import BARE_ADDRESS, CrowdedNetwork, crowded_network
from pyflannel.lab.peer_objects import lay_vxlan, objects_of
from pyflannel.lab.program import Program
from pyflannel.lab.usage import running_s, usage_of
from pyflannel.lab.waiting import wait_until

PICTURE = Path(__file__).parent / "results" / "scale.svg"
BACKENDS = ("udp", "host-gw", "vxlan")
SIZES = (100, 1000, 3000, 10_000)
LARGEST = 50_000
"""For host-gw alone: what one kernel takes of a thousand clusters."""

STEADY = 10_000
"""For what follows a start, and from where on a start is made several times."""

EVENTS = 200
STORM_PER_S, STORM_STAY = 200, 400
"""Hosts that come each second, while as many go; and how many of them stand at any moment."""

DAMAGED = 200
FOREIGN = 30_000
"""Foreign routes that come and go while the daemon sleeps: more than the kernel keeps to tell."""

DEADLINE_S = 300.0
HAND_PATIENCE_S = 30.0
"""After so long nobody waits for what is laid by hand: what one more gateway on a link takes of the kernel
grows with their number."""

SAMPLE_S = 0.5
QUIET = 0.8
"""Of the samples at rest, those of least use: no audit is in them."""

TITLE = "A host that starts in a network of so many: seconds until the last peer is in the kernel"
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest:
    """What a daemon takes of a core while nothing happens, in per cent: all in all, and between audits."""

    lasted_s: float
    percent: float
    quiet_percent: float
    passes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """What a host does that stands among many; `*_ms` are pairs of p50 and p99.

    Attributes:
        write_ms: etcd's answer to the write of a lease.
        join_ms: from sending the write to the route in the kernel.
        looked_at_ms: the same while the host repairs what is damaged, look upon look.
        leave_ms: from the deletion to the route's end; two seconds of it are patience.
        storm_percent: of a core, while hosts came and went.
        storm_settled_s: from the last of them until the kernel was right.
        flood_passes: after more changes than the kernel kept to tell.
    """

    backend: str
    leases: int
    write_ms: tuple[float, float]
    join_ms: tuple[float, float]
    looked_at_ms: tuple[float, float]
    leave_ms: tuple[float, float]
    rest: Rest
    storm_percent: float
    storm_settled_s: float
    flood_passes: int
    resident_mib: float
    peak_mib: float


def main() -> int:
    """Measure and print; return the exit status: 1 when a kernel was not right in the end."""
    parser = argparse.ArgumentParser(prog="scripts/bench scale", description=__doc__)
    parser.add_argument("--leases", type=int, nargs="*", default=list(SIZES), help="how many, for each start")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--largest", type=int, default=LARGEST, help="leases for host-gw alone; 0 for none")
    parser.add_argument("--steady", type=int, default=STEADY, help="leases for what follows; 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help=f"starts among {STEADY} leases or more")
    parser.add_argument("--idle", type=float, default=60, help="seconds at rest")
    parser.add_argument("--storm", type=float, default=30, help="seconds of coming and going")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of docs/explanation/scale.md"
    )
    parser.add_argument("--picture", type=Path, default=PICTURE, help=f"SVG to write (default {PICTURE})")
    options = parser.parse_args()
    sizes = [
        (backend, size, options.rounds if size >= STEADY else 1)
        for backend in options.backends
        for size in options.leases
    ]
    if options.largest and "host-gw" in options.backends:
        sizes.append(("host-gw", options.largest, 1))
    load = os.getloadavg()[0]
    try:
        starts = [
            typical(
                [
                    measure_start(backend, size, is_last=left == 0 and size < LARGEST)
                    for left in reversed(range(rounds))
                ]
            )
            for backend, size, rounds in sizes
        ]
        steady = [
            measure_steady(backend, options.steady, options.idle, options.storm)
            for backend in options.backends
            if backend != "udp" and options.steady
        ]
    except FlannelError as error:
        print(f"bench: {error}\n  {error.hint}", file=sys.stderr)
        return 1
    about = (
        f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} processors"
    )
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(starts, steady, about))
    if options.json:
        print(json.dumps({"starts": [*map(asdict, starts)], "steady": [*map(asdict, steady)]}))
    elif options.markdown:
        print(
            "\n".join([*in_markdown(starts), "", *(steady_in_markdown(steady) if steady else ()), "", about])
        )
    else:
        show(starts, steady, about)
        print(f"picture: {options.picture}")
    return 0


def measure_start(backend: str, count: int, *, is_last: bool) -> Start:
    """Lay the objects by hand, then start the daemon among so many leases.

    That all is saved is waited for in the last start alone: it takes a second for each thousand leases.
    """
    print(f"· {backend}, {count} leases: a start", file=sys.stderr)
    with crowded_network("bench-scale", backend, count) as network:
        hand_s = lay_by_hand(network)
        before, began = prefixes(network), time.monotonic()
        with ThreadPoolExecutor() as aside:
            routed = aside.submit(time_routes, network, before + count) if hand_s is not None else None
            daemon = network.start()
            ready_s, used = time.monotonic() - began, usage_of(daemon.pid)
            last_s = ready_s if routed is None else routed.result()
        if routed is not None:
            network.wait_right()
        if is_last:
            wait_saved(network)
        after = usage_of(daemon.pid)
        start = Start(
            backend=backend,
            leases=count,
            hand_s=hand_s,
            last_s=last_s,
            ready_s=ready_s,
            processor_s=used.processor_s,
            resident_mib=after.resident_mib,
            peak_mib=after.peak_mib,
        )
    for line in brief([start]):
        print(f"  {line}", file=sys.stderr)
    return start


def measure_steady(backend: str, count: int, idle_s: float, storm_s: float) -> Steady:
    """Start among so many leases; then let hosts come, wait, let very many come and go, and flood."""
    print(f"· {backend}, {count} leases: events, rest, storm and flood", file=sys.stderr)
    with crowded_network("bench-scale", backend, count) as network:
        daemon = network.start()
        wait_saved(network)
        newcomers = network.newcomers(EVENTS)
        calm = network.time_events(newcomers)
        with damaging(network):
            looked_at = network.time_events(newcomers)
        network.wait_right()
        resting = rest(network, daemon, idle_s)
        storm_percent, settled_s = storm(network, daemon, storm_s)
        flood_passes = flood(network, daemon)
        used = usage_of(daemon.pid)
    steady = Steady(
        backend=backend,
        leases=count,
        write_ms=percentiles([event.write_s for event in calm]),
        join_ms=percentiles([event.join_s for event in calm]),
        looked_at_ms=percentiles([event.join_s for event in looked_at]),
        leave_ms=percentiles([event.leave_s for event in calm]),
        rest=resting,
        storm_percent=storm_percent,
        storm_settled_s=settled_s,
        flood_passes=flood_passes,
        resident_mib=used.resident_mib,
        peak_mib=used.peak_mib,
    )
    for line in told(steady):
        print(f"  {line}", file=sys.stderr)
    return steady


def lay_by_hand(network: CrowdedNetwork) -> float | None:
    """Return the seconds that a person's batch files take; None where peers are nothing to the kernel."""
    if network.backend == "udp":
        return None
    if network.backend == "vxlan":
        lay_vxlan(network.bare, IPv4Interface("10.0.1.0/32"), BARE_ADDRESS)
    objects, began = objects_of(network.leases, network.backend), time.monotonic()
    try:
        objects.lay(network.bare, patience_s=HAND_PATIENCE_S)
    except LabError:
        if time.monotonic() - began < HAND_PATIENCE_S:
            raise
        return HAND_PATIENCE_S
    return time.monotonic() - began


def time_routes(network: CrowdedNetwork, count: int) -> float:
    """Return the seconds until the host has so many prefixes in its tables."""
    began = time.monotonic()
    wait_until(lambda: prefixes(network) >= count, what=f"{count} prefixes", deadline_s=DEADLINE_S)
    return time.monotonic() - began


def prefixes(network: CrowdedNetwork) -> int:
    """Return how many prefixes the main table of the host has, which the kernel counts for us.

    While nobody made a rule, the local table is the same, and is shown once more with all that is in it.
    """
    counted = Path(f"/proc/{network.host.init_pid}/net/fib_triestat").read_text().partition("Main:")[2]
    return int(counted.partition("Prefixes:")[2].split()[0])


def wait_saved(network: CrowdedNetwork) -> None:
    """Return once the daemon has written the last known leases, which is the last of its work."""
    saved = network.host.directory / "var/lib/flannel/last-known.json"
    wait_until(saved.exists, what="the leases are saved", deadline_s=DEADLINE_S)


def passes(network: CrowdedNetwork) -> int:
    """Return how many looks the daemon has had at the host."""
    return int(json.loads(network.host.flannelctl("status", "--json"))["reconcile"]["passes"])


@contextmanager
def damaging(network: CrowdedNetwork) -> Iterator[None]:
    """Take one route after the other from the host while the block runs, so that it looks all the time."""
    destinations = [str(lease.subnet) for lease in network.leases]
    script = 'for destination; do ip route delete "$destination"; sleep 0.2; done'
    program = network.host.start(["bash", "-c", script, "damage", *destinations[:DAMAGED]], name="damage")
    try:
        yield
    finally:
        program.kill()


def rest(network: CrowdedNetwork, daemon: Program, seconds: float) -> Rest:
    """Watch the daemon do nothing but audits."""
    looks, samples = passes(network), [running_s(daemon.pid)]
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        time.sleep(SAMPLE_S)
        samples.append(running_s(daemon.pid))
    lasted_s = time.monotonic() - began
    used = sorted(after - before for before, after in pairwise(samples))
    quiet = used[: round(len(used) * QUIET)]
    return Rest(
        lasted_s=lasted_s,
        percent=100 * sum(used) / lasted_s,
        quiet_percent=100 * sum(quiet) / (lasted_s * len(quiet) / len(used)),
        passes=passes(network) - looks,
    )


def storm(network: CrowdedNetwork, daemon: Program, seconds: float) -> tuple[float, float]:
    """Let hosts come and go; return the per cent of a core meanwhile, and the seconds until all is right."""
    newcomers = network.newcomers(round(STORM_PER_S * seconds))
    before = running_s(daemon.pid)
    came = network.churn(newcomers, per_s=STORM_PER_S, standing=STORM_STAY)
    percent = 100 * (running_s(daemon.pid) - before) / came.lasted_s
    stayed, ended = newcomers[-STORM_STAY:], time.monotonic()
    network.wait_right(stayed)
    settled_s = time.monotonic() - ended
    network.remove(stayed)
    network.wait_right()
    return percent, settled_s


def flood(network: CrowdedNetwork, daemon: Program) -> int:
    """Change more than the kernel keeps to tell while the daemon sleeps; return its looks."""
    looks = passes(network)
    daemon.send(signal.SIGSTOP)
    try:
        lines = [f"route add 203.{n >> 16}.{n >> 8 & 255}.{n & 255}/32 dev lo" for n in range(FOREIGN)]
        lines += [line.replace("add", "delete") for line in lines]
        text = "\n".join([*lines, f"route delete {network.leases[0].subnet}"]) + "\n"
        network.host.run(["ip", "-batch", "-"], text=text, timeout_s=DEADLINE_S)
    finally:
        daemon.send(signal.SIGCONT)
    network.wait_right()
    return passes(network) - looks


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return 1000 * ordered[len(ordered) // 2], 1000 * ordered[len(ordered) * 99 // 100]


def typical(starts: Sequence[Start]) -> Start:
    """Return the median start by the time until the last route, the median by hand, and the most memory."""
    ordered = sorted(starts, key=lambda start: start.last_s)
    hand = [start.hand_s for start in starts if start.hand_s is not None]
    return replace(
        ordered[len(ordered) // 2],
        hand_s=median(hand) if hand else None,
        resident_mib=max(start.resident_mib for start in starts),
        peak_mib=max(start.peak_mib for start in starts),
    )


def show(starts: Sequence[Start], steady: Sequence[Steady], about: str) -> None:
    """Print the figures as two tables."""
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    table = Table(title=TITLE)
    table.add_column("backend")
    for heading in (
        "leases",
        "by hand, s",
        "last route, s",
        "ratio",
        "ready, s",
        "processor, s",
        "µs a lease",
        "MiB",
        "MiB at most",
    ):
        table.add_column(heading, justify="right")
    for start in starts:
        table.add_row(
            start.backend,
            str(start.leases),
            by_hand(start),
            f"{start.last_s:.2f}",
            "" if start.hand_s in (None, HAND_PATIENCE_S) else f"{start.last_s / start.hand_s:.1f}",
            f"{start.ready_s:.2f}",
            f"{start.processor_s:.2f}",
            f"{1e6 * start.last_s / start.leases:.0f}",
            f"{start.resident_mib:.1f}",
            f"{start.peak_mib:.1f}",
        )
    console.print(table)
    for each in steady:
        for line in told(each):
            console.print(line, soft_wrap=True)
    console.print(about)


def in_markdown(starts: Sequence[Start]) -> Iterator[str]:
    """Yield the table of starts as the documentation has it."""
    yield "| backend | leases | processor, s | last route, s | by hand, s | memory, at most, MiB |"
    yield "|---|---|---|---|---|---|"
    for start in starts:
        yield (
            f"| {start.backend} | {start.leases:,} | {start.processor_s:.2f} | {start.last_s:.2f}"
            f" | {by_hand(start)} | {start.resident_mib:.1f}, {start.peak_mib:.1f} |"
        )


def steady_in_markdown(steady: Sequence[Steady]) -> Iterator[str]:
    """Yield the table of what a host does that stands among many, a column for each backend."""

    def pair(of: tuple[float, float]) -> str:
        return f"{of[0]:.1f}, {of[1]:.1f} ms"

    rows = {
        "a lease is written: etcd's answer, p50 and p99": [pair(one.write_ms) for one in steady],
        "its route is in the kernel, from the same moment": [pair(one.join_ms) for one in steady],
        "the same while damage is mended all the time": [pair(one.looked_at_ms) for one in steady],
        "at rest, with audits and between them": [
            f"{one.rest.percent:.2f} %, {one.rest.quiet_percent:.3f} % of a core" for one in steady
        ],
        f"{STORM_PER_S} hosts come and {STORM_PER_S} go each second": [
            f"{one.storm_percent:.0f} % of a core" for one in steady
        ],
        "all right after the last of them, patience included": [
            f"{one.storm_settled_s:.1f} s" for one in steady
        ],
        f"{2 * FOREIGN:,} foreign changes while it slept, and one of its routes gone": [
            f"looks: {one.flood_passes}" for one in steady
        ],
        "memory in the end, and at most": [
            f"{one.resident_mib:.1f}, {one.peak_mib:.1f} MiB" for one in steady
        ],
    }
    yield f"| | {' | '.join(one.backend for one in steady)} |"
    yield f"|{'---|' * (len(steady) + 1)}"
    for name, cells in rows.items():
        yield f"| {name} | {' | '.join(cells)} |"


def by_hand(start: Start) -> str:
    """Return what the same objects took by hand; empty where there are none."""
    if start.hand_s is None:
        return ""
    return f"{start.hand_s:.2f}" if start.hand_s < HAND_PATIENCE_S else f"> {HAND_PATIENCE_S:.0f}"


def told(steady: Steady) -> Iterator[str]:
    """Yield what was found out about a host that stands among many, a line for each question."""
    name, rest = f"{steady.backend}, {steady.leases} leases", steady.rest

    def pair(of: tuple[float, float]) -> str:
        return f"p50 {of[0]:.1f} ms, p99 {of[1]:.1f} ms"

    yield (
        f"{name}: a lease is written: {pair(steady.write_ms)};"
        f" and in the kernel, counted from the same moment: {pair(steady.join_ms)};"
        f" while the host mends damage all the time: {pair(steady.looked_at_ms)}"
    )
    yield f"{name}: a lease is deleted, its route gone, patience of 2 s included: {pair(steady.leave_ms)}"
    yield (
        f"{name}: at rest for {rest.lasted_s:.0f} s: {rest.percent:.2f} % of a core"
        f" with {rest.passes} audits, {rest.quiet_percent:.3f} % between them"
    )
    yield (
        f"{name}: {STORM_PER_S} hosts come and {STORM_PER_S} go each second:"
        f" {steady.storm_percent:.0f} % of a core, all right {steady.storm_settled_s:.1f} s after the last"
    )
    yield (
        f"{name}: {2 * FOREIGN} changes while it slept, more than the kernel keeps to tell:"
        f" all right after looks: {steady.flood_passes}"
    )
    yield f"{name}: {steady.resident_mib:.1f} MiB in the end, {steady.peak_mib:.1f} at most"


def draw(starts: Sequence[Start], steady: Sequence[Steady], about: str) -> str:
    """Return the curves as an SVG: leases to the right, seconds upwards; what is laid by hand in dashes."""
    left, top, width, height = 70, 50, 760, 340
    most, most_s = max(start.leases for start in starts), max(start.last_s for start in starts)
    most_s = max(most_s, *(start.hand_s or 0.0 for start in starts))

    def place(leases: int, seconds: float) -> str:
        return f"{left + width * leases / most:.1f},{top + height * (1 - seconds / most_s):.1f}"

    lines: list[str] = []
    for number, (backend, colour) in enumerate(COLOURS.items()):
        own = [start for start in starts if start.backend == backend]
        places = [place(start.leases, start.last_s) for start in own]
        by_hand = [place(start.leases, start.hand_s) for start in own if start.hand_s is not None]
        lines.append(
            f'<polyline points="{" ".join(places)}" fill="none" stroke="{colour}" stroke-width="2"/>'
            f'<polyline points="{" ".join(by_hand)}" fill="none" stroke="{colour}" stroke-dasharray="4"/>'
        )
        for spot in places:
            x, _, y = spot.partition(",")
            lines.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        lines.append(f'<text x="90" y="{70 + 18 * number}" fill="{colour}">{backend}</text>')
    for quarter in range(5):
        level, at = top + height * (1 - quarter / 4), left + width * quarter / 4
        lines.append(
            f'<path d="M{left} {level}h{width}" stroke="#dddddd"/>'
            f'<text x="{left - 8}" y="{level + 4}" text-anchor="end">{most_s * quarter / 4:.1f} s</text>'
            f'<text x="{at}" y="{top + height + 18}" text-anchor="middle">{most * quarter // 4}</text>'
        )
    foot = top + height + 44
    texts = ["dashed: the same objects laid by ip and bridge -batch", *brief(starts)]
    texts += [line for each in steady for line in told(each)] + [about]
    notes = [
        f'<text x="20" y="{foot + 14 * number}" font-size="9" fill="#555555">{text}</text>'
        for number, text in enumerate(texts)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="920" height="{foot + 14 * len(notes)}"'
            ' font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="20" y="28" font-size="15">{TITLE}</text>',
            *lines,
            *notes,
            "</svg>\n",
        ]
    )


def brief(starts: Sequence[Start]) -> Iterator[str]:
    """Yield a line for each start."""
    for start in starts:
        hand = "" if start.hand_s is None else f", by hand {by_hand(start)} s"
        yield (
            f"{start.backend}, {start.leases} leases: {start.last_s:.2f} s{hand};"
            f" processor {start.processor_s:.2f} s; {start.resident_mib:.1f} to {start.peak_mib:.1f} MiB"
        )


if __name__ == "__main__":
    sys.exit(main())
