"""Many hosts that join one network at once: real keepers on a real etcd, without kernels.

A process contains some tens of hosts. Each host has a separate store object and connection, like a daemon.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import random
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from multiprocessing.synchronize import Barrier
from queue import Empty
from typing import Protocol

from pyflannel.assembly.stores import open_store
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.list_watch import StoreLog
from pyflannel.errors import LabError
from pyflannel.kernel.host.machine import BoottimeClock
from pyflannel.model.lease import LeaseAttributes
from pyflannel.model.lease_protocol import Acquired, Picking, Report, StoreAway, Wanted
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpNetwork, NetworkConfig

FIRST_ADDRESS = IPv4Address("172.16.0.0")
"""The address of host 0 on an underlay that does not exist."""

IMPORT_S = 60
"""Maximum time in seconds for the start of the processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """The joining hosts and their parameters.

    Attributes:
        url: URL of the store for `--store`.
        hosts: number of hosts.
        processes: number of processes for the hosts.
        watchers: number of hosts that watch until they know all others. The other hosts end after they have a
            lease.
        deadline_s: time in seconds after which a host has failed.
    """

    url: str
    network: NetworkConfig
    hosts: int
    processes: int
    watchers: int
    deadline_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The result of one host. Times are seconds since the start of all.

    Attributes:
        lease_s: time at which the host got a lease; None if it got no lease.
        known_s: time at which the host knew all leases; None if it did not know all, or did not wait for all.
        draws: number of times that the host chose a subnet: more than one if another host was faster.
        failures: number of requests without an answer of the store.
    """

    number: int
    subnet: IpNetwork | None
    lease_s: float | None
    known_s: float | None
    draws: int
    failures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The report of one process: its hosts, and its processor time since the start."""

    hosts: tuple[Joined, ...]
    processor_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """The results of all hosts.

    Attributes:
        processor_s: processor time of all hosts together.
    """

    hosts: tuple[Joined, ...]
    processor_s: float

    @property
    def lost(self) -> tuple[int, ...]:
        """The numbers of the hosts without a lease."""
        return tuple(host.number for host in self.hosts if host.lease_s is None)

    @property
    def last_lease_s(self) -> float:
        """The time of the last lease."""
        return max((host.lease_s for host in self.hosts if host.lease_s is not None), default=0.0)

    @property
    def all_known_s(self) -> float:
        """The time at which the last waiting host knew all leases."""
        return max((host.known_s for host in self.hosts if host.known_s is not None), default=0.0)

    @property
    def lost_races(self) -> int:
        """The number of unsuccessful choices."""
        return sum(max(host.draws - 1, 0) for host in self.hosts)


class Member:
    """One of the hosts."""

    def __init__(self, crowd: Crowd, number: int) -> None:
        self._crowd = crowd
        self._number = number
        self._began = 0.0
        self._lease: tuple[IpNetwork, float] | None = None
        self._known_s: float | None = None
        self._draws = 0
        self._failures = 0
        self._done = asyncio.Event()

    @property
    def _is_watcher(self) -> bool:
        return self._number < self._crowd.watchers

    async def join(self, began: float) -> Joined:
        """Join, and return the result at the deadline at the latest."""
        self._began = began
        store = open_store(self._crowd.url, None)
        keeper = LeaseKeeper(
            store=store,
            clock=BoottimeClock(),
            draw=random.SystemRandom().randrange,
            store_log=StoreLog(BoottimeClock()),
            wanted=self._wanted(),
            held=None,
            report=self._report,
            leases_changed=self._leases_changed,
            reidentify=lambda attributes: attributes,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                keeping = tasks.create_task(keeper.run())
                await self._wait_done()
                keeping.cancel()
        finally:
            await store.close()
        return Joined(
            number=self._number,
            subnet=self._lease[0] if self._lease else None,
            lease_s=self._lease[1] if self._lease else None,
            known_s=self._known_s,
            draws=self._draws,
            failures=self._failures,
        )

    async def _wait_done(self) -> None:
        """Wait for the result, at most until the deadline. The caller detects missing results."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._crowd.deadline_s):
                await self._done.wait()

    def _wanted(self) -> Wanted:
        owner = f"host-{self._number}"
        attributes = LeaseAttributes(public_ip=FIRST_ADDRESS + self._number, owner=owner, port=8285)
        return Wanted(network=self._crowd.network, attributes=attributes)

    def _report(self, report: Report) -> None:
        match report:
            case Picking():
                self._draws += 1
            case StoreAway():
                self._failures += 1
            case Acquired(held):
                self._lease = held.lease.subnet, time.monotonic() - self._began
                self._see_whether_done()
            case _:
                pass

    def _leases_changed(self, leases: LeaseSet) -> None:
        if self._known_s is None and len(leases) == self._crowd.hosts:
            self._known_s = time.monotonic() - self._began
            self._see_whether_done()

    def _see_whether_done(self) -> None:
        if self._lease is not None and (self._known_s is not None or not self._is_watcher):
            self._done.set()


class _Results(Protocol):
    """The queue for the reports of the processes."""

    def put(self, part: _Part) -> None: ...

    def get(self, block: bool = True, timeout: float | None = None) -> _Part: ...


def join_at_once(crowd: Crowd) -> Joining:
    """Let all hosts join at the same time. Return the results of the hosts.

    Raises:
        LabError: one of the processes failed.
    """
    context = multiprocessing.get_context("spawn")  # start with a new interpreter, without inherited state
    barrier = context.Barrier(crowd.processes)
    results: _Results = context.Queue()
    shares = [range(first, crowd.hosts, crowd.processes) for first in range(crowd.processes)]
    processes = [
        context.Process(target=_run_share, args=(crowd, share, barrier, results), daemon=True)
        for share in shares
    ]
    for process in processes:
        process.start()
    try:
        patience_s = IMPORT_S + 2 * crowd.deadline_s
        parts = [results.get(timeout=patience_s) for _ in processes]
    except Empty as error:
        raise LabError(
            "a process with hosts reported no result", hint="Check that the machine has enough free memory."
        ) from error
    finally:
        for process in processes:
            process.join(1)
            process.kill()
            process.join()
    return Joining(
        hosts=tuple(sorted((host for part in parts for host in part.hosts), key=lambda host: host.number)),
        processor_s=sum(part.processor_s for part in parts),
    )


def _run_share(crowd: Crowd, share: Sequence[int], barrier: Barrier, results: _Results) -> None:
    """Run some of the hosts. All processes start together at the barrier."""
    # Garbage collections are as rare as with a separate process for each host.
    gc.set_threshold(gc.get_threshold()[0] * len(share))
    barrier.wait(IMPORT_S)
    began, used = time.monotonic(), _processor_s()
    hosts = asyncio.run(_join_all(crowd, share, began))
    results.put(_Part(hosts=hosts, processor_s=_processor_s() - used))


async def _join_all(crowd: Crowd, share: Sequence[int], began: float) -> tuple[Joined, ...]:
    return tuple(await asyncio.gather(*(Member(crowd, number).join(began) for number in share)))


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
