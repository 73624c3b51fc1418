"""Measures the udp backend in the kernel, and the kernel's own paths. Each path has its own lab. The paths
are measured alternately.

Run by `scripts/bench fastpath`, as root. The path is between two containers on two hosts of one segment, or
between the hosts themselves (`wire`). host-gw and vxlan are configured manually; `user` is flanneld with
--fast-path=off, `safe` with safe, `flow` with flow; `vxlan-flow` is flanneld with vxlan and flow. `nic`
repeats all measurements with emulated network cards: packets leave the host in segments, and are coalesced on
arrival.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path as FilePath
from statistics import median, quantiles

from rich.table import Table

from command.options import add_json, add_picture, add_rounds, bench_parser, exit_status
from command.output import load, load_since, present
from drawing.bars import Bar, Chart, draw_bars
from paths import exchange
from paths.path import Path, join_by_flanneld, join_manually, two_hosts
from paths.quantity import Quantity, Values
from paths.rounds import Measurement, measure_in_turn
from paths.traffic import SMALL_BYTES, ping_times, small_packets
from paths.way import way_of
from pyflannel.errors import LabError
from pyflannel.lab.kernel_path import measure_throughput, wait_listening
from testlab.inside import run_inside
from testlab.kernel_programs import look, packets_by_outcome

TITLE = "udp backend in the kernel, beside the kernel's own paths"
KINDS = ("wire", "host-gw", "vxlan", "user", "safe", "flow", "vxlan-flow")
_BY_FLANNELD = {
    "user": ("udp", "off"),
    "safe": ("udp", "safe"),
    "flow": ("udp", "flow"),
    "vxlan-flow": ("vxlan", "flow"),
}
_IN_KERNEL = ("safe", "flow", "vxlan-flow")
_CACHED = ("flow", "vxlan-flow")
REFERENCE = "vxlan"
PORT = 5203
PINGS, PING_INTERVAL_S = 1000, 0.001
STREAM_S = 60
"""Longest duration of the stream beside the pings. The stream ends with the last answer to a ping."""
OWN_RATE = 0.95
PICTURED = (
    "TCP, 1 stream",
    f"{SMALL_BYTES}-byte packets, received",
    "round trip at 1 kHz, p99",
    "nic: TCP, 1 stream",
)

# Rules as on a Docker host: every flow is tracked, and each packet is checked.
_FIREWALL = """*nat
-A POSTROUTING -s 10.100.0.0/16 ! -d 10.100.0.0/16 -j MASQUERADE
COMMIT
*filter
:FORWARD DROP
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -s 10.100.0.0/16 -j ACCEPT
-A FORWARD -d 10.100.0.0/16 -j ACCEPT
COMMIT
"""


def main() -> int:
    """Measure and print; return the exit status."""
    parser = bench_parser("fastpath", __doc__)
    add_rounds(parser, rounds=5, seconds=2)
    add_json(parser, "the medians")
    add_picture(parser, "fastpath")
    options = parser.parse_args()
    before = load()
    plain, segmented = measurements(options.seconds), measurements(options.seconds, prefix="nic: ")
    quantities = [quantity for each in (*plain, *segmented) for quantity in each.quantities]
    with ExitStack() as labs:
        paths = [create(labs, kind) for kind in KINDS]
        values = dict(measure_in_turn(paths, plain, options.rounds))
        for path in paths:
            imitate_network_card(path)
        values |= measure_in_turn(paths, segmented, options.rounds)
        proof = [line for path in paths for line in describe(path)]
    proof.append(load_since(before))
    present(
        options,
        figures={f"{name}, {kind}": median(each) for (name, kind), each in values.items()},
        tables=[table(quantities, values)],
        proof=proof,
        picture=draw_bars(
            TITLE, [chart(quantity, values) for quantity in quantities if quantity.name in PICTURED], proof
        ),
    )
    return 0


def create(labs: ExitStack, kind: str) -> Path:
    """Create a lab for a path, with two hosts that track every flow, and create the path."""
    lab = two_hosts(labs, f"bench-{kind}")
    one, two = lab.hosts.values()
    if kind == "wire":
        return Path(name=kind, hosts=(one, two), left=one, right=two)
    for host in (one, two):
        host.run(["iptables-restore", "--noflush"], text=_FIREWALL)
        if kind in _CACHED:
            host.run(["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=1"])
    if kind in _BY_FLANNELD:
        backend, mode = _BY_FLANNELD[kind]
        return join_by_flanneld(lab, kind, backend, f"--fast-path={mode}")
    return join_manually(lab, kind, kind)


def imitate_network_card(path: Path) -> None:
    """Let packets leave eth0 with at most the MTU, coalesce the packets on arrival, and configure the daemons
    for this MTU.
    """
    for host in path.hosts:
        for feature in (
            "tso off",
            "tx-udp_tnl-segmentation off",
            "tx-udp_tnl-csum-segmentation off",
            "gro on",
        ):
            host.run(["ethtool", "-K", "eth0", *feature.split()], check=False)
    for daemon in path.daemons:
        daemon.restart("--fast-path-gro=on")


def measurements(seconds: int, prefix: str = "") -> list[Measurement]:
    """Return the measurements of every path. The name of each quantity begins with the prefix."""

    def quantity(name: str, unit: str, *, is_less_better: bool = False) -> Quantity:
        return Quantity(prefix + name, unit, is_less_better)

    return [
        Measurement(
            partial(stream, seconds=seconds),
            (
                quantity("TCP, 1 stream", "Gbit/s"),
                quantity("processor time, 1 stream", "s/Gbit", is_less_better=True),
            ),
        ),
        Measurement(partial(streams, seconds=seconds), (quantity("TCP, 4 streams", "Gbit/s"),)),
        Measurement(
            partial(packets, seconds=seconds),
            (
                quantity(f"{SMALL_BYTES}-byte packets, received", "kpps"),
                quantity(f"{SMALL_BYTES}-byte packets, lost", "%", is_less_better=True),
                quantity(f"{SMALL_BYTES}-byte packets, lost at own rate", "%", is_less_better=True),
            ),
        ),
        Measurement(
            round_trips,
            (
                quantity("round trip at 1 kHz, p50", "us", is_less_better=True),
                quantity("round trip at 1 kHz, p99", "us", is_less_better=True),
            ),
        ),
        Measurement(
            loaded_round_trips,
            (
                quantity("round trip beside a stream, p50", "us", is_less_better=True),
                quantity("round trip beside a stream, p99", "us", is_less_better=True),
            ),
        ),
        Measurement(partial(requests, seconds=seconds), (quantity("TCP requests", "1/s"),)),
    ]


def stream(path: Path, *, seconds: int) -> tuple[float, float]:
    """Return the throughput of one stream, and the processor time of the whole machine for it."""
    before = busy_s()
    carried = measure_throughput(path.left, path.right, seconds=seconds)
    return carried.gbit_s, (busy_s() - before) / (carried.received_bytes * 8 / 1e9)


def streams(path: Path, *, seconds: int) -> tuple[float]:
    """Return the total throughput of four streams."""
    return (measure_throughput(path.left, path.right, seconds=seconds, streams=4).gbit_s,)


def busy_s() -> float:
    """Return the total processor time of all processors in seconds."""
    user, nice, system, _, _, *interrupts = map(int, FilePath("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def packets(path: Path, *, seconds: int) -> tuple[float, float, float]:
    """Return how many thousand small packets a second arrive at the maximum rate, and the lost part. The last
    figure is the lost part if packets are sent at OWN_RATE of the rate that arrived.
    """
    flooded = small_packets(path, seconds)
    paced = small_packets(path, seconds, kpps=OWN_RATE * flooded.received_kpps)
    return flooded.received_kpps, flooded.lost_percent, paced.lost_percent


def round_trips(path: Path) -> tuple[float, float]:
    """Return the median and the 99th percentile of the round trip."""
    of_a_hundred = quantiles(ping_times(path, pings=PINGS, interval_s=PING_INTERVAL_S), n=100)
    return of_a_hundred[49], of_a_hundred[98]


def loaded_round_trips(path: Path) -> tuple[float, float]:
    """Return the median and the 99th percentile of the round trip while a TCP stream uses the path."""
    words = ["iperf3", "--port", str(PORT)]
    server = path.right.start_in_network([*words, "--server", "--one-off"], name="sink")
    wait_listening(server, path.right, PORT)
    client = path.left.start_in_network(
        [*words, "--client", str(path.right.address), "--time", str(STREAM_S)], name="stream"
    )
    try:
        return round_trips(path)
    finally:
        client.kill()
        server.kill()


def requests(path: Path, *, seconds: int) -> tuple[float]:
    """Return how many exchanges of 64 bytes a connection makes per second."""
    end = [sys.executable, exchange.__file__, str(PORT)]
    server = path.right.start_in_network(end, name="echo")
    wait_listening(server, path.right, PORT)
    client = [*end, str(path.right.address), str(seconds)]
    answered = float(path.left.run_in_network(client, timeout_s=seconds + 30).stdout)
    server.kill()
    return (answered,)


def describe(path: Path) -> Iterator[str]:
    """Yield lines about the measured paths, from the kernels of the hosts.

    Raises:
        LabError: programs carried packets of another path, or no packets of their own.
    """
    host, other = path.hosts
    programs, counts = run_inside(host, look).programs, run_inside(host, packets_by_outcome)
    cached = counts.get("cached_out", 0)
    carried = counts.get("encapsulated", 0) + cached
    if bool(carried) is not (path.name in _IN_KERNEL) or bool(cached) is not (path.name in _CACHED):
        raise LabError(
            f"{path.name}: programs carried {carried} packets", hint="Read the output of flannelctl status."
        )
    way = way_of(path)
    yield (f"{path.name}: {way.route}; {way.device}, MTU {way.mtu}, {way.sent} packets sent by the device")
    yield f"{path.name}: {', '.join(programs) or 'no program'}; {counts or 'no counters'}"
    if counts:
        yield f"{path.name}, on the receiving host: {run_inside(other, packets_by_outcome)}"


def table(quantities: Sequence[Quantity], values: Values) -> Table:
    """Return the medians as a table, each with its ratio to the kernel's vxlan."""
    shown = Table(title=f"{TITLE}: medians, ratios to vxlan, and quartiles; at the end, ratios to host-gw")
    shown.add_column("")
    for heading in (*KINDS, *(f"{kind}/host-gw" for kind in _IN_KERNEL)):
        shown.add_column(heading, justify="right")
    for quantity in quantities:
        routed = median(values[quantity.name, "host-gw"])
        beside = [
            f"{median(values[quantity.name, kind]) / routed:.2f}x" if routed else "" for kind in _IN_KERNEL
        ]
        cells = (
            f"{cell(quantity, kind, values)}\n{quartiles(values[quantity.name, kind])}" for kind in KINDS
        )
        shown.add_row(quantity.label, *cells, *beside)
    return shown


def quartiles(rounds: Sequence[float]) -> str:
    """Return the first and the third quartile."""
    first, _, third = quantiles(rounds, n=4, method="inclusive") if len(rounds) > 1 else [rounds[0]] * 3
    return f"{first:.4g} to {third:.4g}"


def cell(quantity: Quantity, kind: str, values: Values) -> str:
    """Return a median and its ratio to the reference's."""
    middle, reference = median(values[quantity.name, kind]), median(values[quantity.name, REFERENCE])
    return f"{middle:.4g}" + (f"  {middle / reference:.2f}x" if reference else "")


def chart(quantity: Quantity, values: Values) -> Chart:
    """Return the medians of a quantity as bars."""
    bars = [
        Bar(
            name=kind,
            value=median(values[quantity.name, kind]),
            told=cell(quantity, kind, values),
            is_ours=kind in _IN_KERNEL,
        )
        for kind in KINDS
    ]
    return Chart(quantity.label, [bars])


if __name__ == "__main__":
    sys.exit(exit_status(main))
