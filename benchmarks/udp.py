"""The udp backend beside the kernel's own vxlan laid by hand: one lab, one run, turn by turn.

Run by `scripts/bench udp`, as root.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path as FilePath
from statistics import median

from rich.console import Console
from rich.table import Table

from pyflannel.datapath.offload import Offload
from pyflannel.errors import FlannelError, LabError
from pyflannel.lab.demo import CONFIG, DemoOptions, bring_up
from pyflannel.lab.host import Host
from pyflannel.lab.iperf import measure_datagrams, measure_throughput
from pyflannel.lab.kernel_path import VXLAN, KernelPath, lay_kernel_path, measure_kernel_path
from pyflannel.lab.lab import Lab
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

DEVICE = "flannel0"
SMALL_OCTETS = 64
PINGS = 20
TITLE = "udp backend, in user space, beside the kernel's vxlan laid by hand"
PICTURE = FilePath(__file__).parent / "results" / "udp.svg"
BAR_WIDTH = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One quantity on both paths, a value a round.

    Attributes:
        is_less_better: as for a delay.
    """

    name: str
    unit: str
    overlay: tuple[float, ...]
    kernel: tuple[float, ...]
    is_less_better: bool = False

    @property
    def ratio(self) -> float:
        """The overlay's median, the kernel's being 1."""
        return median(self.overlay) / median(self.kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """What carried the packets, as the kernel says."""

    name: str
    device: str
    driver: str
    mtu: int
    route: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarder:
    """The process that carried the packets, as it says itself and as the kernel says.

    Attributes:
        resident_kib: memory, after the measurements.
        offloads: names of the kernel's help in use.
        sent: packets that went to peers, and in how many calls with more than one.
        written: packets that were given to the device, and in how many calls with more than one.
    """

    pid: int
    version: str
    resident_kib: int
    offloads: tuple[str, ...]
    sent: tuple[int, int]
    written: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured, and the proof of what it was measured on.

    Attributes:
        loads: of the machine, in processes that want a processor, before and after.
    """

    paths: tuple[Path, ...]
    figures: tuple[Figure, ...]
    forwarders: dict[str, Forwarder]
    loads: tuple[float, float]


class Steps:
    """Says on standard error what is under way, so that the table alone is on standard output."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Show what is under way while the block runs."""
        self._console.print(f"[dim]· {what}[/dim]")
        yield


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench udp", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each figure (default 3)")
    parser.add_argument("--seconds", type=int, default=3, help="length of each measurement (default 3)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--picture", type=FilePath, default=PICTURE, help=f"SVG to write (default {PICTURE})")
    options = parser.parse_args()
    try:
        report = measure(options.rounds, options.seconds)
    except FlannelError as error:
        print(f"bench: {error}\n  {error.hint}", file=sys.stderr)
        return 1
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(report))
    if options.json:
        print(json.dumps({figure.name: figure.ratio for figure in report.figures}))
    else:
        show(report)
        print(f"picture: {options.picture}")
    return 0


def measure(rounds: int, seconds: int) -> Report:
    """Lay both paths, measure them in turn, and ask who carried the packets."""
    steps, load = Steps(), os.getloadavg()[0]
    with Lab("bench") as lab:
        containers = bring_up(lab, DemoOptions(name="bench", has_docker=False), steps)
        hosts = list(lab.hosts.values())
        first, last = hosts[0], hosts[-1]
        source, destination = containers[first.name], containers[last.name]
        with steps.step("the network told to keep its packets out of the kernel"):
            leave_fast_path(lab, first, source, destination)
        with steps.step("two plain hosts, joined by the kernel's vxlan by hand"):
            kernel = lay_kernel_path(lab)
        paths = (
            describe("udp", first, DEVICE, destination),
            describe("vxlan", kernel.left_host, VXLAN, kernel.right),
        )
        with steps.step(f"{rounds} rounds, the two paths in turn"):
            figures = measure_rounds(source, destination, kernel, rounds, seconds)
        return Report(
            paths=paths,
            figures=tuple(figures),
            forwarders={host.name: asyncio.run(ask_forwarder(host)) for host in (first, last)},
            loads=(load, os.getloadavg()[0]),
        )


def leave_fast_path(lab: Lab, host: Host, source: Station, destination: Station) -> None:
    """Return when packets from `host` go through its forwarder."""
    config = json.dumps({**CONFIG, "FastPath": "off"})
    host.flannelctl("--store", lab.sqlite_url, "config", "set", config)

    def forwards() -> bool:
        before = asyncio.run(ask_forwarder(host)).sent[0]
        ping(source, destination.address, count=1)
        return asyncio.run(ask_forwarder(host)).sent[0] > before

    wait_until(forwards, what=f"{host.name} sends through user space", deadline_s=30)


def measure_rounds(
    source: Station, destination: Station, kernel: KernelPath, rounds: int, seconds: int
) -> list[Figure]:
    """Measure each figure on both paths, turn by turn, so that what disturbs one disturbs the other."""

    def in_turn(
        name: str,
        unit: str,
        overlay: Callable[[], float],
        plain: Callable[[], float],
        *,
        is_less_better: bool = False,
    ) -> Figure:
        pairs = [(overlay(), plain()) for _ in range(rounds)]
        return Figure(
            name=name,
            unit=unit,
            overlay=tuple(pair[0] for pair in pairs),
            kernel=tuple(pair[1] for pair in pairs),
            is_less_better=is_less_better,
        )

    return [
        in_turn(
            "TCP, one stream",
            "Gbit/s",
            lambda: measure_throughput(source, destination, seconds=seconds).gbit_s,
            lambda: measure_kernel_path(kernel, seconds=seconds).gbit_s,
        ),
        in_turn(
            f"UDP, {SMALL_OCTETS} octets, received",
            "kpps",
            lambda: packets(source, destination, seconds),
            lambda: packets(kernel.left, kernel.right, seconds),
        ),
        in_turn(
            "round trip",
            "ms",
            lambda: round_trip(source, destination),
            lambda: round_trip(kernel.left, kernel.right),
            is_less_better=True,
        ),
    ]


def packets(source: Station, destination: Station, seconds: int) -> float:
    """Return how many thousand small datagrams a second arrive, of as many as go out."""
    return measure_datagrams(source, destination, octets=SMALL_OCTETS, seconds=seconds).received_kpps


def round_trip(source: Station, destination: Station) -> float:
    """Return the average round trip in milliseconds.

    Raises:
        LabError: a ping was not answered.
    """
    result = ping(source, destination.address, count=PINGS)
    if result.rtt_ms is None or not result.is_reached:
        raise LabError(
            f"{result.received} of {result.sent} pings answered", hint="An idle machine measures better."
        )
    return result.rtt_ms


def describe(name: str, host: Host, device: str, destination: Station) -> Path:
    """Return what the kernel of a host says of the path to a container elsewhere."""
    link = next(link for link in host.links() if link["ifname"] == device)
    driver = host.run(["ethtool", "-i", device]).stdout.splitlines()[0].removeprefix("driver: ")
    route = host.run(["ip", "route", "get", str(destination.address)]).stdout.splitlines()[0]
    return Path(name=name, device=device, driver=driver, mtu=link["mtu"], route=route.strip())


async def ask_forwarder(host: Host) -> Forwarder:
    """Return what the host's forwarder says of itself, and its memory."""
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


def show(report: Report) -> None:
    """Print the figures as a table and a picture, and what they were measured on."""
    table = Table(title=TITLE)
    for heading in ("", "udp", "vxlan", "ratio"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    table.add_column("[dim]vxlan = ▏[/dim]")
    for figure in report.figures:
        table.add_row(
            label(figure),
            spread(figure.overlay),
            spread(figure.kernel),
            f"{figure.ratio:.2f}",
            bar(figure.ratio),
        )
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table)
    for line in proof(report):
        console.print(line, soft_wrap=True)


def proof(report: Report) -> Iterator[str]:
    """Yield lines that say what was really measured."""
    for path in report.paths:
        yield f"{path.name}: {path.device}, driver {path.driver}, MTU {path.mtu}; {path.route}"
    for host, forwarder in report.forwarders.items():
        yield (
            f"forwarder of {host}: pid {forwarder.pid}, version {forwarder.version},"
            f" {forwarder.resident_kib / 1024:.1f} MiB resident;"
            f" {', '.join(forwarder.offloads) or 'no help of the kernel'};"
            f" {forwarder.sent[0]} packets sent, {forwarder.sent[1]} runs;"
            f" {forwarder.written[0]} written, {forwarder.written[1]} runs"
        )
    yield "vxlan's hosts: no device and no program of ours, its octets counted by the device"
    before, after = report.loads
    yield f"load of the machine: {before:.1f} before, {after:.1f} after, {os.cpu_count()} processors"


def label(figure: Figure) -> str:
    """Return what a row is about."""
    return f"{figure.name} ({figure.unit}){', less is better' if figure.is_less_better else ''}"


def draw(report: Report) -> str:
    """Return the figures as an SVG: both medians of each, on one scale, with the ratio."""
    rows: list[str] = []
    for number, figure in enumerate(report.figures):
        top = 60 + number * 74
        most = max(median(figure.overlay), median(figure.kernel))
        rows.append(f'<text x="20" y="{top}" font-weight="bold">{label(figure)}: {figure.ratio:.2f}</text>')
        for name, values, colour, down in (
            ("udp", figure.overlay, "#1f77b4", 10),
            ("vxlan", figure.kernel, "#999999", 32),
        ):
            width = max(1, round(440 * median(values) / most))
            rows.append(f'<text x="20" y="{top + down + 13}">{name}</text>')
            rows.append(f'<rect x="80" y="{top + down}" width="{width}" height="17" fill="{colour}"/>')
            rows.append(f'<text x="{88 + width}" y="{top + down + 13}">{spread(values)}</text>')
    height = 60 + len(report.figures) * 74
    notes = [
        f'<text x="20" y="{height + 16 * number}" font-size="9" fill="#555555">{line}</text>'
        for number, line in enumerate(proof(report))
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="920" height="{height + 16 * len(notes)}"'
            ' font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="20" y="28" font-size="16">{TITLE}</text>',
            *rows,
            *notes,
            "</svg>\n",
        ]
    )


def spread(values: tuple[float, ...]) -> str:
    """Return the median and the extremes."""
    return f"{median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def bar(ratio: float) -> str:
    """Return a bar as long as the ratio, with the kernel's own length marked."""
    length = min(round(ratio * BAR_WIDTH / 2), BAR_WIDTH)
    middle = BAR_WIDTH // 2
    cells = ["█" if cell < length else " " for cell in range(BAR_WIDTH)]
    cells[middle] = "▏" if cells[middle] == " " else "█"
    return "".join(cells).rstrip()


if __name__ == "__main__":
    sys.exit(main())
