"""Each backend's path between containers beside the same path laid by ip(8): a lab for each, turn by turn.

Run by `scripts/bench backends`, as root. vxlan and host-gw have what they lay by hand beside them, with the
same MTU and the same rules in FORWARD; udp, in user space here, has the kernel's vxlan. A ratio is the median
of the rounds' own: in each, both paths are measured one after the other.
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
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from pyflannel.errors import FlannelError, LabError
from pyflannel.lab.host import Host
from pyflannel.lab.iperf import measure_datagrams, measure_throughput
from pyflannel.lab.lab import Lab
from pyflannel.lab.namespace_container import NamespaceContainer
from pyflannel.lab.topology import LEFT, HostPlace, Topology
from pyflannel.lab.traffic import wait_reached

TITLE = "Each backend beside the same path laid by hand"
PICTURE = Path(__file__).parent / "results" / "backends.svg"
NETWORK = IPv4Network("10.100.0.0/16")
SMALL_OCTETS = 64
PINGS = 400
REACHED_S = 30.0
TOPOLOGY = Topology(
    (LEFT,),
    (
        HostPlace("one", LEFT, IPv4Interface("10.10.10.101/24")),
        HostPlace("two", LEFT, IPv4Interface("10.10.10.102/24")),
    ),
)
REFERENCES = {"vxlan": "vxlan by hand", "host-gw": "host-gw by hand", "udp": "vxlan by hand"}
MTUS = {"vxlan by hand": 1450, "host-gw by hand": 1500}
GATEWAYS = IPv4Interface("10.100.1.1/24"), IPv4Interface("10.100.2.1/24")
MACS = "02:00:00:00:00:01", "02:00:00:00:00:02"
DEVICE = "vxlan1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """Two containers on two hosts of a lab, and what joins them."""

    path: str
    hosts: tuple[Host, Host]
    left: NamespaceContainer
    right: NamespaceContainer

    @property
    def is_ours(self) -> bool:
        """Whether flanneld laid it."""
        return self.path in REFERENCES


@dataclass(frozen=True, slots=True)
class Quantity:
    """What is measured of a path, once a round."""

    name: str
    unit: str
    measure: Callable[[Joined], float]
    is_less_better: bool = False


Values = Mapping[tuple[str, str], Sequence[float]]
"""By quantity and path, a value a round."""


def main() -> int:
    """Measure and print; return the exit status."""
    parser = argparse.ArgumentParser(prog="scripts/bench backends", description=__doc__)
    parser.add_argument("--backends", nargs="+", choices=list(REFERENCES), default=list(REFERENCES))
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each figure (default 5)")
    parser.add_argument("--seconds", type=int, default=2, help="length of each measurement (default 2)")
    parser.add_argument("--json", action="store_true", help="print medians and ratios as JSON")
    parser.add_argument("--picture", type=Path, default=PICTURE, help=f"SVG to write (default {PICTURE})")
    options = parser.parse_args()
    wanted, load = quantities(options.seconds), os.getloadavg()[0]
    by_hand = dict.fromkeys(REFERENCES[backend] for backend in options.backends)
    try:
        with ExitStack() as labs:
            joined = [*(lay_backend(labs, each) for each in options.backends)]
            joined += [lay_by_hand(labs, each) for each in by_hand]
            values = measure(in_pairs(joined), wanted, options.rounds)
            proof = [line for each in joined for line in describe(each)]
    except FlannelError as error:
        print(f"bench: {error}\n  {error.hint}", file=sys.stderr)
        return 1
    proof.append(
        f"load of the machine: {load:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} processors"
    )
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    options.picture.write_text(draw(options.backends, wanted, values, proof))
    if options.json:
        print(json.dumps(figures(options.backends, wanted, values)))
    else:
        show(options.backends, wanted, values, proof)
        print(f"picture: {options.picture}")
    return 0


def lay_backend(labs: ExitStack, backend: str) -> Joined:
    """Make a lab whose two hosts are joined by flanneld, with a container on each."""
    lab = labs.enter_context(Lab(f"backend-{backend}", TOPOLOGY))
    one, two = lab.hosts.values()
    config = json.dumps({"Network": str(NETWORK), "Backend": {"Type": backend}})
    one.flannelctl("--store", lab.sqlite_url, "config", "set", config)
    flags = [f"--store={lab.sqlite_url}", *(["--fast-path=off"] if backend == "udp" else [])]
    for host in (one, two):
        host.start_flanneld(*flags)
    mtu = int(one.subnet_env()["FLANNEL_MTU"])
    return join(backend, (one, two), (one.gateway(), two.gateway()), mtu)


def lay_by_hand(labs: ExitStack, path: str) -> Joined:
    """Make a lab whose two hosts are joined by ip(8), as flannel's backend of the name does it."""
    kind = path.removesuffix(" by hand")
    lab = labs.enter_context(Lab(f"by-hand-{kind}", TOPOLOGY))
    one, two = lab.hosts.values()
    lay = lay_vxlan if kind == "vxlan" else lay_host_gw
    lay(one, two, 0, 1)
    lay(two, one, 1, 0)
    for host in (one, two):
        for selector in ("-s", "-d"):
            host.run(["iptables", "-A", "FORWARD", selector, str(NETWORK), "-j", "ACCEPT"])
    return join(path, (one, two), GATEWAYS, MTUS[path])


def lay_host_gw(host: Host, peer: Host, ours: int, theirs: int) -> None:
    """Lay the one route to a peer's subnet."""
    host.run(["ip", "route", "add", str(GATEWAYS[theirs].network), "via", str(peer.address)])


def lay_vxlan(host: Host, peer: Host, ours: int, theirs: int) -> None:
    """Lay device, neighbour, FDB entry and route of one peer."""
    base, peers = GATEWAYS[ours].network.network_address, GATEWAYS[theirs].network
    device = f"type vxlan id 1 local {host.address} dev eth0 dstport 8472 nolearning"
    lines = [
        f"link add {DEVICE} address {MACS[ours]} mtu {MTUS['vxlan by hand']} {device}",
        f"address add {base}/32 dev {DEVICE}",
        f"link set {DEVICE} up",
        f"neighbour add {peers.network_address} lladdr {MACS[theirs]} dev {DEVICE} nud permanent",
        f"route add {peers} via {peers.network_address} dev {DEVICE} onlink",
    ]
    host.run(["ip", "-batch", "-"], text="\n".join(lines) + "\n")
    host.run(
        ["bridge", "fdb", "add", MACS[theirs], "dev", DEVICE, "dst", str(peer.address), "self", "permanent"]
    )


def join(
    path: str, hosts: tuple[Host, Host], gateways: tuple[IPv4Interface, IPv4Interface], mtu: int
) -> Joined:
    """Add a container to each host and return when they reach each other."""
    left, right = (
        host.container("box", gateway=gateway, mtu=mtu) for host, gateway in zip(hosts, gateways, strict=True)
    )
    wait_reached((left, right), deadline_s=REACHED_S)
    return Joined(path=path, hosts=hosts, left=left, right=right)


def in_pairs(joined: Sequence[Joined]) -> list[Joined]:
    """Return the paths in an order in which each backend's stands beside its reference."""
    by_path = {each.path: each for each in joined}
    order = dict.fromkeys(
        path
        for backend, reference in REFERENCES.items()
        if backend in by_path
        for path in (backend, reference)
    )
    return [by_path[path] for path in order]


def quantities(seconds: int) -> list[Quantity]:
    """Return what is measured of every path."""
    return [
        Quantity("TCP, one stream", "Gbit/s", partial(stream, seconds=seconds)),
        Quantity(f"{SMALL_OCTETS} octets, received", "kpps", partial(packets, seconds=seconds)),
        Quantity("round trip, median", "µs", round_trip, is_less_better=True),
    ]


def measure(paths: Sequence[Joined], wanted: Sequence[Quantity], rounds: int) -> Values:
    """Measure every quantity in every round, the paths turn by turn; every second round backwards."""
    values: dict[tuple[str, str], list[float]] = {}
    for quantity in wanted:
        for number in range(rounds):
            print(f"· {quantity.name}, round {number + 1} of {rounds}", file=sys.stderr)
            for joined in paths if number % 2 else reversed(paths):
                values.setdefault((quantity.name, joined.path), []).append(quantity.measure(joined))
    return values


def stream(joined: Joined, *, seconds: int) -> float:
    """Return what one TCP stream carries."""
    return measure_throughput(joined.left, joined.right, seconds=seconds).gbit_s


def packets(joined: Joined, *, seconds: int) -> float:
    """Return how many thousand small datagrams a second arrive, of as many as go out."""
    return measure_datagrams(joined.left, joined.right, octets=SMALL_OCTETS, seconds=seconds).received_kpps


def round_trip(joined: Joined) -> float:
    """Return the median of some hundred pings, two milliseconds apart."""
    command = ["ping", "-n", "-i", "0.002", "-c", str(PINGS), str(joined.right.address)]
    times = re.findall(r"time=([\d.]+)", joined.left.run_in_network(command, check=False).stdout)
    if len(times) < PINGS:
        raise LabError(
            f"{PINGS - len(times)} of {PINGS} pings over {joined.path} were lost", hint="Repeat it."
        )
    return 1e3 * median(map(float, times))


def describe(joined: Joined) -> Iterator[str]:
    """Yield what was really measured, as the kernel of the left host says.

    Raises:
        LabError: something of ours is where only the kernel's own should be, or the reverse.
    """
    host = joined.hosts[0]
    route = one_line(host, "ip", "route", "get", str(joined.right.address)).partition(" uid")[0]
    device = route.partition(" dev ")[2].split()[0]
    link = next(link for link in host.links() if link["ifname"] == device)
    driver = one_line(host, "ethtool", "-i", device).removeprefix("driver: ")
    sent = one_line(host, "cat", f"/sys/class/net/{device}/statistics/tx_packets")
    running = [" ".join(command) for command in host.commands()]
    programs = [each for each in running if "/flanneld" in each or "pyflannel.programs" in each]
    aliases = [link["ifname"] for link in host.links() if link.get("ifalias", "").startswith("pyflannel")]
    if bool(programs) is not joined.is_ours or (aliases and not joined.is_ours):
        raise LabError(
            f"{joined.path}: programs {programs}, devices of ours {aliases}", hint="Measure on a fresh host."
        )
    yield (
        f"{joined.path}: {route.strip()}; {device}, driver {driver}, MTU {link['mtu']}, {sent} packets"
        f" sent by it; of ours: {len(programs)} processes, devices: {', '.join(aliases) or 'none'}"
    )


def one_line(host: Host, *argv: str) -> str:
    """Return the first line that a command says."""
    return host.run(argv).stdout.splitlines()[0].strip()


def ratio(quantity: Quantity, backend: str, values: Values) -> float:
    """Return the median of the rounds' ratios, the path by hand being 1."""
    pairs = zip(values[quantity.name, backend], values[quantity.name, REFERENCES[backend]], strict=True)
    return median(own / reference for own, reference in pairs)


def figures(
    backends: Sequence[str], wanted: Sequence[Quantity], values: Values
) -> dict[str, dict[str, float]]:
    """Return medians and ratios, by backend and quantity."""
    return {
        f"{backend}, {quantity.name}": {
            "ours": median(values[quantity.name, backend]),
            "by hand": median(values[quantity.name, REFERENCES[backend]]),
            "ratio": ratio(quantity, backend, values),
        }
        for backend in backends
        for quantity in wanted
    }


def show(backends: Sequence[str], wanted: Sequence[Quantity], values: Values, proof: Sequence[str]) -> None:
    """Print the figures as a table, and what they were measured on."""
    table = Table(title=TITLE)
    for heading in ("", "flanneld", "beside it", "ratio", "reference"):
        table.add_column(heading, justify="left" if heading in ("", "reference") else "right")
    for backend in backends:
        for quantity in wanted:
            table.add_row(
                f"{backend}: {label(quantity)}",
                spread(values[quantity.name, backend]),
                spread(values[quantity.name, REFERENCES[backend]]),
                f"{ratio(quantity, backend, values):.2f}",
                REFERENCES[backend],
            )
    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False)
    console.print(table)
    for line in proof:
        console.print(line, soft_wrap=True)


def label(quantity: Quantity) -> str:
    """Return what a row is about."""
    return f"{quantity.name} ({quantity.unit}){', less is better' if quantity.is_less_better else ''}"


def spread(values: Sequence[float]) -> str:
    """Return the median and the extremes."""
    return f"{median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def draw(backends: Sequence[str], wanted: Sequence[Quantity], values: Values, proof: Sequence[str]) -> str:
    """Return the medians as an SVG: each backend's bar above that of its reference, and the ratio."""
    rows, top = [], 40
    for quantity in wanted:
        top += 26
        rows.append(f'<text x="20" y="{top}" font-weight="bold">{label(quantity)}</text>')
        longest = max(median(each) for (name, _), each in values.items() if name == quantity.name)
        for backend in backends:
            reference = REFERENCES[backend]
            named = f"{ratio(quantity, backend, values):.2f} of it"
            for path, colour, note in ((backend, "#1f77b4", named), (reference, "#999999", "")):
                top += 18
                each = values[quantity.name, path]
                width = max(1, round(400 * median(each) / longest))
                rows.append(
                    f'<text x="20" y="{top}">{path}</text>'
                    f'<rect x="130" y="{top - 12}" width="{width}" height="14" fill="{colour}"/>'
                    f'<text x="{138 + width}" y="{top}">{spread(each)} {note}</text>'
                )
            top += 6
    for line in proof:
        top += 14
        rows.append(f'<text x="20" y="{top + 16}" font-size="8" fill="#555555">{line}</text>')
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
