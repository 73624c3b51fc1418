"""The CNI plugin: its share of an ADD, compared with a delegate without work and the bare interpreter."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from command.options import add_json, bench_parser, exit_status
from command.output import load, load_since
from pyflannel.commands.cni_plugin import CniPlaces, install

TARGET_MS = 35.0
DELEGATE = '#!/bin/sh\ncat >/dev/null\necho \'{"cniVersion": "1.0.0", "ips": []}\'\n'
SUBNET_ENV = (
    "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.9.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)


def main() -> int:
    """Measure, print, and return 0."""
    options = _options()
    before = load()
    with tempfile.TemporaryDirectory() as name:
        figures = _measure(Path(name), options.rounds)
    share_ms = figures["flannel, with the delegate"] - figures["the delegate alone"]
    if options.json:
        print(json.dumps({"ms": figures, "share_ms": share_ms, "target_ms": TARGET_MS}, indent=2))
        return 0
    table = Table(title=f"One ADD, median of {options.rounds} rounds")
    table.add_column("program")
    table.add_column("ms", justify="right")
    for label, median_ms in figures.items():
        table.add_row(label, f"{median_ms:.1f}")
    table.add_row("share of the plugin", f"{share_ms:.1f}")
    table.add_row("target", f"{TARGET_MS:.1f}")
    Console().print(table)
    print(load_since(before))
    return 0


def _options() -> Namespace:
    parser = bench_parser("cni", __doc__)
    parser.add_argument("--rounds", type=int, default=50, help="measurements of each figure (default 50)")
    add_json(parser)
    return parser.parse_args()


def _measure(directory: Path, rounds: int) -> dict[str, float]:
    """Return the median time of each program in milliseconds, measured in turn."""
    places = CniPlaces(bin_dir=directory / "bin", conf_dir=directory / "net.d")
    (directory / "subnet.env").write_text(SUBNET_ENV)
    install(places, directory / "subnet.env")
    delegate = places.bin_dir / "bridge"
    delegate.write_text(DELEGATE)
    delegate.chmod(0o755)
    conf = {"name": "bench", "cniVersion": "1.0.0", "type": "flannel"}
    files = {"subnetFile": str(directory / "subnet.env"), "dataDir": str(directory / "data")}
    text = json.dumps({**conf, **files}).encode()
    environment = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "bench",
        "CNI_NETNS": "/run/netns/bench",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": str(places.bin_dir),
        "PATH": os.environ["PATH"],
    }

    def run(*command: str) -> Callable[[], object]:
        return lambda: subprocess.run(command, input=text, env=environment, capture_output=True, check=True)

    interpreter = os.path.realpath(sys.executable)
    programs = {
        "the bare interpreter": run(interpreter, "-IS", "-c", ""),
        "the delegate alone": run(str(delegate)),
        "flannel, with the delegate": run(str(places.bin_dir / "flannel")),
    }
    times: dict[str, list[float]] = {label: [] for label in programs}
    for _ in range(rounds):
        for label, call in programs.items():
            began = time.perf_counter()
            call()
            times[label].append((time.perf_counter() - began) * 1e3)
    return {label: statistics.median(taken) for label, taken in times.items()}


if __name__ == "__main__":
    sys.exit(exit_status(main))
