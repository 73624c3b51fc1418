"""Measures the path between containers by each backend, and the same path configured with ip(8). Each path
has its own lab. The paths are measured alternately.

Run by `scripts/bench backends`, as root. vxlan, host-gw and wireguard are compared with the same path
configured manually, with the same MTU and the same rules in FORWARD. The manual path has no tunnel guard, so
vxlan is also measured with --guard=off. wireguard is compared with the same
implementation: the kernel's, or wireguard-go. vxlan and host-gw are also measured over IPv6. udp, here in
user space, is compared with the kernel's vxlan. A ratio is the median of the ratios of the rounds, with the
quartiles of these ratios. In each round, both paths are measured one after the other.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median

from rich.table import Table

from command.options import add_json, add_picture, add_rounds, bench_parser, exit_status
from command.output import load, load_since, present
from drawing.bars import Bar, Chart, draw_bars
from paths.path import NETWORK, NETWORK_V6, Path, join_by_flanneld, join_manually, two_hosts
from paths.quantity import Quantity, Ratio, Values, ratio, spread
from paths.rounds import Measurement, measure_in_turn
from paths.traffic import SMALL_BYTES, ping_times, small_packets
from paths.way import way_of
from pyflannel.errors import LabError
from pyflannel.lab.kernel_path import measure_throughput
from pyflannel.model.network_config import Family

TITLE = "Each backend beside the same path, configured manually"
REFERENCES = {
    "vxlan": "vxlan (manual)",
    "vxlan-no-guard": "vxlan (manual)",
    "host-gw": "host-gw (manual)",
    "wireguard": "wireguard (manual)",
    "udp": "vxlan (manual)",
    "vxlan-v6": "vxlan-v6 (manual)",
    "vxlan-v6-no-guard": "vxlan-v6 (manual)",
    "host-gw-v6": "host-gw-v6 (manual)",
}
_OVER_IPV6 = "-v6"
"""Suffix of a path over IPv6."""
_WITHOUT_GUARD = "-no-guard"
"""Suffix of a path by flanneld with --guard=off."""

PINGS, PING_INTERVAL_S = 400, 0.002
FORWARD_RULES = """*filter
:FLANNEL-FWD - [0:0]
-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD
-A FLANNEL-FWD -s {network} -m comment --comment "flanneld forward" -j ACCEPT
-A FLANNEL-FWD -d {network} -m comment --comment "flanneld forward" -j ACCEPT
COMMIT
"""
"""The manual path evaluates the same rules for a packet as flannel 0.28."""


def main() -> int:
    """Measure and print; return the exit status."""
    parser = bench_parser("backends", __doc__)
    parser.add_argument("--backends", nargs="+", choices=list(REFERENCES), default=list(REFERENCES))
    add_rounds(parser, rounds=5, seconds=2)
    add_json(parser, "medians and ratios")
    add_picture(parser, "backends")
    options = parser.parse_args()
    backends, before = options.backends, load()
    wanted = measurements(options.seconds)
    quantities = [quantity for measurement in wanted for quantity in measurement.quantities]
    with ExitStack() as labs:
        paths = [create_backend(labs, backend) for backend in backends]
        paths += [
            create_reference(labs, name) for name in dict.fromkeys(REFERENCES[each] for each in backends)
        ]
        values = measure_in_turn(in_pairs(paths), wanted, options.rounds)
        proof = [describe(path) for path in paths]
    proof.append(load_since(before))
    present(
        options,
        figures=figures(backends, quantities, values),
        tables=[table(backends, quantities, values)],
        proof=proof,
        picture=draw_bars(TITLE, list(charts(backends, quantities, values)), proof),
    )
    return 0


def create_backend(labs: ExitStack, backend: str) -> Path:
    """Create a lab with two hosts that flanneld connects."""
    lab = two_hosts(labs, f"b-{backend}")
    flags = ["--fast-path=off"] if backend == "udp" else []
    name = backend.removesuffix(_WITHOUT_GUARD)
    if name != backend:
        flags.append("--guard=off")
    return join_by_flanneld(lab, backend, name.removesuffix(_OVER_IPV6), *flags, family=family_of(name))


def family_of(backend: str) -> Family:
    """Return the family of a path."""
    return 6 if backend.endswith(_OVER_IPV6) else 4


def create_reference(labs: ExitStack, name: str) -> Path:
    """Create a lab with two hosts that are connected manually, with flannel's rules in FORWARD."""
    backend = name.removesuffix(" (manual)")
    lab = two_hosts(labs, f"by-hand-{backend}")
    family = family_of(backend)
    program, network = ("iptables", NETWORK) if family == 4 else ("ip6tables", NETWORK_V6)
    for host in lab.hosts.values():
        rules = FORWARD_RULES.format(network=network)
        host.run([f"{program}-restore", "--noflush"], text=rules)
    return join_manually(lab, name, backend.removesuffix(_OVER_IPV6), family=family)


def in_pairs(paths: Sequence[Path]) -> list[Path]:
    """Return the paths in an order in which each backend's path is followed by its reference."""
    by_name = {path.name: path for path in paths}
    pairs = (pair for pair in REFERENCES.items() if pair[0] in by_name)
    return [by_name[name] for name in dict.fromkeys(name for pair in pairs for name in pair)]


def measurements(seconds: int) -> list[Measurement]:
    """Return the measurements of every path."""
    return [
        Measurement(partial(stream, seconds=seconds), (Quantity("TCP, one stream", "Gbit/s"),)),
        Measurement(
            partial(packets, seconds=seconds), (Quantity(f"{SMALL_BYTES}-byte packets, received", "kpps"),)
        ),
        Measurement(round_trip, (Quantity("round trip, median", "µs", is_less_better=True),)),
    ]


def stream(path: Path, *, seconds: int) -> tuple[float]:
    """Return the throughput of one TCP stream."""
    return (measure_throughput(path.left, path.right, seconds=seconds).gbit_s,)


def packets(path: Path, *, seconds: int) -> tuple[float]:
    """Return how many thousand small datagrams a second arrive at the maximum rate."""
    return (small_packets(path, seconds).received_kpps,)


def round_trip(path: Path) -> tuple[float]:
    """Return the median of some hundred pings with an interval of two milliseconds."""
    times = ping_times(path, pings=PINGS, interval_s=PING_INTERVAL_S)
    if lost := PINGS - len(times):
        raise LabError(f"{lost} of {PINGS} pings over {path.name} were lost", hint="Repeat the benchmark.")
    return (median(times),)


def describe(path: Path) -> str:
    """Return the measured path, from the kernel of the left host.

    Raises:
        LabError: objects of pyflannel exist on a manual path, or the reverse.
    """
    host, way = path.hosts[0], way_of(path)
    running = [" ".join(command) for command in host.commands()]
    programs = [each for each in running if "/flanneld" in each or "pyflannel.programs" in each]
    aliases = [link["ifname"] for link in host.links() if link.get("ifalias", "").startswith("pyflannel")]
    is_ours = bool(path.daemons)
    if bool(programs) is not is_ours or (aliases and not is_ours):
        raise LabError(
            f"{path.name}: programs {programs}, devices of pyflannel {aliases}",
            hint="Measure on a fresh host.",
        )
    return (
        f"{path.name}: {way.route}; {way.device}, driver {way.driver}, MTU {way.mtu}, {way.sent} packets"
        f" sent by it; of pyflannel: {len(programs)} processes, devices: {', '.join(aliases) or 'none'}"
    )


def ratio_of(quantity: Quantity, backend: str, values: Values) -> Ratio:
    """Compare a backend with the manual path, whose ratio is 1."""
    return ratio(values[quantity.name, backend], values[quantity.name, REFERENCES[backend]])


def figures(
    backends: Sequence[str], quantities: Sequence[Quantity], values: Values
) -> dict[str, dict[str, float]]:
    """Return medians and ratios, by backend and quantity."""

    def compared(quantity: Quantity, backend: str) -> dict[str, float]:
        found = ratio_of(quantity, backend, values)
        return {
            "ours": median(values[quantity.name, backend]),
            "manual": median(values[quantity.name, REFERENCES[backend]]),
            "ratio": found.median,
            "ratio, first quartile": found.first_quartile,
            "ratio, third quartile": found.third_quartile,
        }

    return {
        f"{backend}, {quantity.name}": compared(quantity, backend)
        for backend in backends
        for quantity in quantities
    }


def table(backends: Sequence[str], quantities: Sequence[Quantity], values: Values) -> Table:
    """Return the figures as a table."""
    shown = Table(title=TITLE)
    for heading in ("", "flanneld", "beside it", "ratio (quartiles)", "reference"):
        shown.add_column(heading, justify="left" if heading in ("", "reference") else "right")
    for backend in backends:
        for quantity in quantities:
            shown.add_row(
                f"{backend}: {quantity.label}",
                spread(values[quantity.name, backend]),
                spread(values[quantity.name, REFERENCES[backend]]),
                str(ratio_of(quantity, backend, values)),
                REFERENCES[backend],
            )
    return shown


def charts(backends: Sequence[str], quantities: Sequence[Quantity], values: Values) -> Iterator[Chart]:
    """Yield a chart for each quantity, with the medians and ratios. The bar of each backend is above the bar
    of its reference.
    """
    for quantity in quantities:
        pairs = []
        for backend in backends:
            ours, beside = values[quantity.name, backend], values[quantity.name, REFERENCES[backend]]
            told = f"{spread(ours)} {ratio(ours, beside)} of it"
            pairs.append(
                (
                    Bar(name=backend, value=median(ours), told=told, is_ours=True),
                    Bar(name=REFERENCES[backend], value=median(beside), told=spread(beside), is_ours=False),
                )
            )
        yield Chart(quantity.label, pairs)


if __name__ == "__main__":
    sys.exit(exit_status(main))
