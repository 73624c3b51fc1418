"""The supervisor: joins a host to a network and keeps it there.

    underlay, config ─▶ lease ─▶ plan ─▶ kernel, forwarder, subnet.env ─▶ ready

Each input may change at any time. Each change causes a new plan, which the reconciler applies.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pyflannel.engine.batch_report import Journal
from pyflannel.engine.condition import ConfigCondition, HostCondition, Inputs, LeaseCondition, StoreCondition
from pyflannel.engine.config_acceptance import (
    Accepted,
    Candidate,
    ConfigAcceptance,
    ConfigLog,
    NeedsLastKnown,
    NeedsWireguard,
    Refused,
)
from pyflannel.engine.fast_path import FastPath
from pyflannel.engine.host_followers import BridgeFollower, UnderlayFollower
from pyflannel.engine.kept_leases import LastKnownLeases, LeaseGrace
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.lease_log import LeaseLog, log_shared_over
from pyflannel.engine.node_keeper import NodeKeeper
from pyflannel.engine.own_lease import identified, previous_run_subnet, wanted_lease
from pyflannel.engine.plan_log import PlanLog
from pyflannel.engine.planner import Planner
from pyflannel.engine.preview import preview
from pyflannel.engine.readiness import path_trouble, reason_to_wait
from pyflannel.engine.reconciler import Reconciler
from pyflannel.engine.store_followers import ConfigFollower, read_config
from pyflannel.engine.transition import Retirement, log_change, resumed, with_config
from pyflannel.engine.wireguard_keys import WireguardKeys
from pyflannel.engine.world import HostOptions, World
from pyflannel.errors import ConfigError, NotReadyError, StoreError, one_line
from pyflannel.model.docker import DockerParts
from pyflannel.model.host import Bridge, Surroundings, Underlay
from pyflannel.model.lease import (
    LastKnown,
    LeaseAttributes,
    renewal_margin_s,
)
from pyflannel.model.lease_protocol import Acquired, Held, Renewed, Report, StoreAway, Wanted
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import route_protocol
from pyflannel.model.state import Blocked, Replaced
from pyflannel.model.status import Notice, PlanPreview
from pyflannel.model.wireguard import WireguardDevice, WireguardFacts
from pyflannel.plan.backends import Backend
from pyflannel.ports import Target

log = logging.getLogger(__name__)


class Supervisor:
    """One host of one network."""

    def __init__(self, world: World, options: HostOptions) -> None:
        self._world = world
        self._options = options
        self._previous = previous_run_subnet(options)
        self._prerequisites = asyncio.Event()
        self._needs_last_known = asyncio.Event()
        self._has_last_known = False
        self._candidate: Candidate | None = None
        self._change_of_last_run: tuple[tuple[str, ...], bool] = ((), True)
        self._is_surrounded = asyncio.Event()
        self._notified_status = ""
        self._keeper: LeaseKeeper | NodeKeeper | None = None
        self._was_ready = asyncio.Event()
        now = world.clock.now()
        self.progress = asyncio.Event()
        self.condition = HostCondition(
            identity=options.identity,
            inputs=Inputs(owner=options.identity.owner),
            lease=LeaseCondition(since_s=now),
            store=StoreCondition(since_s=now),
        )
        self.planner = Planner(options.plan)
        self._acceptance = ConfigAcceptance(
            self.planner,
            previous=self._previous,
            requires_encryption=options.requires_encryption,
            device=options.plan.device,
        )
        self._config_log = ConfigLog(world.clock)
        self._plan_log = PlanLog(world.clock)
        self._lease_log = LeaseLog(world.clock)
        self.journal = Journal(world.clock)
        self.reconciler = Reconciler(
            targets=world.targets,
            clock=world.clock,
            draw=world.draw,
            journal=self.journal,
            judge=lambda refused, settled: self.fast_path.judge(refused, settled, self._fast_path_config),
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
            look_s=options.audit_s,
        )
        self._config = ConfigFollower(
            store=world.store,
            clock=world.clock,
            draw=world.draw,
            store_log=world.store_log,
            found=self._config_changed,
            waiting=self._config_missing,
            away=self._config_away,
            is_assigned=world.own_node is not None,
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
        self._last_known = LastKnownLeases(memory=world.memory, clock=world.clock, current=self._current)

    async def run(self) -> None:
        """Run until cancelled. The data path and the lease remain afterwards."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reconciler.run(), name="reconciler")
            tasks.create_task(self._last_known.run(), name="last known leases")
            tasks.create_task(self._grace.run(), name="lease grace")
            tasks.create_task(self.fast_path.run(), name="fast path")
            tasks.create_task(self._bridges.run(), name="bridges")
            tasks.create_task(self.wireguard.run(), name="WireGuard key")
            tasks.create_task(self._retirement.run(), name="previous backends")
            tasks.create_task(self.underlay.run(), name="underlay")
            await self.underlay.is_known.wait()
            if self._previous is not None:
                self._change_of_last_run = await self._last_known.load_change()
            tasks.create_task(self._config.run(), name="network config")
            tasks.create_task(self._run_on_last_known(), name="run on last known leases")
            await self._prerequisites.wait()
            self._keeper = self._make_keeper()
            tasks.create_task(self._keeper.run(), name="lease keeper")

    # Queries of the API.

    @property
    def is_ready(self) -> bool:
        """Whether the plan has taken effect once. It stays true."""
        return self._was_ready.is_set()

    @property
    def host_name(self) -> str | None:
        """The host name that this host publishes, or None."""
        return self._options.host_name

    async def rotate_key(self) -> str:
        """Replace the WireGuard key of this host and return the new public key.

        Raises:
            NotReadyError: WireGuard is not in use, or the store is unreachable; the old key stays.
            TargetError: the key cannot be made or kept.
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
        data = None if held is None else held.lease.attributes.wireguard
        return data is not None and data.public_key == public_key

    @property
    def waiting_for(self) -> str | None:
        """The reason why the host is not ready, in one line; None if it is ready."""
        if self.condition.inputs.underlay is None and not self.condition.obstacle:
            reason = self.underlay.waiting_for
        else:
            reason = reason_to_wait(self.condition, self.reconciler, was_ready=self.is_ready)
        # The service manager would read a line feed from the store as the start of another assignment.
        return None if reason is None else one_line(reason)

    async def preview(self, text: str | None, targets: Sequence[Target]) -> PlanPreview:
        """Return the changes that the next pass would make, with this network config or the one in force.

        Raises:
            ConfigError: the config is invalid, or this host would refuse it.
            NotReadyError: this host has no lease yet, or not the key that the config needs.
            TargetError: the host cannot be read.
        """
        inputs = self.condition.inputs if text is None else self._inputs_with(text)
        return await preview(inputs, self._options.plan, targets)

    def _inputs_with(self, text: str) -> Inputs:
        """Return the inputs of the plan immediately after the change to this network config."""
        config, backend = read_config(text, is_assigned=self._world.own_node is not None)
        candidate = Candidate(text=text, config=config, backend=backend, revision=0)
        match self._acceptance.examine(candidate, self.condition, has_last_known=True):
            case Refused(trouble):
                raise ConfigError(
                    f"this host would keep its config, and wait for {trouble.text}", hint=trouble.hint
                )
            case NeedsWireguard() | NeedsLastKnown():
                raise NotReadyError(
                    "this host has no WireGuard key yet, so its plan is unknown",
                    hint="Write the config on a test network first.",
                )
            case Accepted():
                pass
        inputs = with_config(self.condition.inputs, config, backend, self.condition.config.text or "")
        if inputs.lease is None:
            raise NotReadyError("this host has no lease yet", hint="flannelctl status")
        after = replace(self.condition, inputs=inputs)
        udp = next((one.config for one in inputs.generations if one.config.backend_type == "udp"), config)
        wanted = wanted_lease(
            after, self._options, reads=self.fast_path.reads(udp), previous=self._previous, avoided=()
        )
        return replace(
            inputs,
            lease=replace(inputs.lease, attributes=wanted.attributes),
            has_fast_path=self.fast_path.is_on(udp),
        )

    # Starting.

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
        )

    def _wanted(self) -> Wanted:
        config = self.condition.inputs.config
        assert config is not None
        return wanted_lease(
            self.condition,
            self._options,
            reads=self.fast_path.reads(self._fast_path_config),
            previous=self._previous,
            avoided=self.planner.avoided(config, self.condition.inputs),
        )

    async def _run_on_last_known(self) -> None:
        """Start with the last known config and leases if the store has no config that this host can use.

        The store does not answer, the config is missing, or it does not admit the subnet of the running
        containers.
        """
        await self._needs_last_known.wait()
        known = await self._last_known.load()
        is_running = known is not None and known.own.subnet == self._previous
        may_start = is_running or not self.condition.store.has_answered
        if known is not None and self.condition.inputs.config is None and may_start:
            await self._start_with(known)
        elif known is not None and isinstance(self._keeper, NodeKeeper):
            self._resume(known, self._keeper)
        self._has_last_known = True
        self._examine()

    def _resume(self, known: LastKnown, keeper: NodeKeeper) -> None:
        """Run on the last known leases until the cluster answers. The config, which is a file, is known."""
        config = self.condition.inputs.config
        if self.condition.held is not None or config is None or not config.admits(known.own.subnet):
            return
        log.warning(
            "Store unreachable: starting with the last known leases lease=%s peers=%d",
            known.own.subnet,
            len(known.leases) - 1,
        )
        self._change_store(is_stale=True)
        self._change(held=Held(lease=known.own))
        self._change_inputs(lease=known.own)
        keeper.resume(Held(lease=known.own))
        self._leases_changed(LeaseSet.of(known.leases))

    async def _start_with(self, known: LastKnown) -> None:
        try:
            config, backend = read_config(known.config, is_assigned=self._world.own_node is not None)
        except ConfigError as error:
            log.warning("Could not use the last known network config: %s", error.in_full)
            return
        while not self._has_asked_about(config):
            self._is_surrounded.clear()
            await self._is_surrounded.wait()
        if self.condition.inputs.config is not None:
            return
        why = self._acceptance.objection_to(config, backend, self.condition.inputs)
        if why is not None:
            log.error("Refused the last known network config: %s", why)
            return
        if backend.is_encrypted:
            self.wireguard.is_wanted.set()
            await self.wireguard.is_usable.wait()
        has_answered = self.condition.store.has_answered
        log.warning(
            "%s: starting with the last known config and leases lease=%s peers=%d",
            "No usable network config" if has_answered else "Store unreachable",
            known.own.subnet,
            len(known.leases) - 1,
        )
        self._change_store(is_stale=not has_answered)
        self._change_config(text=known.config)
        self._change(held=Held(lease=known.own))
        self._change_inputs(config=config, backend=backend, lease=known.own)
        self._continue_change(known.previous, known.is_prepared)
        self._leases_changed(LeaseSet.of(known.leases))
        self._prerequisites.set()

    def _current(self) -> LastKnown | None:
        """Return the config and leases to save for a start without a store; None while they are stale."""
        held, text = self.condition.held, self.condition.config.text
        if held is None or text is None or self.condition.store.is_stale:
            return None
        inputs = self.condition.inputs
        return LastKnown(
            config=text,
            own=held.lease,
            leases=tuple(self.condition.leases),
            previous=tuple(one.text for one in inputs.previous if one.text),
            is_prepared=inputs.is_prepared,
        )

    # Events change the condition.

    def _change(self, **changes: Any) -> None:
        self.condition = replace(self.condition, **changes)

    def _change_inputs(self, **changes: Any) -> None:
        self._change(inputs=replace(self.condition.inputs, **changes))

    def _change_store(self, **changes: Any) -> None:
        self._change(store=replace(self.condition.store, **changes))

    def _change_config(self, **changes: Any) -> None:
        self._change(config=replace(self.condition.config, **changes))

    def _underlay_changed(self, underlay: Underlay) -> None:
        self._change_inputs(underlay=underlay)
        self._inputs_changed()
        self._examine()

    def _surroundings_changed(self, surroundings: Surroundings) -> None:
        stores = self.condition.inputs.surroundings.stores
        self._change_inputs(surroundings=replace(surroundings, stores=stores))
        self._is_surrounded.set()
        self._replan()
        self._examine()

    def _config_changed(self, text: str, config: NetworkConfig, backend: Backend, revision: int) -> None:
        self._change_store(has_answered=True)
        self._candidate = Candidate(text=text, config=config, backend=backend, revision=revision)
        self._examine()

    def _examine(self) -> None:
        """Use the config in the store if this host accepts it.

        The host's routes that the config may affect must be known before. A refused config is examined again
        when the host changes.
        """
        candidate = self._candidate
        if candidate is None or not self._has_asked_about(candidate.config):
            return
        self._refresh_stores()
        match self._acceptance.examine(candidate, self.condition, has_last_known=self._has_last_known):
            case Accepted():
                self._candidate = None
                self._run_on(candidate)
            case Refused(trouble, fence):
                self._refuse(trouble)
                if fence is not None:
                    self.reconciler.follow(Replaced(fence))
            case NeedsWireguard():
                self.wireguard.is_wanted.set()
            case NeedsLastKnown():
                self._needs_last_known.set()

    def _has_asked_about(self, config: NetworkConfig) -> bool:
        """Return whether the host's routes to the config's network are known; if not, request them."""
        inputs, candidate = self.condition.inputs, self._candidate
        configs = (config, inputs.config, None if candidate is None else candidate.config)
        ranges = (one.range_of(family) for one in configs if one is not None for family in one.families)
        wanted = {network for network in ranges if network is not None}
        if wanted <= inputs.surroundings.networks:
            return True
        self.underlay.ask_about(wanted)
        return False

    def _refuse(self, trouble: Notice) -> None:
        """Keep running with the last valid config, if there is one."""
        before = self.condition
        self._change_store(is_stale=False)
        self._change_config(revision=None, trouble=trouble, store_trouble=None)
        self._inputs_changed()
        self._config_log.log_refused(trouble, before)
        if before.inputs.config is None and self._previous is not None:
            self._needs_last_known.set()

    def _run_on(self, candidate: Candidate) -> None:
        self._config_log.log_accepted(candidate, self.condition)
        self._change_store(is_stale=False)
        is_first, text = self.condition.inputs.config is None, self.condition.config.text or ""
        self._change(config=ConfigCondition(text=candidate.text, revision=candidate.revision))
        inputs = with_config(self.condition.inputs, candidate.config, candidate.backend, text)
        if inputs.previous and inputs.previous is not self.condition.inputs.previous:
            log_change(inputs)
            self._last_known.backend_changed()
        self._change(inputs=inputs)
        if is_first:
            self._continue_change(*self._change_of_last_run)
        self._inputs_changed()

    def _continue_change(self, previous: tuple[str, ...], is_prepared: bool) -> None:
        """Continue the change of the backend that was in progress at the end of the last run."""
        inputs = resumed(
            self.condition.inputs,
            previous,
            is_prepared=is_prepared,
            requires_encryption=self._options.requires_encryption,
        )
        self._change(inputs=inputs)

    def _retire(self) -> None:
        """Give up the previous backends: no other host needs them."""
        ways = " and ".join(one.backend.way for one in self.condition.inputs.previous)
        log.info("Changed the backend: every host has left %s, which is removed", ways)
        self._change_inputs(previous=())
        self._inputs_changed()

    def _refresh_stores(self) -> None:
        """Update the addresses of the store in the inputs."""
        found = self.condition.inputs.surroundings
        stores = tuple(one for one in self._world.store.addresses() if not one.is_loopback)
        if stores != found.stores:
            self._change_inputs(surroundings=replace(found, stores=stores))

    def _config_missing(self, trouble: Notice) -> None:
        self._candidate = None
        self._change_store(has_answered=True, is_stale=False)
        self._change_config(trouble=trouble, store_trouble=None)
        if self.condition.inputs.config is not None:
            log.warning("Keeping the last valid network config")
        elif self._previous is not None:
            self._needs_last_known.set()
        self.notify_status()

    def _config_away(self, error: StoreError) -> None:
        if self.condition.inputs.config is None:
            self._change_store(has_answered=False)
            self._change_config(trouble=None, store_trouble=str(error))
        self._needs_last_known.set()
        self.notify_status()

    def _bridges_changed(self, bridges: tuple[Bridge, ...]) -> None:
        self._change_inputs(bridges=bridges)
        self._replan()

    def _inputs_changed(self) -> None:
        config = self._fast_path_config
        self.fast_path.examine(config)
        has_fast_path = self.fast_path.is_on(config)
        self._change_inputs(has_fast_path=has_fast_path, caches_flows=self.fast_path.caches_flows(config))
        self._bridges.want(has_fast_path)
        backend, wireguard = self.condition.inputs.backend, self.condition.inputs.wireguard
        if backend is not None and backend.is_encrypted:
            self.wireguard.is_wanted.set()
        if self._keeper is not None and not (backend and backend.is_encrypted and wireguard.problem):
            self._keeper.order(self._wanted())
        self._replan()
        if self.condition.inputs.backend is not None and not self.condition.obstacle:
            self._prerequisites.set()

    @property
    def _fast_path_config(self) -> NetworkConfig | None:
        """The config of the udp backend, also if it is a previous one."""
        inputs = self.condition.inputs
        found = (one.config for one in inputs.generations if one.config.backend_type == "udp")
        return next(found, inputs.config)

    def _wireguard_changed(self, facts: WireguardFacts) -> None:
        self._change_inputs(wireguard=facts)
        self._inputs_changed()
        self._examine()

    def plan_docker(self, parts: DockerParts) -> None:
        """Make these networks of Docker and their published ports a part of the plan."""
        self._change_inputs(docker=parts)
        self._replan()

    def _leases_changed(self, leases: LeaseSet) -> None:
        self._grace.update(leases)
        self._change(leases=leases)
        self._replan()

    def _reidentify(self, attributes: LeaseAttributes) -> LeaseAttributes:
        identity = self._world.reidentify()
        self._change(identity=identity)
        self._change_inputs(owner=identity.owner)
        log.warning("Created a new identity for this host owner=%s", identity.owner)
        return identified(attributes, self.condition, host_name=self.host_name)

    def _report(self, report: Report) -> None:
        """Handle a report of the lease protocol."""
        now, before = self._world.clock.now(), self.condition
        self._change(lease=before.lease.after(report, now), store=before.store.after(report, now))
        self._grace.note_report(report)
        self._lease_log.log_report(report, before)
        if isinstance(self._keeper, NodeKeeper):
            if isinstance(report, StoreAway) and self.condition.held is None:
                self._needs_last_known.set()
            elif isinstance(report, Acquired):
                self._change_store(is_stale=False)
        if isinstance(report, Acquired | Renewed):
            self._change(held=report.held)
            self._change_inputs(lease=report.held.lease)
            self._replan()
            self.wireguard.note_progress()
        self.notify_status()

    # Consequences of a change.

    def _replan(self) -> None:
        """Pass the inputs to the planner, and its result to the reconciler."""
        self._change_inputs(leases=self._grace.counted)
        self._refresh_stores()
        self._last_known.changed()
        inputs = self.condition.inputs
        result = self.planner.update(inputs)
        self._change(obstacle=result.reason if isinstance(result, Blocked) else self.planner.obstacle)
        self.reconciler.follow(result)
        self._plan_log.log_update(self.planner, result, inputs.backend)
        shared = self.condition.lease.shared
        if shared is not None:
            owners = self.planner.refused_owners(self.condition.leases)
            self._change(lease=self.condition.lease.after_owners(owners.values()))
            if self.condition.lease.shared is None:
                log_shared_over(shared)
        held = None if self.condition.lease.phase == "taken" else self.condition.held
        own = None if held is None else held.lease
        self._retirement.note(inputs, own, is_needed=self.planner.needs_previous)
        self.notify_status()

    def _progressed(self) -> None:
        keys = set() if self.condition.inputs.is_prepared else self.planner.receiving_keys()
        if keys and self.reconciler.has_built(keys):
            self._change_inputs(is_prepared=True)
            self._last_known.backend_changed()
            self._inputs_changed()
        if self.reconciler.is_clean and not self.is_ready:
            self._was_ready.set()
            self._world.notify("READY=1")
        self.wireguard.note_progress()
        self.progress.set()
        self.notify_status()

    def notify_status(self) -> None:
        """Send the status to the service manager, if it has changed."""
        waiting, held = self.waiting_for, self.condition.held
        lease = None if held is None else held.lease.subnet
        status = f"waiting for {waiting}" if waiting else f"lease {lease}, {self.planner.peer_count} peers"
        if status != self._notified_status:
            self._notified_status = status
            self._world.notify(f"STATUS={status}")
        if isinstance(self._keeper, NodeKeeper):
            self._keeper.note_path(path_trouble(self.condition, self.reconciler))
