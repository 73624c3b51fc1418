"""The supervisor: joins a host to a network, and keeps the host in the network.

    underlay, config ─▶ lease ─▶ plan ─▶ kernel, forwarder, subnet.env ─▶ ready

Each input may change at any time. Each change causes a new plan, which the reconciler applies.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from pyflannel.engine.batch_report import Journal
from pyflannel.engine.condition import HostCondition, Inputs, LeaseCondition, PresentCondition, StoreCondition
from pyflannel.engine.config_in_force import ConfigInForce, Consequences
from pyflannel.engine.fast_path import FastPath
from pyflannel.engine.host_followers import BridgeFollower, UnderlayFollower
from pyflannel.engine.kept_leases import LastKnownLeases, LeaseGrace, known_of
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.lease_log import LeaseLog, log_shared_over
from pyflannel.engine.node_keeper import NodeKeeper
from pyflannel.engine.own_lease import identified, previous_run_subnet, wanted_lease
from pyflannel.engine.peer_bytes import PeerBytes
from pyflannel.engine.peer_probes import PathMtus, paths_of
from pyflannel.engine.peer_times import PeerTimes
from pyflannel.engine.plan_log import PlanLog
from pyflannel.engine.planner import Planner
from pyflannel.engine.preview import preview
from pyflannel.engine.reach_matrix import ReachMatrix
from pyflannel.engine.readiness import path_trouble, reason_to_wait
from pyflannel.engine.reconciler import Reconciler
from pyflannel.engine.transition import Handshakes, Retirement
from pyflannel.engine.wireguard_keys import WireguardKeys
from pyflannel.engine.world import HostOptions, World
from pyflannel.errors import NotReadyError, one_line
from pyflannel.model.docker import DockerParts
from pyflannel.model.host import Bridge, Surroundings, Underlay
from pyflannel.model.lease import (
    LastKnown,
    Lease,
    LeaseAttributes,
    renewal_margin_s,
)
from pyflannel.model.lease_protocol import Acquired, Held, Renewed, Report, StoreAway, Wanted
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import IpAddress, IpNetwork
from pyflannel.model.probe import ProbedPaths
from pyflannel.model.route import route_protocol
from pyflannel.model.state import Blocked, Replaced
from pyflannel.model.status import PlanPreview
from pyflannel.model.store_record import Record
from pyflannel.model.wireguard import WireguardDevice, WireguardFacts
from pyflannel.ports import Target

log = logging.getLogger(__name__)


class Supervisor:
    """The supervisor of one host in one network."""

    def __init__(self, world: World, options: HostOptions) -> None:
        self._world = world
        self._options = options
        self._previous = previous_run_subnet(options)
        self._prerequisites = asyncio.Event()
        self._notified_status = ""
        self._keeper: LeaseKeeper | NodeKeeper | None = None
        self._was_ready = asyncio.Event()
        now = world.clock.now()
        self.progress = asyncio.Event()
        self._present = PresentCondition(
            HostCondition(
                identity=options.identity,
                inputs=Inputs(owner=options.identity.owner),
                lease=LeaseCondition(since_s=now),
                store=StoreCondition(since_s=now),
            )
        )
        self.planner = Planner(options.plan)
        self.peer_times = PeerTimes(world.clock)
        self._plan_log = PlanLog(world.clock)
        self._lease_log = LeaseLog(world.clock)
        self.journal = Journal(world.clock)
        self.reconciler = Reconciler(
            targets=world.targets,
            clock=world.clock,
            draw=world.draw,
            journal=self.journal,
            judge=lambda refused, settled: self.fast_path.judge(
                refused, settled, self.condition.inputs.fast_path_config
            ),
            progressed=self._progressed,
            alive=world.alive,
            audit_s=options.audit_s,
            mark=options.plan.mark,
            device=options.plan.device,
        )
        self.underlay = UnderlayFollower(
            source=world.interfaces,
            wanted=options.underlay,
            clock=world.clock,
            found=self._underlay_changed,
            surrounded=self._surroundings_changed,
            waiting=self.notify_status,
            protocol=route_protocol(options.plan.device),
            look_s=options.look_s,
        )
        self.fast_path = FastPath(
            options.fast_path, world.clock, self._inputs_changed, world.kernel_path, options.plan.device
        )
        self.wireguard = WireguardKeys(world.wireguard, world.clock, self._wireguard_changed)
        self._bridges = BridgeFollower(source=world.bridges, clock=world.clock, found=self._bridges_changed)
        self._grace = LeaseGrace(
            world.clock,
            self._replan,
            renewal_margin_s=renewal_margin_s(options.renew_margin_s, options.lease_ttl_s),
        )
        self._retirement = Retirement(world.clock, self._retire)
        self._last_known = LastKnownLeases(
            memory=world.memory, clock=world.clock, current=lambda: known_of(self.condition)
        )
        self._config = ConfigInForce(
            world,
            options,
            present=self._present,
            planner=self.planner,
            underlay=self.underlay,
            wireguard=self.wireguard,
            last_known=self._last_known,
            then=Consequences(
                changed=self._inputs_changed,
                fenced=lambda fence: self.reconciler.follow(Replaced(fence)),
                started=self._started_with,
                resume=self._resume,
                noted=self.notify_status,
            ),
        )
        self.matrix = ReachMatrix(
            store=world.store if world.own_node is None else None,
            clock=world.clock,
            send=world.send_echoes,
            network=SupervisedNetwork(self),
            signatures=world.signing,
        )
        self.peer_bytes = PeerBytes(
            store=world.store if world.own_node is None else None,
            clock=world.clock,
            network=SupervisedNetwork(self),
            signatures=world.signing,
        )
        self._handshakes = Handshakes(world.contacts, world.clock, self._replan)
        self.path_mtus = PathMtus(
            world.send_echoes, world.clock, paths=self._probed_paths, changed=self._replan
        )

    async def run(self) -> None:
        """Run until cancelled. After `run` ends, the data path and the lease remain."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reconciler.run(), name="reconciler")
            tasks.create_task(self._last_known.run(), name="last known leases")
            tasks.create_task(self._grace.run(), name="lease grace")
            tasks.create_task(self.fast_path.run(), name="fast path")
            tasks.create_task(self._bridges.run(), name="bridges")
            tasks.create_task(self.wireguard.run(), name="WireGuard key")
            tasks.create_task(self._retirement.run(), name="previous backends")
            tasks.create_task(self._handshakes.run(), name="first handshakes")
            tasks.create_task(self.path_mtus.run(), name="MTU of paths")
            tasks.create_task(self.matrix.run(), name="rows of the matrix")
            tasks.create_task(self.peer_bytes.run(), name="bytes of peers")
            tasks.create_task(self.underlay.run(), name="underlay")
            await self.underlay.has_looked.wait()
            tasks.create_task(self._config.run(), name="network config")
            await self._prerequisites.wait()
            self._keeper = self._make_keeper()
            tasks.create_task(self._keeper.run(), name="lease keeper")

    # Methods that answer queries of the API.

    @property
    def condition(self) -> HostCondition:
        """The condition of this host at the current time."""
        return self._present.condition

    @property
    def is_ready(self) -> bool:
        """True if the plan has taken effect at least once."""
        return self._was_ready.is_set()

    @property
    def host_name(self) -> str | None:
        """The host name that this host publishes, or None."""
        return self._options.host_name

    async def rotate_key(self) -> str:
        """Replace the WireGuard key of this host and return the new public key.

        Raises:
            NotReadyError: WireGuard is not in use, or the store is unreachable; the old key remains in use.
            TargetError: the key cannot be created or saved.
        """
        if self.condition.store.is_away or self.condition.store.is_stale:
            raise NotReadyError(
                "the store is unreachable, so peers cannot learn a new key",
                hint="Try again when flannelctl status shows that the store is connected.",
            )
        return await self.wireguard.rotate(
            lambda: self.reconciler.is_in_place(WireguardDevice), self._has_published
        )

    def _has_published(self, public_key: str) -> bool:
        held = self.condition.held
        part = None if held is None else held.lease.part(held.lease.subnet.version)
        return part is not None and part.wireguard is not None and part.wireguard.public_key == public_key

    @property
    def waiting_for(self) -> str | None:
        """The reason why the host is not ready, in one line; None if it is ready."""
        inputs, obstacle = self.condition.inputs, self.condition.obstacle
        has_interface = inputs.underlay is not None and inputs.config is not None
        if not has_interface and not obstacle and self.underlay.waiting_for is not None:
            reason: str | None = self.underlay.waiting_for
        else:
            reason = reason_to_wait(self.condition, self.reconciler, was_ready=self.is_ready)
        # The service manager would read a line feed from the store as the start of another assignment.
        return None if reason is None else one_line(reason)

    async def count_received(self, peer: Lease) -> int | None:
        """Return the bytes from a peer that the kernel counted; None if it does not count them, or if this
        host has no lease.

        Raises:
            TargetError: the kernel does not return the counter.
        """
        held = self.condition.held
        return None if held is None else await self._world.received(held.lease, peer)

    async def preview(self, text: str | None, targets: Sequence[Target]) -> PlanPreview:
        """Return the changes that the next pass would make, with this network config, or with the config in
        force.

        Raises:
            ConfigError: the config is invalid, or this host would refuse it.
            NotReadyError: this host has no lease yet, or does not have the key that the config needs.
            TargetError: the state of the host cannot be read.
        """
        inputs = self.condition.inputs if text is None else self._with_lease(self._config.inputs_with(text))
        return await preview(inputs, self._options.plan, targets)

    def _with_lease(self, inputs: Inputs) -> Inputs:
        """Return the inputs of another config with the lease that this host would publish for this config."""
        if inputs.lease is None:
            raise NotReadyError("this host has no lease yet", hint="flannelctl status")
        config = inputs.fast_path_config
        wanted = wanted_lease(
            replace(self.condition, inputs=inputs),
            self._options,
            reads=self.fast_path.reads(config),
            previous=self._previous,
            avoided=(),
        )
        lease = replace(inputs.lease, attributes=wanted.attributes)
        return replace(inputs, lease=lease, has_fast_path=self.fast_path.is_on(config))

    # Methods that start the supervisor.

    def _make_keeper(self) -> LeaseKeeper | NodeKeeper:
        if self._world.own_node is not None:
            return NodeKeeper(
                store=self._world.store,
                clock=self._world.clock,
                draw=self._world.draw,
                store_log=self._world.store_log,
                own=self._world.own_node,
                wanted=self._wanted(),
                held=self.condition.held,
                report=self._report,
                leases_changed=self._leases_changed,
                is_ready=self._was_ready,
            )
        return LeaseKeeper(
            store=self._world.store,
            clock=self._world.clock,
            draw=self._world.draw,
            store_log=self._world.store_log,
            wanted=self._wanted(),
            held=self.condition.held,
            report=self._report,
            leases_changed=self._leases_changed,
            reidentify=self._reidentify,
            signing=self._world.signing,
            noticed=self._noticed,
        )

    def _noticed(self, record: Record) -> None:
        self.matrix.see(record)
        self.peer_bytes.see(record)

    def _wanted(self) -> Wanted:
        config = self.condition.inputs.config
        assert config is not None
        return wanted_lease(
            self.condition,
            self._options,
            reads=self.fast_path.reads(self.condition.inputs.fast_path_config),
            previous=self._previous,
            avoided=self.planner.avoided(config, self.condition.inputs),
        )

    # Methods that handle events and change the condition.

    def _started_with(self, leases: LeaseSet) -> None:
        self._leases_changed(leases)
        self._prerequisites.set()

    def _resume(self, known: LastKnown) -> None:
        """Run on the last known leases until the cluster answers. The network config is known, because it
        is a file.
        """
        config = self.condition.inputs.config
        if not isinstance(self._keeper, NodeKeeper):
            return
        if self.condition.held is not None or config is None or not config.admits(known.own.subnet):
            return
        log.warning(
            "Store unreachable: starting with the last known leases lease=%s peers=%d",
            known.own.subnet,
            len(known.leases) - 1,
        )
        self._present.change_store(is_stale=True)
        self._present.change(held=Held(lease=known.own))
        self._present.change_inputs(lease=known.own)
        self._keeper.resume(Held(lease=known.own))
        self._leases_changed(LeaseSet.of(known.leases))

    def _underlay_changed(self, underlay: Underlay) -> None:
        self._present.change_inputs(underlay=underlay)
        self._inputs_changed()
        self._config.host_changed()

    def _surroundings_changed(self, surroundings: Surroundings) -> None:
        stores = self.condition.inputs.surroundings.stores
        self._present.change_inputs(surroundings=replace(surroundings, stores=stores))
        self._replan()
        self._config.host_changed()

    def _retire(self) -> None:
        """Remove the previous backends, because no other host needs them."""
        ways = " and ".join(one.backend.way for one in self.condition.inputs.previous)
        log.info("Changed the backend: no host uses %s any more, so it is removed", ways)
        self._present.change_inputs(previous=())
        self._inputs_changed()

    def _bridges_changed(self, bridges: tuple[Bridge, ...]) -> None:
        self._present.change_inputs(bridges=bridges)
        self._replan()

    def _inputs_changed(self) -> None:
        config = self.condition.inputs.fast_path_config
        self.fast_path.examine(config)
        has_fast_path = self.fast_path.is_on(config)
        self._present.change_inputs(
            has_fast_path=has_fast_path, caches_flows=self.fast_path.caches_flows(config)
        )
        self._bridges.want(has_fast_path)
        backend, wireguard = self.condition.inputs.backend, self.condition.inputs.wireguard
        if backend is not None and backend.is_encrypted:
            self.wireguard.is_wanted.set()
        if self._keeper is not None and not (backend and backend.is_encrypted and wireguard.problem):
            self._keeper.order(self._wanted())
        self._replan()
        if self.condition.inputs.backend is not None and not self.condition.obstacle:
            self._prerequisites.set()

    def _wireguard_changed(self, facts: WireguardFacts) -> None:
        self._present.change_inputs(wireguard=facts)
        self._inputs_changed()
        self._config.host_changed()

    def plan_docker(self, parts: DockerParts) -> None:
        """Make these networks of Docker and their published ports a part of the plan."""
        self._present.change_inputs(docker=parts)
        self._replan()

    def _leases_changed(self, leases: LeaseSet) -> None:
        self._grace.update(leases)
        self._present.change(leases=leases)
        self._replan()

    def _reidentify(self, attributes: LeaseAttributes) -> LeaseAttributes:
        identity = self._world.reidentify()
        self._present.change(identity=identity)
        self._present.change_inputs(owner=identity.owner)
        log.warning("Created a new identity for this host owner=%s", identity.owner)
        return identified(attributes, self.condition, host_name=self.host_name)

    def _report(self, report: Report) -> None:
        """Handle a report of the lease protocol."""
        now, before = self._world.clock.now(), self.condition
        self._present.change(lease=before.lease.after(report, now), store=before.store.after(report, now))
        self._grace.note_report(report)
        self._lease_log.log_report(report, before)
        if isinstance(self._keeper, NodeKeeper):
            if isinstance(report, StoreAway) and self.condition.held is None:
                self._config.need_last_known()
            elif isinstance(report, Acquired):
                self._present.change_store(is_stale=False)
        if isinstance(report, Acquired | Renewed):
            self._present.change(held=report.held)
            self._present.change_inputs(lease=report.held.lease)
            self._replan()
            self.wireguard.note_progress()
        self.notify_status()

    # Methods that handle the consequences of a change.

    def _replan(self) -> None:
        """Pass the inputs to the planner, and its result to the reconciler."""
        self._handshakes.note(self.condition.inputs)
        self._present.change_inputs(
            leases=self._grace.counted,
            greeted=self._handshakes.greeted,
            path_mtus=self.path_mtus.found,
        )
        self._present.note_stores(self._world.store.addresses())
        self._last_known.changed()
        inputs = self.condition.inputs
        result = self.planner.update(inputs)
        if self.is_ready:  # before the first list, all peers are new
            self.peer_times.note(self.planner.peer_changes)
        self._present.change(obstacle=result.reason if isinstance(result, Blocked) else self.planner.obstacle)
        self.reconciler.follow(result)
        self.path_mtus.note_change()
        self._plan_log.log_update(self.planner, result, inputs.backend)
        shared = self.condition.lease.shared
        if shared is not None:
            owners = self.planner.refused_owners(self.condition.leases)
            self._present.change(lease=self.condition.lease.after_owners(owners.values()))
            if self.condition.lease.shared is None:
                log_shared_over(shared)
        held = None if self.condition.lease.phase == "taken" else self.condition.held
        own = None if held is None else held.lease
        self._retirement.note(inputs, own, is_needed=self.planner.needs_previous)
        self.notify_status()

    def _probed_paths(self) -> ProbedPaths | None:
        """Return the paths to probe; None until the host is ready, and during a change of the backend."""
        inputs = self.condition.inputs
        return None if not self.is_ready or inputs.previous else paths_of(self.planner, inputs)

    def _progressed(self) -> None:
        keys = set() if self.condition.inputs.is_prepared else self.planner.receiving_keys()
        if keys and self.reconciler.has_built(keys):
            self._present.change_inputs(is_prepared=True)
            self._last_known.backend_changed()
            self._inputs_changed()
        if self.reconciler.is_clean and not self.is_ready:
            self._was_ready.set()
            self.path_mtus.note_change()
            self._world.notify("READY=1")
        self.wireguard.note_progress()
        self.progress.set()
        self.notify_status()

    def notify_status(self) -> None:
        """Send the status to the service manager, if the status has changed."""
        waiting, held = self.waiting_for, self.condition.held
        lease = None if held is None else held.lease.subnet
        status = f"waiting for {waiting}" if waiting else f"lease {lease}, {self.planner.peer_count} peers"
        if status != self._notified_status:
            self._notified_status = status
            self._world.notify(f"STATUS={status}")
        if isinstance(self._keeper, NodeKeeper):
            self._keeper.note_path(path_trouble(self.condition, self.reconciler))


class SupervisedNetwork:
    """The host and its leases, in the form that the requests of hosts to each other use."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    @property
    def own(self) -> Lease | None:
        """The lease of this host; None without a lease."""
        held = self._supervisor.condition.held
        return None if held is None else held.lease

    @property
    def leases(self) -> LeaseSet:
        """All known leases."""
        return self._supervisor.condition.leases

    async def received(self, peer: Lease) -> int | None:
        """Return the bytes of the tunnel packets from a peer; None if they are not counted.

        Raises:
            TargetError: the kernel does not return the counter.
        """
        return await self._supervisor.count_received(peer)

    def ends(self, subnets: Sequence[IpNetwork]) -> Mapping[IpNetwork, IpAddress]:
        """Return the addresses that answer probes for these hosts; without those to which this host does not
        send.
        """
        paths = paths_of(self._supervisor.planner, self._supervisor.condition.inputs)
        found = {} if paths is None else {subnet: paths.path_to(subnet) for subnet in subnets}
        return {subnet: path.end for subnet, path in found.items() if path is not None}
