"""This host in one network, and the answers to API requests about it."""

import asyncio
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pyflannel import VERSION
from pyflannel.assembly.directories import Places
from pyflannel.assembly.tunnel_counters import TunnelCounters, with_traffic
from pyflannel.engine.lease_signing import LeaseSigning
from pyflannel.engine.peer_probes import PeerProbes
from pyflannel.engine.plan_log import GuardLog
from pyflannel.engine.status_report import status_of, strangers_of, wireguard_of
from pyflannel.engine.supervisor import Supervisor
from pyflannel.errors import StoreError, TargetError
from pyflannel.kernel.filters.programs import run_program
from pyflannel.kernel.wireguard.target import WireguardTarget
from pyflannel.model.lease import Lease, PeerEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.probe import Echo, EchoResult
from pyflannel.model.reach_matrix import Matrix
from pyflannel.model.status import (
    STRANGERS_SHOWN,
    JournalEntry,
    Notice,
    PlanPreview,
    Status,
    StoreStatus,
    StoreTimes,
)
from pyflannel.model.store_record import Put
from pyflannel.model.wireguard import WireguardContact
from pyflannel.plan.peers import place_of
from pyflannel.ports import Clock, Target
from pyflannel.processes.forwarder_client import forwarder_status
from pyflannel.stores.counted import CountedStore
from pyflannel.wire.lease_record import CONFIG

if TYPE_CHECKING:
    from pyflannel.engine.docker_networks import DockerNetworks
    from pyflannel.engine.docker_plugin import DockerPlugin

_ANSWER_S = 1.0
"""Deadline in seconds for an answer of the forwarder, because the forwarder may hang."""

_STORE_REQUESTS, _STORE_S = 3, 1.8
"""Number of requests that measure how fast the store answers, and their common deadline in seconds, so that
doctor answers within 5 s."""


_DOCTOR = "import os, sys; os.nice(10)\nfrom pyflannel.programs.flannelctl import main\nsys.exit(main())"
"""The Python program that runs doctor with low priority. Doctor runs as another process, so that it does not
delay flanneld, and its memory is freed when the process exits."""


class HostNetwork:
    """This host in one network. `run` keeps the host in the network; the other methods answer API
    requests.
    """

    def __init__(
        self,
        *,
        places: Places,
        store: CountedStore,
        store_url: str,
        clock: Clock,
        supervisor: Supervisor,
        counters: TunnelCounters,
        wireguard: WireguardTarget,
        signing: LeaseSigning | None,
        docker: "DockerPlugin | None",
        docker_networks: "DockerNetworks | None",
        open_targets: Callable[[], AbstractAsyncContextManager[Sequence[Target]]],
        probes: PeerProbes | None,
        measured_key: str = CONFIG,
    ) -> None:
        """`measured_key`: key that is read to measure how fast the store answers."""
        self.places = places
        self._docker = docker
        self._docker_networks = docker_networks
        self._store = store
        self._store_url = store_url
        self._clock = clock
        self._supervisor = supervisor
        self._counters = counters
        self._wireguard = wireguard
        self._signing = signing
        self._open_targets = open_targets
        self._probes = probes
        self._measured_key = measured_key
        self._guard_log = GuardLog(counters, clock, lambda strangers: strangers_of(supervisor, strangers))

    async def run(self) -> None:
        """Run until cancelled. The data path continues to work."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._supervisor.run(), name="supervisor")
            tasks.create_task(self._guard_log.run(), name="log of the guard")
            if self._signing is not None:
                tasks.create_task(self._signing.run(), name="allow-list")
            if self._docker is not None and self._docker_networks is not None:
                tasks.create_task(self._docker.run(self._docker_networks.isolate), name="Docker plugin")
            if self._probes is not None:
                tasks.create_task(self._probes.run(), name="probes of peers")

    def reload(self) -> bool:
        """Read the allow-list again, and return True; return False if there is no allow-list."""
        return self._signing is not None and self._signing.reload()

    @property
    def waiting_for(self) -> str | None:
        """The reason why the host is not ready in this network; None if it is ready."""
        return self._supervisor.waiting_for

    async def status(self) -> Status:
        """Return the current status, with the status of the forwarder."""
        forwarder = await forwarder_status(self.places.run_dir)
        strangers = await self._counters.strangers()
        status = status_of(self._supervisor, version=VERSION, store_url=self._store_url, clock=self._clock)
        fast_path = self._counters.of_programs(status.fast_path)
        return replace(
            status,
            backend=with_traffic(status.backend, forwarder, fast_path),
            forwarder=forwarder,
            fast_path=fast_path,
            store=self._with_requests(status.store),
            wireguard=wireguard_of(self._supervisor, await self._contacts()),
            strangers=strangers_of(self._supervisor, strangers)[:STRANGERS_SHOWN],
            docker=None if self._docker is None else self._docker.status(),
            lease_signing=None if self._signing is None else self._signing.status(),
        )

    def _with_requests(self, store: StoreStatus | None) -> StoreStatus | None:
        """Return the status of the store with the counts of its requests, and with its latest answer."""
        if store is None:
            return None
        counted = self._store
        answered_at = counted.answered_at
        return replace(
            store,
            answer_s=counted.answer_s,
            answer_age_s=None if answered_at is None else self._clock.now() - answered_at,
            requests=counted.requests,
            lost_watches=dict(counted.lost_watches),
        )

    async def _contacts(self) -> list[WireguardContact]:
        """Return the contact (handshake, endpoint, bytes) of each WireGuard peer; empty if `wg` does not
        answer.
        """
        with suppress(TargetError, TimeoutError):
            async with asyncio.timeout(_ANSWER_S):
                return await self._wireguard.contacts()
        return []

    async def rotate_key(self) -> str:
        """Replace the WireGuard key of this host and return the new public key."""
        return await self._supervisor.rotate_key()

    def leases(self, most: int | None = None) -> list[Lease]:
        """Return all known leases, including the lease of this host, in the order of their subnets; with
        `most`, at most this number of random leases of other hosts.
        """
        held, known = self._supervisor.condition.held, self._supervisor.condition.leases
        own = None if held is None else known.by_subnet.get(held.lease.subnet)
        others = [lease for lease in known if lease is not own]
        if most is not None and most < len(others):
            others = random.sample(others, most)
        return sorted([*others, *([] if own is None else [own])], key=place_of)

    def change_ages(self) -> Mapping[IpNetwork, float]:
        """Return the seconds since the last change of each peer that changed, by its subnet."""
        return self._supervisor.peer_times.ages()

    async def matrix(self, hosts: Sequence[IpNetwork]) -> Matrix:
        """Return which of these hosts reach which other hosts, within 3 s; of all hosts, if no host is named.

        Raises:
            UsageError: a host has no lease, there are too many hosts, or fewer than two.
        """
        return await self._supervisor.matrix.ask(hosts)

    async def peer_bytes(self, hosts: Sequence[IpNetwork]) -> Mapping[IpNetwork, int]:
        """Return the bytes that these hosts received from this host, as counted within the last second;
        without the hosts that do not count or do not answer.
        """
        return await self._supervisor.peer_bytes.ask(hosts)

    async def bytes_from_peers(self, status: Status, peers: Sequence[PeerEntry]) -> Mapping[IpNetwork, int]:
        """Return the bytes of the tunnel packets from each peer, without unknown values."""
        return await self._counters.bytes_from_peers(status, peers)

    def events(self) -> list[JournalEntry]:
        """Return the events of the passes, with the latest event last."""
        return self._supervisor.journal.entries()

    async def preview(self, text: str | None) -> PlanPreview:
        """Return the changes that the next pass would make, with this network config, or with the config in
        force.

        Raises:
            ConfigError: the config is invalid, or this host would refuse it.
            NotReadyError: this host has no lease yet.
            TargetError: the state of the host cannot be read.
        """
        async with self._open_targets() as targets:
            return await self._supervisor.preview(text, targets)

    def probe(self, echoes: Mapping[IpNetwork, Echo]) -> Mapping[IpNetwork, EchoResult]:
        """Return the latest results of these probes by peer, and repeat the probes for some seconds.

        A peer without a result was not probed yet. Nothing is sent without --http.
        """
        return {} if self._probes is None else self._probes.ask(echoes)

    @property
    def probe_trouble(self) -> Notice | None:
        """The reason why the kernel refuses the probes; None if they are sent."""
        return None if self._probes is None else self._probes.trouble

    async def store_times(self) -> StoreTimes:
        """Send some requests to the store, one after the other, and return how long the requests took. All
        requests together take at most _STORE_S.
        """
        times: list[float] = []
        try:
            async with asyncio.timeout(_STORE_S):
                while len(times) < _STORE_REQUESTS:
                    began = self._clock.now()
                    await self._store.get(self._measured_key)
                    times.append(self._clock.now() - began)
        except TimeoutError:
            return StoreTimes(answered_s=tuple(times), failure=f"no answer within {_STORE_S:g} s")
        except StoreError as error:
            return StoreTimes(answered_s=tuple(times), failure=str(error), remedy=error.hint)
        return StoreTimes(answered_s=tuple(times))

    async def examine(self) -> bytes:
        """Return the document of `flannelctl doctor --json`. Doctor runs as another process.

        Raises:
            TargetError: doctor cannot run, did not exit in time, or failed.
        """
        places = self.places
        ran = await run_program(
            *(sys.executable, "-I", "-c", _DOCTOR, "doctor", "--json"),
            f"--run-dir={places.run_dir}",
            f"--state-dir={places.state_dir}",
            f"--subnet-file={places.subnet_file}",
        )
        if ran.status not in (0, 1):
            raise TargetError(
                f"flannelctl doctor failed: {ran.cause}", hint="Run flannelctl doctor as root on this host."
            )
        return ran.output.encode(errors="replace")

    def config_text(self) -> str | None:
        """Return the network config in use; None if there is none."""
        return self._supervisor.condition.config.text

    async def set_config(self, text: str) -> None:
        """Write the network config to the store.

        Raises:
            StoreError: the config was not written, or the result is unknown.
        """
        await self._store.write(Put(key=CONFIG, value=text.encode(), ttl_s=None, expected=None))
