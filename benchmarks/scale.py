"""Measures a real host with thousands of leases in a real etcd: the start, single events, idle time, and many
joins and leaves.

Run by `scripts/bench scale`, as root. For comparison, ip(8) and bridge(8) add the same objects in another
network namespace in the same run. The benchmark fails if the kernel is not correct at the end.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv6Interface
from itertools import pairwise
from pathlib import Path

from msgspec import to_builtins

from command.options import add_json, add_picture, bench_parser, exit_status
from command.output import load, load_since, present, save_picture, step
from crowd.start import (
    IP_BATCH_PATIENCE_S,
    TITLE,
    Start,
    start_curves,
    starts_in_markdown,
    starts_table,
    typical,
)
from crowd.steady import FOREIGN, STORM_PER_S, Rest, Steady, steady_in_markdown
from drawing.curves import draw_curves
from pyflannel.errors import LabError
from pyflannel.lab.kernel_path import VXLAN_DEVICES, create_vxlan
from pyflannel.lab.program import Program
from pyflannel.lab.waiting import wait_until
from testlab.crowded_network import ADDRESSES_V6, BARE_ADDRESS, CrowdedNetwork, crowded_network
from testlab.faults import paused
from testlab.standing_leases import families_of
from testlab.usage import running_s, usage_of

BACKENDS = ("udp", "host-gw", "vxlan", "vxlan-dual")
STEADY_BACKENDS = ("host-gw", "vxlan")
SIZES = (100, 1000, 3000, 10_000)
LARGEST = 50_000
"""Maximum number of leases for host-gw, because one kernel also serves the other benchmarks."""

STEADY = 10_000
"""Minimum number of leases for measurements after a start, and for several starts."""

EVENTS = 200
STORM_STAY = 400
"""Hosts of a storm that are present at any moment."""

DAMAGED = 200
DEADLINE_S = 300.0
SAMPLE_S = 0.5
QUIET = 0.8
"""Share of the samples of an idle daemon that is used: those with the least use contain no audit."""


def main() -> int:
    """Measure and print; return the exit status: 1 if a kernel was not correct at the end."""
    parser = bench_parser("scale", __doc__)
    parser.add_argument(
        "--leases", type=int, nargs="*", default=list(SIZES), help="numbers of leases, one for each start"
    )
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--largest", type=int, default=LARGEST, help="leases for host-gw alone; 0 for none")
    parser.add_argument(
        "--steady", type=int, default=STEADY, help="leases for measurements after a start; 0 for none"
    )
    parser.add_argument("--rounds", type=int, default=3, help=f"starts with {STEADY} leases or more")
    parser.add_argument("--idle", type=float, default=60, help="seconds of the idle measurement")
    parser.add_argument("--storm", type=float, default=30, help="seconds of joins and leaves")
    add_json(parser)
    parser.add_argument(
        "--markdown", action="store_true", help="print the tables of docs/explanation/scale.md"
    )
    add_picture(parser, "scale")
    options = parser.parse_args()
    sizes = [
        (backend, size, options.rounds if size >= STEADY else 1)
        for backend in options.backends
        for size in options.leases
    ]
    if options.largest and "host-gw" in options.backends:
        sizes.append(("host-gw", options.largest, 1))
    before = load()
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
        if backend in STEADY_BACKENDS and options.steady
    ]
    about = load_since(before)
    told = [line for each in steady for line in each.lines()]
    picture = draw(starts, [*told, about]) if starts else None
    if options.markdown and not options.json:
        save_picture(options, picture)
        standing = steady_in_markdown(steady) if steady else ()
        shown = [*starts_in_markdown(starts), ""] if starts else []
        print("\n".join([*shown, *standing, "", about]))
    else:
        present(
            options,
            figures={"starts": [*map(to_builtins, starts)], "steady": [*map(to_builtins, steady)]},
            tables=[starts_table(starts)] if starts else [],
            proof=[*told, about],
            picture=picture,
        )
    return 0


def measure_start(backend: str, count: int, *, is_last: bool) -> Start:
    """Add the objects with `ip -batch`, then start the daemon with this number of leases.

    Only the last start waits until all leases are saved, which takes a second for each thousand leases.
    """
    step(f"{backend}, {count} leases: a start")
    with crowded_network("bench-scale", backend, count) as network:
        ip_batch_s = add_manually(network)
        before, began = prefixes(network), time.monotonic()
        wanted = before + count * len(families_of(backend))
        with ThreadPoolExecutor() as aside:
            routed = aside.submit(time_routes, network, wanted) if ip_batch_s is not None else None
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
            ip_batch_s=ip_batch_s,
            last_s=last_s,
            ready_s=ready_s,
            processor_s=used.processor_s,
            resident_mib=after.resident_mib,
            peak_mib=after.peak_mib,
        )
    print(f"  {start.line}", file=sys.stderr)
    return start


def measure_steady(backend: str, count: int, idle_s: float, storm_s: float) -> Steady:
    """Measure a host with this number of leases: joins, idle time, many joins and leaves, and a flood."""
    step(f"{backend}, {count} leases: events, rest, storm and flood")
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
        join_during_repairs_ms=percentiles([event.join_s for event in looked_at]),
        leave_ms=percentiles([event.leave_s for event in calm]),
        rest=resting,
        storm_percent=storm_percent,
        storm_settled_s=settled_s,
        flood_passes=flood_passes,
        resident_mib=used.resident_mib,
        peak_mib=used.peak_mib,
    )
    for line in steady.lines():
        print(f"  {line}", file=sys.stderr)
    return steady


def add_manually(network: CrowdedNetwork) -> float | None:
    """Return the seconds of batch files with the same objects; None if the backend needs no such objects."""
    if network.backend == "udp":
        return None
    families = families_of(network.backend)
    if network.backend != "host-gw":
        create_vxlan(network.bare, IPv4Interface("10.0.1.0/32"), BARE_ADDRESS.ip)
    if 6 in families:
        own = IPv6Interface("fd00:5:0:1::/128")
        create_vxlan(network.bare, own, ADDRESSES_V6[1].ip, device=VXLAN_DEVICES[6])
    objects, began = [network.objects(family=family) for family in families], time.monotonic()
    try:
        for each in objects:
            each.create(network.bare, patience_s=IP_BATCH_PATIENCE_S)
    except LabError:
        if time.monotonic() - began < IP_BATCH_PATIENCE_S:
            raise
        return IP_BATCH_PATIENCE_S
    return time.monotonic() - began


def time_routes(network: CrowdedNetwork, count: int) -> float:
    """Return the seconds until the host has this number of prefixes in its tables."""
    began = time.monotonic()
    wait_until(lambda: prefixes(network) >= count, what=f"{count} prefixes", deadline_s=DEADLINE_S)
    return time.monotonic() - began


def prefixes(network: CrowdedNetwork) -> int:
    """Return the number of prefixes in the main table of the host, as counted by the kernel.

    Without routing rules, the kernel merges the local and the main table, and lists their content twice. The
    number contains the routes of IPv6, which are counted in all tables.
    """
    counts = Path(f"/proc/{network.host.init_pid}/net")
    counted = (counts / "fib_triestat").read_text().partition("Main:")[2]
    ipv6_routes = int((counts / "rt6_stats").read_text().split()[3], 16)
    return int(counted.partition("Prefixes:")[2].split()[0]) + ipv6_routes


def wait_saved(network: CrowdedNetwork) -> None:
    """Return when the daemon has written the last known leases, which is its last action."""
    saved = network.host.directory / "var/lib/flannel/last-known.json"
    wait_until(saved.exists, what="the leases are saved", deadline_s=DEADLINE_S)


def passes(network: CrowdedNetwork) -> int:
    """Return the number of the daemon's passes, each of which scans the host."""
    return int(json.loads(network.host.flannelctl("status", "--json"))["reconcile"]["passes"])


@contextmanager
def damaging(network: CrowdedNetwork) -> Iterator[None]:
    """Remove one route of the host after the other during the block, so that flanneld scans the host
    constantly.
    """
    destinations = [str(lease.subnet) for lease in network.leases]
    script = 'for destination; do ip route delete "$destination"; sleep 0.2; done'
    program = network.host.start(["bash", "-c", script, "damage", *destinations[:DAMAGED]], name="damage")
    try:
        yield
    finally:
        program.kill()


def rest(network: CrowdedNetwork, daemon: Program, seconds: float) -> Rest:
    """Measure the daemon while it makes only audits."""
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
    """Let hosts join and leave. Return the processor time during the joins and leaves, in per cent of a core,
    and the seconds until the kernel is correct.
    """
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
    """Make more changes than the kernel's queue holds while the daemon is stopped; return the number of
    passes of the daemon after that.
    """
    looks = passes(network)
    with paused(daemon):
        lines = [f"route add 203.{n >> 16}.{n >> 8 & 255}.{n & 255}/32 dev lo" for n in range(FOREIGN)]
        lines += [line.replace("add", "delete") for line in lines]
        text = "\n".join([*lines, f"route delete {network.leases[0].subnet}"]) + "\n"
        network.host.run(["ip", "-batch", "-"], text=text, timeout_s=DEADLINE_S)
    network.wait_right()
    return passes(network) - looks


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """Return p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return 1000 * ordered[len(ordered) // 2], 1000 * ordered[len(ordered) * 99 // 100]


def draw(starts: Sequence[Start], notes: Sequence[str]) -> str:
    """Return the curves as an SVG: leases to the right, seconds upwards. The curves of `ip -batch` are
    dashed.
    """
    most = max(start.leases for start in starts)
    small_print = [
        "dashed: the same objects, added by ip -batch and bridge -batch",
        *(each.line for each in starts),
    ]
    return draw_curves(
        TITLE,
        list(start_curves(starts)),
        [*small_print, *notes],
        marks=[most * quarter // 4 for quarter in range(5)],
        width=760,
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
