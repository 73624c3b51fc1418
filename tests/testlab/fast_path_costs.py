"""The cost of the fast path's tables, and the duration of damage to it while flanneld runs."""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from statistics import median

from pyflannel.errors import LabError
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.lab.waiting import wait_until
from pyflannel.model.fast_path import BpfPeer, Role
from pyflannel.model.state import Add, State
from testlab.crowded_network import crowded_network
from testlab.inside import run_inside
from testlab.kernel_programs import look, time_entry, time_program

DEVICE = "flannel0"
_LEASES = 100
_ROUNDS = 9
_FIRST_SUBNET = 0x0A000000
_FIRST_ADDRESS = 0xAC100000
_DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TableCosts:
    """The costs of this number of peers in the table: medians in milliseconds, including all work in Python.

    Attributes:
        features_ms: the probe of the kernel features for the fast path, the first probe in a process that has
            loaded libbpf.
        put_ms: from the operations to the last entry; put_cpu_ms is processor time, including the kernel's
            work.
        look_ms: the time to read the entries back, and to compare them with the plan.
    """

    peers: int
    features_ms: float
    put_ms: float
    put_cpu_ms: float
    look_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Absences:
    """The times until each removed object was restored, in seconds."""

    programs_s: tuple[float, ...]
    entries_s: tuple[float, ...]


def measure_fast_path(peers: int, programs: int, entries: int) -> tuple[TableCosts, Absences]:
    """Measure in a separate lab: a daemon with a hundred leases, and a host without a daemon.

    Args:
        peers: number of entries in the table.
        programs: number of removals of a program, each role in turn.
        entries: number of removals of a peer's entry, which the kernel does not announce.

    Raises:
        LabError: an object was not restored, or the kernel refused.
    """
    with crowded_network("bench-kernel", "udp", _LEASES) as network:
        table = run_inside(network.bare, partial(_time_table, peers))
        network.start()
        wait_until(
            lambda: len(run_inside(network.host, look).peers) == _LEASES,
            what="the table has every peer",
            deadline_s=_DEADLINE_S,
        )
        roles = (Role.ENCAPSULATE, Role.DECAPSULATE)
        programs_s = [
            run_inside(network.host, partial(time_program, roles[number % len(roles)]))
            for number in range(programs)
        ]
        entries_s = [run_inside(network.host, time_entry) for _ in range(entries)]
    return table, Absences(programs_s=tuple(programs_s), entries_s=tuple(entries_s))


async def _time_table(count: int) -> TableCosts:
    peers = [
        BpfPeer(
            device=DEVICE,
            subnet=IPv4Network((_FIRST_SUBNET + (number << 8), 24)),
            address=IPv4Address(_FIRST_ADDRESS + number),
            port=8285,
        )
        for number in range(count)
    ]
    plan, operations = State.collect(peers), [Add(peer) for peer in peers]
    rounds = [await _time_round(plan, operations) for _ in range(_ROUNDS)]
    features, puts, cpu, looks = zip(*rounds, strict=True)
    return TableCosts(
        peers=count,
        features_ms=1000 * median(features),
        put_ms=1000 * median(puts),
        put_cpu_ms=1000 * median(cpu),
        look_ms=1000 * median(looks),
    )


async def _time_round(plan: State, operations: Sequence[Add]) -> tuple[float, float, float, float]:
    """Fill a new table and read it. Return the times of probe, filling (also its processor time) and read."""
    gc.collect()
    async with BpfTarget(FastPath()) as target:
        began = time.monotonic()
        target.features()
        asked, cpu = time.monotonic(), time.thread_time()
        refused = await target.apply(operations)
        put, cpu = time.monotonic(), time.thread_time() - cpu
        found = await target.snapshot(plan)
        looked = time.monotonic()
    if refused or found != plan:
        raise LabError("the table is not as planned", hint="The bench needs root, and a kernel with eBPF.")
    return asked - began, put - asked, cpu, looked - put
