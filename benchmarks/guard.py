"""The cost of the tunnel guard: vxlan by flanneld with and without --guard=off, in a lab for each.

Run by `scripts/bench guard`, as root. The benchmark measures processor time for each packet and each gigabit,
not throughput, because other work on the machine has little effect on processor time. A ratio is the median
of the ratios of the rounds.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from statistics import median

from rich.table import Table

from command.options import add_json, bench_parser, exit_status
from command.output import load, load_since, show
from paths import effort
from paths.path import Path, join_by_flanneld, two_hosts
from paths.quantity import Quantity, Values, ratio, spread
from paths.rounds import Measurement, measure_in_turn
from pyflannel.lab.waiting import wait_until

TITLE = "The cost of the tunnel guard for vxlan"
GUARDED, UNGUARDED = "guard", "no guard"
PORT = 9999
_READY_S = 30.0
_numbers = count(1)


def main() -> int:
    """Measure and print; return the exit status."""
    parser = bench_parser("guard", __doc__)
    parser.add_argument("--rounds", type=int, default=14, help="measurements of each figure (default 14)")
    add_json(parser, "medians and ratios")
    options = parser.parse_args()
    before = load()
    wanted = [
        Measurement(packets, (Quantity(f"{effort.SMALL_BYTES}-byte packets", "µs", is_less_better=True),)),
        Measurement(stream, (Quantity("TCP, one stream, both ends", "ms/Gbit", is_less_better=True),)),
    ]
    with ExitStack() as labs:
        paths = [
            join_by_flanneld(two_hosts(labs, "guard-on"), GUARDED, "vxlan"),
            join_by_flanneld(two_hosts(labs, "guard-off"), UNGUARDED, "vxlan", "--guard=off"),
        ]
        values = measure_in_turn(paths, wanted, options.rounds)
    quantities = [quantity for measurement in wanted for quantity in measurement.quantities]
    if options.json:
        print(json.dumps(figures(quantities, values)))
    else:
        show([table(quantities, values)], [load_since(before)])
    return 0


def packets(path: Path) -> tuple[float]:
    """Return the processor time of a packet, from the sender to the receiving host's containers."""
    return (1e6 * effort_of(path, "packets") / effort.PACKETS,)


def stream(path: Path) -> tuple[float]:
    """Return the processor time of sender and receiver for one gigabit."""
    words = [sys.executable, effort.__file__, "receive", str(PORT)]
    receiver = path.right.start_in_network(words, name=f"receiver-{next(_numbers)}")
    log = receiver.log
    assert log is not None
    wait_until(lambda: effort.READY in log.read_text(), what="a receiver", deadline_s=_READY_S)
    sent_s = effort_of(path, "stream")
    receiver.wait()
    return (1e3 * (sent_s + float(log.read_text().split()[-1])) / effort.GIGABITS,)


def effort_of(path: Path, what: str) -> float:
    """Return the processor time of a sender in the left container."""
    words = [sys.executable, effort.__file__, what, str(PORT), str(path.right.address)]
    return float(path.left.run_in_network(words).stdout)


def figures(quantities: Sequence[Quantity], values: Values) -> dict[str, dict[str, float]]:
    """Return medians and ratios by quantity."""
    return {
        quantity.name: {
            GUARDED: median(values[quantity.name, GUARDED]),
            UNGUARDED: median(values[quantity.name, UNGUARDED]),
            "ratio": ratio(values[quantity.name, GUARDED], values[quantity.name, UNGUARDED]).median,
        }
        for quantity in quantities
    }


def table(quantities: Sequence[Quantity], values: Values) -> Table:
    """Return the figures as a table."""
    shown = Table(title=TITLE)
    for heading in ("processor time", GUARDED, UNGUARDED, "ratio (quartiles)"):
        shown.add_column(heading, justify="left" if heading == "processor time" else "right")
    for quantity in quantities:
        guarded, unguarded = (values[quantity.name, name] for name in (GUARDED, UNGUARDED))
        shown.add_row(quantity.label, spread(guarded), spread(unguarded), str(ratio(guarded, unguarded)))
    return shown


if __name__ == "__main__":
    sys.exit(exit_status(main))
