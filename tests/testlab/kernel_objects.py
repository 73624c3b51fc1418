"""The costs of the kernel objects for many peers, compared with ip(8) and bridge(8).

The measurement uses no store and no daemon: only a plan with this number of peers, the adapter, and a network
namespace with an isolated underlay. Run as a program, this module measures in its own namespace and prints
JSON.
"""

import asyncio
import contextlib
import gc
import json
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network

from doubles.planning import pass_operations
from pyflannel.errors import LabError
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.model.host import Host, Underlay
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Remove, State
from pyflannel.plan.backends import backend_of
from pyflannel.plan.diff import diff
from pyflannel.plan.ownership import ours

MOST_PEERS = 60_000
"""Maximum number of peers. Each peer has a separate address in a /16, and a /24 as its subnet."""

_UNDERLAY = IPv4Network("172.16.0.0/16")
_OWN = IPv4Address("172.16.0.1")
_FIRST_PEER = IPv4Address("172.16.0.2")
_FIRST_SUBNET = IPv4Address("10.0.1.0")
_EVENTS = 200
_AUDITS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCosts:
    """The cost of the adapter.

    `*_cpu_s` is processor time of the process, including the kernel's work for it.

    Attributes:
        plan_s: time of the computation of the plan from leases.
        look_s: time of a read of the empty kernel, and of the computation of the operations.
        apply_s: time until the last object existed.
        refused: operations that the kernel refused.
        first_audit_cpu_s: processor time of a first read of all objects, without a difference.
        audit_cpu_s: median of the processor time of later reads.
        event_p50_ms: median time of an addition or removal of one peer in the kernel during audits.
        turn_max_ms: longest time for which other tasks waited, while objects were created.
        resident_mb: memory of the process at the end.
    """

    backend: str
    peers: int
    objects: int
    plan_s: float
    look_s: float
    apply_s: float
    apply_cpu_s: float
    refused: int
    first_audit_cpu_s: float
    audit_cpu_s: float
    event_p50_ms: float
    event_p99_ms: float
    turn_max_ms: float
    resident_mb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchCosts:
    """The cost of the same objects with `ip -batch` and `bridge -batch`, one after the other."""

    batch_s: float
    batch_cpu_s: float


def measure_adapter(backend: str, peers: int) -> AdapterCosts:
    """Measure with this number of peers, in a separate process and namespace. Needs root.

    Raises:
        LabError: the measurement failed.
    """
    with _namespace("own") as name:
        program = [sys.executable, __file__, backend, str(peers)]
        return AdapterCosts(**json.loads(_run(["ip", "netns", "exec", name, *program])))


def measure_batch(backend: str, peers: int) -> BatchCosts:
    """Create the objects of this number of peers by ip(8) and bridge(8). Needs root.

    Raises:
        LabError: the measurement failed.
    """
    plan = plan_of(backend, peers)
    commands = [words for item in plan for words in _commands(item)]
    with _namespace("hand") as name:
        if backend == "vxlan":
            device = "link add flannel.1 type vxlan id 1 dstport 8472 nolearning local"
            _run(["ip", "-n", name, *device.split(), str(_OWN), "dev", "eth0"])
            _run(["ip", "-n", name, "link", "set", "flannel.1", "up"])
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        for program in ("bridge", "ip"):
            lines = "\n".join(words for by, words in commands if by == program)
            if lines:
                _run([program, "-n", name, "-batch", "-"], given=lines)
        took_s, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return BatchCosts(batch_s=took_s, batch_cpu_s=_cpu_s(after) - _cpu_s(before))


def plan_of(backend: str, peers: int) -> State:
    """Return the plan of a host with this number of peers in a network of this backend."""
    config = NetworkConfig(network=IPv4Network("10.0.0.0/8"), subnet_length=24, backend_type=backend)
    made = backend_of(config)
    underlay = Underlay(link="eth0", address=_OWN, mtu=1500, public_ip=_OWN, on_link=(_UNDERLAY,))
    own = Lease(subnet=IPv4Network("10.0.0.0/24"), attributes=LeaseAttributes(public_ip=_OWN))
    host = Host(lease=own, underlay=underlay, owner="bench", kernel=os.uname().release)
    plan = made.plan_host(host).by_key.copy()
    for number in range(peers):
        plan.add(made.plan_peer(_lease(backend, number), host))
    return State(plan)


def _lease(backend: str, number: int) -> Lease:
    vtep = Vtep(mac=f"0e:00:00:00:{number >> 8:02x}:{number & 255:02x}", vni=1)
    return Lease(
        subnet=IPv4Network((int(_FIRST_SUBNET) + (number << 8), 24)),
        attributes=LeaseAttributes(
            public_ip=_FIRST_PEER + number, backend_type=backend, vtep=vtep if backend == "vxlan" else None
        ),
    )


def _commands(item: object) -> Iterator[tuple[str, str]]:
    """Yield program and arguments that create an object of a peer."""
    match item:
        case Neighbour():
            yield "ip", f"neigh replace {item.address} lladdr {item.mac} dev {item.link} nud permanent"
        case FdbEntry():
            yield "bridge", f"fdb replace {item.mac} dev {item.link} dst {item.destination} self permanent"
        case Route():
            onlink = " onlink" if item.is_onlink else ""
            way = f"via {item.gateway} dev {item.link}{onlink} proto {item.protocol}"
            yield "ip", f"route replace {item.destination} {way}"
        case _:
            pass


async def _measure(backend: str, peers: int) -> AdapterCosts:
    began = time.monotonic()
    plan = plan_of(backend, peers)
    planned_s = time.monotonic() - began
    gc.collect()
    gc.freeze()  # in a daemon, the garbage collector has handled the plan long ago
    async with LinuxTarget() as linux:
        turns = asyncio.ensure_future(_longest_turn_s())
        await asyncio.sleep(0)
        began = time.monotonic()
        operations = pass_operations(plan, ours(await linux.snapshot(plan), plan))
        looked = time.monotonic()
        cpu_s = time.process_time()
        refused = await linux.apply(operations)
        applied, cpu_s = time.monotonic(), time.process_time() - cpu_s
        turns.cancel()
        first, *later = [await _audit_cpu_s(linux, plan) for _ in range(1 + _AUDITS)]
        events_ms = sorted([1000 * took_s for took_s in await _event_times(linux, plan, backend, peers)])
        return AdapterCosts(
            backend=backend,
            peers=peers,
            objects=len(plan),
            plan_s=planned_s,
            look_s=looked - began,
            apply_s=applied - looked,
            apply_cpu_s=cpu_s,
            refused=len(refused),
            first_audit_cpu_s=first,
            audit_cpu_s=sorted(later)[_AUDITS // 2],
            event_p50_ms=events_ms[len(events_ms) // 2],
            event_p99_ms=events_ms[len(events_ms) * 99 // 100],
            turn_max_ms=1000 * await turns,
            resident_mb=_resident_mb(),
        )


async def _longest_turn_s() -> float:
    longest_s, since = 0.0, time.monotonic()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            await asyncio.sleep(0)
            now = time.monotonic()
            longest_s, since = max(longest_s, now - since), now
    return longest_s


async def _audit_cpu_s(linux: LinuxTarget, plan: State) -> float:
    before = time.process_time()
    found = ours(await linux.snapshot(plan), plan)
    if next(diff(plan, found), None) is not None:
        raise LabError("the kernel is not as planned", hint="Find the program that changes it: `ip monitor`.")
    return time.process_time() - before


async def _event_times(linux: LinuxTarget, plan: State, backend: str, peers: int) -> list[float]:
    """Return the durations of additions and removals of one peer, while the kernel is read constantly."""
    more = plan_of(backend, peers + 1)
    peer = [item for item in more if item.key not in plan.by_key]

    async def audit() -> None:
        while True:
            await linux.snapshot(plan)

    auditing = asyncio.ensure_future(audit())
    times: list[float] = []
    for number in range(_EVENTS):
        await asyncio.sleep(random.uniform(0.001, 0.01))
        began = time.monotonic()
        await linux.apply([Add(item) if number % 2 == 0 else Remove(item) for item in peer])
        times.append(time.monotonic() - began)
    auditing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await auditing
    return times


def _resident_mb() -> float:
    with open("/proc/self/statm", encoding="ascii") as pages:
        return int(pages.read().split()[1]) * resource.getpagesize() / 2**20


def _cpu_s(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


@contextmanager
def _namespace(role: str) -> Iterator[str]:
    """Yield the name of a network namespace with an underlay without other hosts."""
    name = f"flannel-bench-{role}-{os.getpid()}"
    _run(["ip", "netns", "add", name])
    try:
        for words in (
            "link add eth0 type veth peer name cable",
            "link set cable up",
            "link set eth0 up",
            f"address add {_OWN}/{_UNDERLAY.prefixlen} dev eth0",
        ):
            _run(["ip", "-n", name, *words.split()])
        yield name
    finally:
        _run(["ip", "netns", "delete", name])


def _run(words: Sequence[str], given: str = "") -> str:
    done = subprocess.run(words, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(
            f"{' '.join(words)} failed: {done.stderr.strip()[-500:]}",
            hint="The bench needs root and iproute2.",
        )
    return done.stdout


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_measure(sys.argv[1], int(sys.argv[2]))))))
