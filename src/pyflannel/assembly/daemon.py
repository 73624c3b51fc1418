"""Composition of the daemon: one network, or several in one process (--networks of flannel 0.6)."""

import asyncio
import os
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from pyflannel.assembly.directories import Places, file_in_the_way, objection
from pyflannel.assembly.host_network import HostNetwork
from pyflannel.assembly.kubernetes import KubernetesOptions
from pyflannel.assembly.logs import NETWORK
from pyflannel.assembly.opening import open_network
from pyflannel.assembly.options import FlanneldOptions
from pyflannel.assembly.stores import open_store, parse_store_url
from pyflannel.engine.list_watch import StoreLog
from pyflannel.engine.readiness import Liveness, Readiness
from pyflannel.engine.reconciler import AUDIT_S
from pyflannel.engine.store_followers import NetworkFollower
from pyflannel.errors import StoreError, TargetError
from pyflannel.kernel.host.files import FileMemory
from pyflannel.kernel.host.locks import RunLock
from pyflannel.kernel.host.machine import BoottimeClock, notify, watchdog_s
from pyflannel.model.kubernetes_node import OwnNode
from pyflannel.model.status import Notice, Status
from pyflannel.plan.lease.holding import retry_pause_s
from pyflannel.ports import Store
from pyflannel.stores.prefixed import PrefixedStore

if TYPE_CHECKING:
    from pyflannel.engine.docker_networks import DockerNetworks

Door = Callable[[HostNetwork], Coroutine[Any, Any, None]]
"""A function that serves the API of one network until it is cancelled."""


def places_of(options: FlanneldOptions) -> Places:
    """Return the directories and files of the daemon. The daemon must not have locked its run directory yet.

    Raises:
        UsageError: the store URL is invalid.
    """
    usual = Places(subnet_file=Path(options.subnet_file)).of_prefix(parse_store_url(options.store_url).prefix)
    return replace(
        usual,
        run_dir=usual.run_dir if options.run_dir is None else Path(options.run_dir),
        state_dir=usual.state_dir if options.state_dir is None else Path(options.state_dir),
    )


def run_lock(places: Places) -> RunLock:
    """Return the lock that prevents a second daemon in the run directory."""
    return RunLock(str(places.lock))


class Daemon:
    """One flanneld. The caller holds the lock of its run directory.

    `turned` is called after each turn of a reconciler's loop, when the memory of the pass is free again.

    Attributes:
        docker: the network plugin for Docker; None without the plugin.

    Raises:
        UsageError: the store URL is invalid.
    """

    def __init__(
        self, options: FlanneldOptions, places: Places, door: Door, turned: Callable[[], object]
    ) -> None:
        self._options = options
        self._door = door
        self._turned = turned
        self._places = places
        self._clock = BoottimeClock()
        self._store = (
            open_store(options.store_url, options.etcd_password)
            if options.kubernetes is None
            else options.kubernetes.store(self._clock)
        )
        self._store_log = StoreLog(self._clock)
        self._liveness = Liveness(notify, self._clock, watchdog_s())
        self._running: dict[str, HostNetwork] = {}
        self._before_start = "its start"
        has_names = bool(options.networks) or options.watch_networks
        self.docker = None if options.docker_socket is None else self._make_docker(has_names=has_names)
        # With --watch-networks, one ready network is enough, because the others may appear at any time.
        self._readiness = Readiness(notify, () if options.watch_networks else options.networks)

    def _make_docker(self, *, has_names: bool) -> "DockerNetworks":
        from pyflannel.engine.docker_networks import DockerNetworks  # imported only if needed, to save memory

        return DockerNetworks(has_names=has_names, remembered=self._docker_memories)

    @property
    def waiting_for(self) -> str | None:
        """The reason why the host is not ready in all its networks, in one line; None if it is ready."""
        for name in self._expected():
            network = self._running.get(name)
            waiting_for = self._before_start if network is None else network.waiting_for
            if waiting_for is not None:
                return f"{name}: {waiting_for}" if name else waiting_for
        return None if self._running else "a network"

    @property
    def networks(self) -> Mapping[str, HostNetwork]:
        """Return the running networks by their names; "" is the name of a single network."""
        return dict(self._running)

    async def statuses(self) -> Mapping[str, Status]:
        """Return the status of each running network by its name; "" is the name of a single network."""
        running = dict(self._running)
        found = await asyncio.gather(*(network.status() for network in running.values()))
        return dict(zip(running, found, strict=True))

    def reload(self) -> bool:
        """Read the allow-lists of all networks again; return whether there is an allow-list."""
        reloaded = [network.reload() for network in self._running.values()]
        return any(reloaded)

    def utc(self) -> float:
        """Return seconds since the epoch."""
        return self._clock.utc()

    async def run(self) -> None:
        """Run until cancelled. The data path continues to work.

        Raises:
            FlannelError: the daemon cannot run on this host.
        """
        options = self._options
        self._places.keep_prefix(parse_store_url(options.store_url).prefix)
        try:
            if not options.watch_networks:
                self._check_networks()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._liveness.run(), name="liveness")
                if options.watch_networks:
                    follower = NetworkFollower(
                        store=self._store,
                        clock=self._clock,
                        draw=random.SystemRandom().randrange,
                        store_log=self._store_log,
                        allowed=options.networks,
                        objection=self._objection,
                        run=self._run_named,
                    )
                    tasks.create_task(follower.run(), name="networks")
                elif options.networks:
                    for name in options.networks:
                        tasks.create_task(self._run_named(name), name=f"network {name}")
                else:
                    tasks.create_task(self._run_only(), name="only network")
        finally:
            await self._store.close()

    def _objection(self, name: str) -> Notice | None:
        """Return the reason why a network of this name cannot run on this host; None if it can run."""
        if (why := objection(name)) is not None:
            return Notice(why, "Rename the network.")
        if (path := file_in_the_way(name, self._places)) is not None:
            return Notice(
                f"{path} is a file, and flanneld needs a directory there",
                "Move the file and restart flanneld, or rename the network.",
            )
        return None

    def _docker_memories(self) -> Mapping[str, FileMemory]:
        """Return the stored state of the Docker plugin, for each network that has a state directory."""
        found = {"": self._places}
        with suppress(OSError):
            names = [one.name for one in os.scandir(self._places.state_dir) if one.is_dir()]
            subnets = Path(self._options.subnet_dir)
            found |= {name: self._places.of_network(name, subnets) for name in names if not objection(name)}
        return {name: FileMemory(places.docker, is_vital=True) for name, places in found.items()}

    def _check_networks(self) -> None:
        for name in self._options.networks:
            if (why := self._objection(name)) is not None:
                raise TargetError(f"network {name} cannot run on this host: {why.text}", hint=why.hint)

    async def _run_only(self) -> None:
        store, url = self._store, self._options.store_url
        if self._options.kubernetes is None:
            await self._run_network("", self._places, store, url, notify)
            return
        own = await self._own_node(self._options.kubernetes)
        events = self._options.kubernetes.events(own.name, self._clock)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(events.run(), name="Events of the Node")
            if self._options.kubernetes.warns:
                warning = self._options.kubernetes.policy_warning(own.name, self._clock)
                tasks.create_task(warning.run(), name="NetworkPolicies")
            await self._run_network("", self._places, store, url, events.notifier(notify), own)

    async def _own_node(self, options: KubernetesOptions) -> OwnNode:
        """Return the Node of this host. If the options do not contain its name, ask the cluster for the Node
        of flanneld's pod.
        """
        failures = 0
        while options.pod is not None:
            try:
                name = await options.node_of_pod(*options.pod, self._clock)
            except StoreError as error:
                pause_s = retry_pause_s(failures, random.SystemRandom().randrange)
                self._before_start = f"the Node of its pod: {error}"
                self._store_log.failed(self, error, pause_s, "Couldn't find the Node of this pod")
                failures += 1
                await self._clock.sleep(pause_s)
            else:
                self._before_start = "its start"
                self._store_log.answered(self)
                return options.own_node(name)
        return options.own_node(options.node or "")

    async def _run_named(self, name: str) -> None:
        NETWORK.set(name)
        await self._run_network(
            name,
            self._places.of_network(name, Path(self._options.subnet_dir)),
            PrefixedStore(self._store, name),
            f"{self._options.store_url}#{name}",
            self._readiness.notifier(name),
        )

    async def _run_network(
        self,
        name: str,
        places: Places,
        store: Store,
        store_url: str,
        notify: Callable[[str], object],
        own_node: OwnNode | None = None,
    ) -> None:
        with self._liveness.watched() as alive:

            def turn() -> None:
                alive()
                self._turned()

            async with open_network(
                options=self._options,
                places=places,
                store=store,
                store_url=store_url,
                store_log=self._store_log,
                notify=notify,
                alive=turn,
                audit_s=min(AUDIT_S, self._liveness.pause_s),
                own_node=own_node,
                docker_networks=self.docker,
                name=name,
            ) as network:
                self._running[name] = network
                try:
                    async with asyncio.TaskGroup() as tasks:
                        tasks.create_task(network.run(), name="network")
                        tasks.create_task(self._door(network), name="door")
                finally:
                    # another object means that a new instance of the network has started
                    if self._running.get(name) is network:
                        del self._running[name]

    def _expected(self) -> Iterable[str]:
        """Return the networks that must be ready; with --watch-networks, the networks that run."""
        if self._options.watch_networks:
            return sorted(self._running)
        return self._options.networks or [""]
