"""The udp backend in the kernel, beside the kernel's own paths: each in a lab of its own, turn by turn.

Run by `scripts/bench fastpath`, as root. Two containers on two hosts of one segment, or the hosts themselves
(`wire`). host-gw and vxlan are laid by hand; `user` and `safe` are flanneld with --fast-path=off and =safe.
`nic` repeats all of it where packets leave the host as a network card sends them, in segments, and are joined
again on arrival.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path as FilePath
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

from pyflannel.errors import FlannelError, LabError
from pyflannel.lab.host import Host
from pyflannel.lab.iperf import measure_datagrams, measure_throughput, wait_listening
from pyflannel.lab.lab import Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, HostPlace, Topology
from pyflannel.lab.traffic import Station, wait_reached

TITLE = "udp backend in the kernel, beside the kernel's own paths"
PICTURE = FilePath(__file__).parent / "results" / "fastpath.svg"
KINDS = ("wire", "host-gw", "vxlan", "user", "safe")
REFERENCE = "vxlan"
NETWORK = "10.100.0.0/16"
PORT = 5203
SMALL_OCTETS = 64
PINGS = 1000
_TOPOLOGY = Topology(
    (LEFT,),
    (
        HostPlace("one", LEFT, IPv4Interface("10.10.10.101/24")),
        HostPlace("two", LEFT, IPv4Interface("10.10.10.102/24")),
    ),
)
_MTU = {"host-gw": 1500, "vxlan": 1450}

# Rules such as a Docker host has: every flow is tracked, and each packet looked at.
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

_SERVER = """
import socket, sys
with socket.create_server(("0.0.0.0", int(sys.argv[1]))) as listener:
    client = listener.accept()[0]
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while octets := client.recv(64):
        client.sendall(octets)
"""

_CLIENT = """
import socket, sys, time
address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with socket.create_connection((address, port)) as server:
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    answered, start = 0, time.monotonic()
    while time.monotonic() < start + seconds:
        server.sendall(bytes(64))
        server.recv(64)
        answered += 1
    print(answered / (time.monotonic() - start))
"""

_PROGRAMS = """
import asyncio, json
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.model.bpf_peer import BpfPeer
from ipaddress import ip_address, ip_network

async def read():
    path = FastPath()
    nobody = BpfPeer(
        device="flannel0", subnet=ip_network("0.0.0.0/32"), address=ip_address("0.0.0.0"), port=1
    )
    found = await path.read([nobody])
    counts = {outcome.value: packets for outcome, (packets, _) in path.counts("flannel0").items() if packets}
    return [f"{item.role.value} at {item.link}" for item in found if hasattr(item, "role")], counts

print(json.dumps(asyncio.run(read())))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A flanneld and what it was started with."""

    host: Host
    program: Program
    flags: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """Two stations and what joins them."""

    kind: str
    hosts: tuple[Host, Host]
    left: Station
    right: Station
    daemons: tuple[Daemon, ...] = ()


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of a measurement. The values of a path are one a round."""

    name: str
    unit: str
    is_less_better: bool = False


@dataclass(frozen=True, slots=True)
class Measurement:
    """What is done to a path, and the figures that it gives."""

    measure: Callable[[Path], Sequence[float]]
    quantities: tuple[Quantity, ...]


Values = Mapping[tuple[str, str], list[float]]
"""By quantity and kind of path."""


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench fastpath", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each figure (default 5)")
    parser.add_argument("--seconds", type=int, default=2, help="length of each measurement (default 2)")
    parser.add_argument("--json", action="store_true", help="print the medians as JSON")
    parser.add_argument("--picture", type=FilePath, default=PICTURE, help=f"SVG to write (default {PICTURE})")
    options = parser.parse_args()
    try:
        with ExitStack() as labs:
            paths = [lay(labs, kind) for kind in KINDS]
            values = measure(paths, measurements(options.seconds), options.rounds)
            for path in paths:
                imitate_network_card(path)
            values |= measure(paths, measurements(options.seconds, prefix="nic: "), options.rounds)
            proof = [line for path in paths for line in describe(path)]
    except FlannelError as error:
        print(f"bench: {error}\n  {error.hint}", file=sys.stderr)
        return 1
    every = [
        quantity
        for prefix in ("", "nic: ")
        for measurement in measurements(options.seconds, prefix)
        for quantity in measurement.quantities
    ]
    if options.json:
        print(json.dumps({f"{name}, {kind}": median(each) for (name, kind), each in values.items()}))
        return 0
    show(every, values, proof)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(every, values, proof))
    print(f"picture: {options.picture}")
    return 0


def lay(labs: ExitStack, kind: str) -> Path:
    """Make a lab for a path, with two hosts that track every flow, and lay it."""
    lab = labs.enter_context(Lab(f"bench-{kind}", _TOPOLOGY))
    one, two = lab.hosts.values()
    if kind == "wire":
        return Path(kind=kind, hosts=(one, two), left=one, right=two)
    daemons: tuple[Daemon, ...] = ()
    for host in (one, two):
        host.run(["iptables-restore", "--noflush"], text=_FIREWALL)
    if kind in _MTU:
        lay_by_hand(kind, one, two)
        gateways, mtu = {one: IPv4Interface("10.100.1.1/24"), two: IPv4Interface("10.100.2.1/24")}, _MTU[kind]
    else:
        config = json.dumps({"Network": NETWORK, "Backend": {"Type": "udp"}})
        one.flannelctl("--store", lab.sqlite_url, "config", "set", config)
        flags = f"--store={lab.sqlite_url}", f"--fast-path={'off' if kind == 'user' else 'safe'}"
        daemons = tuple(
            Daemon(host=host, program=host.start_flanneld(*flags), flags=flags) for host in (one, two)
        )
        gateways, mtu = {host: host.gateway() for host in (one, two)}, int(one.subnet_env()["FLANNEL_MTU"])
    left, right = (host.container("box", gateway=gateways[host], mtu=mtu) for host in (one, two))
    for host in (one, two):
        host.run(["ip", "link", "set", "br0", "mtu", str(mtu)])
    wait_reached((left, right), deadline_s=30)
    return Path(kind=kind, hosts=(one, two), left=left, right=right, daemons=daemons)


def lay_by_hand(kind: str, one: Host, two: Host) -> None:
    """Join two hosts as an operator would who has no flannel."""
    for host, peer, ours, theirs in ((one, two, 1, 2), (two, one, 2, 1)):
        lines = [f"route add 10.100.{theirs}.0/24 via {peer.address}"]
        if kind == "vxlan":
            lines = [
                f"link add vxlan1 mtu {_MTU[kind]} type vxlan id 1 local {host.address} remote {peer.address}"
                " dstport 4789 dev eth0",
                f"address add 10.100.{ours}.0/32 dev vxlan1",
                "link set vxlan1 up",
                f"route add 10.100.{theirs}.0/24 via 10.100.{theirs}.0 dev vxlan1 onlink",
            ]
        host.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")


def imitate_network_card(path: Path) -> None:
    """Let packets leave eth0 as long as the MTU, and be joined where they arrive; say that to the daemons."""
    for host in path.hosts:
        for feature in (
            "tso off",
            "tx-udp_tnl-segmentation off",
            "tx-udp_tnl-csum-segmentation off",
            "gro on",
        ):
            host.run(["ethtool", "-K", "eth0", *feature.split()], check=False)
    for daemon in path.daemons:
        daemon.program.stop()
        daemon.host.start_flanneld(*daemon.flags, "--fast-path-gro=on")


def measurements(seconds: int, prefix: str = "") -> list[Measurement]:
    """Return what is measured on every path; each quantity's name begins with the prefix."""

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
                quantity("64 octets, received", "kpps"),
                quantity("64 octets, lost", "%", is_less_better=True),
            ),
        ),
        Measurement(
            round_trips,
            (
                quantity("round trip at 1 kHz, p50", "us", is_less_better=True),
                quantity("round trip at 1 kHz, p99", "us", is_less_better=True),
            ),
        ),
        Measurement(partial(requests, seconds=seconds), (quantity("TCP requests", "1/s"),)),
    ]


def measure(
    paths: Sequence[Path], wanted: Sequence[Measurement], rounds: int
) -> dict[tuple[str, str], list[float]]:
    """Measure each on all paths in turn, so that what disturbs one disturbs the others."""
    values: dict[tuple[str, str], list[float]] = {}
    for measurement in wanted:
        for number in range(rounds):
            print(f"· {measurement.quantities[0].name}, round {number + 1} of {rounds}", file=sys.stderr)
            for path in paths if number % 2 else reversed(paths):
                for quantity, value in zip(measurement.quantities, measurement.measure(path), strict=True):
                    values.setdefault((quantity.name, path.kind), []).append(value)
    return values


def stream(path: Path, *, seconds: int) -> tuple[float, float]:
    """Return what one stream carries, and what the whole machine's processors take for it."""
    before = busy_s()
    carried = measure_throughput(path.left, path.right, seconds=seconds)
    return carried.gbit_s, (busy_s() - before) / (carried.octets * 8 / 1e9)


def streams(path: Path, *, seconds: int) -> tuple[float]:
    """Return what four streams carry together."""
    return (measure_throughput(path.left, path.right, seconds=seconds, streams=4).gbit_s,)


def busy_s() -> float:
    """Return the seconds that all processors together have worked."""
    user, nice, system, _, _, *interrupts = map(int, FilePath("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def packets(path: Path, *, seconds: int) -> tuple[float, float]:
    """Return how many thousand small packets a second arrive, of as many as go out, and how many do not."""
    sent = measure_datagrams(path.left, path.right, octets=SMALL_OCTETS, seconds=seconds)
    return sent.received_kpps, sent.lost_percent


def round_trips(path: Path) -> tuple[float, float]:
    """Return how long half of the pings take at most, and 99 of a hundred."""
    command = ["ping", "-n", "-i", "0.001", "-c", str(PINGS), str(path.right.address)]
    times = [float(ms) for ms in re.findall(r"time=([\d.]+)", path.left.run_in_network(command).stdout)]
    of_a_hundred = quantiles(times, n=100)
    return of_a_hundred[49] * 1e3, of_a_hundred[98] * 1e3


def requests(path: Path, *, seconds: int) -> tuple[float]:
    """Return how many exchanges of 64 octets a connection does in a second."""
    server = path.right.start_in_network([sys.executable, "-c", _SERVER, str(PORT)], name="echo")
    wait_listening(server, path.right, PORT)
    client = [sys.executable, "-c", _CLIENT, str(path.right.address), str(PORT), str(seconds)]
    answered = float(path.left.run_in_network(client, timeout_s=seconds + 30).stdout)
    server.kill()
    return (answered,)


def describe(path: Path) -> Iterator[str]:
    """Yield lines that say what was really measured, as the kernels of the hosts say.

    Raises:
        LabError: programs carried packets that they should not have carried, or none.
    """
    host, other = path.hosts
    route = host.run(["ip", "route", "get", str(path.right.address)]).stdout.split(" uid")[0].strip()
    device = re.search(r" dev (\S+)", route)
    name = device[1] if device else "eth0"
    link = next(link for link in host.links() if link["ifname"] == name)
    programs, counts = look(host)
    carried = counts.get("encapsulated", 0)
    if bool(carried) is not (path.kind == "safe"):
        raise LabError(
            f"{path.kind}: programs carried {carried} packets", hint="Read what flannelctl status says."
        )
    packets_sent = host.run(["cat", f"/sys/class/net/{name}/statistics/tx_packets"]).stdout.strip()
    yield f"{path.kind}: {route}; {name}, MTU {link['mtu']}, {packets_sent} packets sent by the device"
    yield f"{path.kind}: {', '.join(programs) or 'no program'}; {counts or 'no counters'}"
    if counts:
        yield f"{path.kind}, where it arrives: {look(other)[1]}"


def look(host: Host) -> tuple[list[str], dict[str, int]]:
    """Return which programs of ours a host has, and what they counted."""
    programs, counts = json.loads(host.run([sys.executable, "-c", _PROGRAMS]).stdout)
    return programs, counts


def show(wanted: Sequence[Quantity], values: Values, proof: Sequence[str]) -> None:
    """Print the medians as a table, each with its ratio to the kernel's vxlan, and what they are of."""
    table = Table(title=f"{TITLE}: medians, and how much of vxlan; in the end, how much safe has of host-gw")
    table.add_column("")
    for kind in KINDS:
        table.add_column(kind, justify="right")
    table.add_column("safe/host-gw", justify="right")
    for quantity in wanted:
        routed = median(values[quantity.name, "host-gw"])
        beside = f"{median(values[quantity.name, 'safe']) / routed:.2f}x" if routed else ""
        table.add_row(label(quantity), *(cell(quantity, kind, values) for kind in KINDS), beside)
    console = Console(width=None if sys.stdout.isatty() else 150, highlight=False)
    console.print(table)
    for line in proof:
        console.print(line, soft_wrap=True)
    console.print(f"load of the machine: {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors")


def label(quantity: Quantity) -> str:
    """Return what a row is about."""
    return f"{quantity.name} ({quantity.unit}){', less is better' if quantity.is_less_better else ''}"


def cell(quantity: Quantity, kind: str, values: Values) -> str:
    """Return a median and its ratio to the reference's."""
    middle, reference = median(values[quantity.name, kind]), median(values[quantity.name, REFERENCE])
    return f"{middle:.4g}" + (f"  {middle / reference:.2f}x" if reference else "")


def draw(wanted: Sequence[Quantity], values: Values, proof: Sequence[str]) -> str:
    """Return the medians as an SVG: a group of bars for each quantity, on a scale of its own."""
    rows, top = [], 40
    for quantity in wanted:
        top += 24
        rows.append(f'<text x="20" y="{top}" font-weight="bold">{label(quantity)}</text>')
        middles = {kind: median(values[quantity.name, kind]) for kind in KINDS}
        longest = max(middles.values()) or 1
        for kind, middle in middles.items():
            top += 18
            colour = "#1f77b4" if kind == "safe" else "#999999"
            width = max(1, round(440 * middle / longest))
            rows.append(f'<text x="20" y="{top}">{kind}</text>')
            rows.append(f'<rect x="90" y="{top - 12}" width="{width}" height="14" fill="{colour}"/>')
            rows.append(f'<text x="{98 + width}" y="{top}">{cell(quantity, kind, values)}</text>')
    for line in proof:
        top += 16
        rows.append(f'<text x="20" y="{top + 16}" font-size="9" fill="#555555">{line}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="920" height="{top + 40}"'
            ' font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="20" y="28" font-size="16">{TITLE}</text>',
            *rows,
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
