"""Measures the udp backend and the kernel's own vxlan, configured manually. Both paths are in one lab, and
are measured alternately.

Run by `scripts/bench udp`, as root.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from statistics import median

from rich.table import Table

from command.options import add_json, add_picture, add_rounds, bench_parser, exit_status
from command.output import load, load_since, present, step
from drawing.bars import Bar, Chart, draw_bars
from paths.path import Path
from paths.quantity import Quantity, Values, spread
from paths.rounds import Measurement, measure_in_turn
from paths.traffic import SMALL_BYTES, small_packets
from paths.way import way_of
from pyflannel.datapath.tun import Offload
from pyflannel.errors import LabError
from pyflannel.lab.demo import CONFIG, DemoOptions, bring_up
from pyflannel.lab.kernel_path import KernelPath, create_kernel_path, measure_kernel_path, measure_throughput
from pyflannel.lab.lab import Lab
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import Station, ping
from pyflannel.lab.waiting import wait_until
from pyflannel.processes.forwarder_client import connected
from pyflannel.wire.forwarder_control import (
    SOCKET_NAME,
    Kind,
    decode_counters,
    decode_state,
    decode_summary,
)

TITLE = "udp backend, in user space, beside the kernel's vxlan, configured manually"
PINGS = 20
QUANTITIES = (
    Quantity("TCP, one stream", "Gbit/s"),
    Quantity(f"UDP, {SMALL_BYTES}-byte packets, received", "kpps"),
    Quantity("round trip", "ms", is_less_better=True),
)
FORM = ".2f"
BAR_WIDTH = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarder:
    """The process that carried the packets, with data from itself and from the kernel.

    Attributes:
        resident_kib: memory after the measurements.
        offloads: names of the offloads in use.
        sent: packets to peers, and the number of calls with more than one packet.
        written: packets to the device, and the number of calls with more than one packet.
    """

    pid: int
    version: str
    resident_kib: int
    offloads: tuple[str, ...]
    sent: tuple[int, int]
    written: tuple[int, int]


class Steps:
    """Prints the steps of the demo's lab as steps of the benchmark."""

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Report the current step while the block runs."""
        step(what)
        yield


def main() -> int:
    """Measure and print; return the exit status."""
    parser = bench_parser("udp", __doc__)
    add_rounds(parser, rounds=3, seconds=3)
    add_json(parser)
    add_picture(parser, "udp")
    options = parser.parse_args()
    values, proof = measure(options.rounds, options.seconds)
    present(
        options,
        figures={quantity.name: ratio(quantity, values) for quantity in QUANTITIES},
        tables=[table(values)],
        proof=proof,
        picture=draw_bars(TITLE, [chart(quantity, values) for quantity in QUANTITIES], proof),
    )
    return 0


def measure(rounds: int, seconds: int) -> tuple[Values, list[str]]:
    """Create both paths, measure them alternately, and return lines about the process that carried the
    packets.
    """
    before = load()
    with Lab("bench") as lab:
        containers = bring_up(lab, DemoOptions(name="bench", has_docker=False), Steps())
        hosts = list(lab.hosts.values())
        first, last = hosts[0], hosts[-1]
        source, destination = containers[first.name], containers[last.name]
        step("the network told to keep its packets out of the kernel")
        leave_fast_path(lab, first, source, destination)
        step("two plain hosts, joined by a manual vxlan of the kernel")
        kernel = create_kernel_path(lab)
        overlay = Path(name="udp", hosts=(first, last), left=source, right=destination)
        plain = Path(
            name="vxlan", hosts=(kernel.left_host, kernel.right_host), left=kernel.left, right=kernel.right
        )
        proof = [describe(overlay), describe(plain)]
        values = measure_in_turn((overlay, plain), measurements(kernel, seconds), rounds)
        proof += [describe_forwarder(host) for host in overlay.hosts]
    proof.append("vxlan's hosts: no device and no program of pyflannel; the device counted the bytes")
    proof.append(load_since(before))
    return values, proof


def leave_fast_path(lab: Lab, host: Host, source: Station, destination: Station) -> None:
    """Return when packets from `host` pass its forwarder."""
    config = json.dumps({**CONFIG, "FastPath": "off"})
    host.flannelctl("--store", lab.sqlite_url, "config", "set", config)

    def forwards() -> bool:
        before = asyncio.run(ask_forwarder(host)).sent[0]
        ping(source, destination.address, count=1)
        return asyncio.run(ask_forwarder(host)).sent[0] > before

    wait_until(forwards, what=f"{host.name} sends through user space", deadline_s=30)


def measurements(kernel: KernelPath, seconds: int) -> list[Measurement]:
    """Return the measurements of the overlay and of the kernel's path."""
    tcp, udp, delay = QUANTITIES
    return [
        Measurement(partial(stream, kernel, seconds=seconds), (tcp,)),
        Measurement(partial(packets, seconds=seconds), (udp,)),
        Measurement(round_trip, (delay,)),
    ]


def stream(kernel: KernelPath, path: Path, *, seconds: int) -> tuple[float]:
    """Return the throughput of one TCP stream; for the kernel's path, check that vxlan carried the stream."""
    if path.left is kernel.left:
        return (measure_kernel_path(kernel, seconds=seconds).gbit_s,)
    return (measure_throughput(path.left, path.right, seconds=seconds).gbit_s,)


def packets(path: Path, *, seconds: int) -> tuple[float]:
    """Return how many thousand small datagrams a second arrive at the maximum rate."""
    return (small_packets(path, seconds).received_kpps,)


def round_trip(path: Path) -> tuple[float]:
    """Return the average round trip in milliseconds.

    Raises:
        LabError: a ping was not answered.
    """
    result = ping(path.left, path.right.address, count=PINGS)
    if result.rtt_ms is None or not result.is_reached:
        raise LabError(
            f"{result.received} of {result.sent} pings answered", hint="An idle machine measures better."
        )
    return (result.rtt_ms,)


def describe(path: Path) -> str:
    """Return data about the path from the kernel of the left host."""
    way = way_of(path)
    return f"{path.name}: {way.device}, driver {way.driver}, MTU {way.mtu}; {way.route}"


def describe_forwarder(host: Host) -> str:
    """Return the state of the host's forwarder as a line."""
    forwarder = asyncio.run(ask_forwarder(host))
    return (
        f"forwarder of {host.name}: pid {forwarder.pid}, version {forwarder.version},"
        f" {forwarder.resident_kib / 1024:.1f} MiB resident;"
        f" {', '.join(forwarder.offloads) or 'no help of the kernel'};"
        f" {forwarder.sent[0]} packets sent, {forwarder.sent[1]} runs;"
        f" {forwarder.written[0]} written, {forwarder.written[1]} runs"
    )


async def ask_forwarder(host: Host) -> Forwarder:
    """Return the state and the memory of the host's forwarder."""
    async with connected(host.directory / "run/flannel" / SOCKET_NAME) as client:
        state = decode_state(await client.ask(Kind.READ_STATE))
        summary = decode_summary(await client.ask(Kind.READ_SUMMARY))
        counters = decode_counters(await client.ask(Kind.READ_COUNTERS))
        pid = client.pid
    resident = next(
        line for line in FilePath(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line
    )
    return Forwarder(
        pid=pid,
        version=state.version,
        resident_kib=int(resident.split()[1]),
        offloads=tuple(offload.name or "" for offload in Offload(summary.offloads)),
        sent=(counters["sent_packets"], counters["batches_sent"]),
        written=(counters["received_packets"], counters["batches_written"]),
    )


def ratio(quantity: Quantity, values: Values) -> float:
    """Return the ratio of the overlay's median to the kernel's."""
    return median(values[quantity.name, "udp"]) / median(values[quantity.name, "vxlan"])


def table(values: Values) -> Table:
    """Return the figures as a table, with a bar for each ratio."""
    shown = Table(title=TITLE)
    for heading in ("", "udp", "vxlan", "ratio"):
        shown.add_column(heading, justify="left" if heading == "" else "right")
    shown.add_column("[dim]vxlan = ▏[/dim]")
    for quantity in QUANTITIES:
        compared = ratio(quantity, values)
        spreads = [spread(values[quantity.name, path], FORM) for path in ("udp", "vxlan")]
        shown.add_row(quantity.label, *spreads, f"{compared:.2f}", bar(compared))
    return shown


def chart(quantity: Quantity, values: Values) -> Chart:
    """Return both medians of a quantity as bars, with the ratio in the title."""
    bars = [
        Bar(
            name=path,
            value=median(values[quantity.name, path]),
            told=spread(values[quantity.name, path], FORM),
            is_ours=path == "udp",
        )
        for path in ("udp", "vxlan")
    ]
    return Chart(f"{quantity.label}: {ratio(quantity, values):.2f}", [bars])


def bar(ratio: float) -> str:
    """Return a bar with the length of the ratio, and a mark at the kernel's length."""
    length = min(round(ratio * BAR_WIDTH / 2), BAR_WIDTH)
    middle = BAR_WIDTH // 2
    cells = ["█" if cell < length else " " for cell in range(BAR_WIDTH)]
    cells[middle] = "▏" if cells[middle] == " " else "█"
    return "".join(cells).rstrip()


if __name__ == "__main__":
    sys.exit(exit_status(main))
