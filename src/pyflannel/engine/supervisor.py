"""The supervisor: joins a host to a network and keeps it there.

    underlay, config ─▶ lease ─▶ plan ─▶ kernel, forwarder, subnet.env ─▶ ready

Each input may change at any time. Each change causes a new plan, which the reconciler applies.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network
from typing import Any

from pyflannel.engine.batch_report import Journal
from pyflannel.engine.condition import ConfigCondition, HostCondition, LeaseCondition, StoreCondition
from pyflannel.engine.fast_path import FastPath
from pyflannel.engine.host_followers import BridgeFollower, UnderlayFollower
from pyflannel.engine.kept_leases import LastKnownLeases, LeaseGrace
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.lease_log import LeaseLog, log_shared_over
from pyflannel.engine.pacing import LogLimit
from pyflannel.engine.plan_log import PlanLog
from pyflannel.engine.planner import Blocked, Inputs, Planner, Replaced
from pyflannel.engine.readiness import reason_to_wait
from pyflannel.engine.reconciler import Reconciler
from pyflannel.engine.store_followers import ConfigFollower, read_config
from pyflannel.engine.wireguard_keys import WireguardKeys
from pyflannel.engine.world import HostOptions, World
from pyflannel.errors import ConfigError, NotReadyError, StoreError, WireError, one_line, sentences
from pyflannel.model.host import Bridge, Surroundings, Underlay
from pyflannel.model.lease import (
    LastKnown,
    Lease,
    LeaseAttributes,
    Vtep,
    WireguardData,
    renewal_margin_s,
)
from pyflannel.model.lease_protocol import Acquired, Held, Renewed, Report, Wanted
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import route_protocol
from pyflannel.model.state import State
from pyflannel.model.status import Notice
from pyflannel.model.store_record import Put
from pyflannel.model.wireguard import UNKNOWN, WireguardDevice, WireguardFacts
from pyflannel.plan.backends import Backend
from pyflannel.plan.routes import plan_fence
from pyflannel.wire.lease_json import format_backend_data
from pyflannel.wire.lease_record import CONFIG
from pyflannel.wire.subnet_env import previous_subnet

log = logging.getLogger(__name__)

_RETURN = (
    "Write the old config again. Or, for a new subnet, stop the containers, run flannelctl cleanup and start"
    " flanneld."
)
"""The remedy for a network config that does not admit this host's subnet."""

_APART = "Write a config whose Network does not overlap addresses or routes of any host."
"""The remedy for a network config whose routes this host refuses."""

_ENCRYPT = "Write a config with Backend.Type wireguard, or start flanneld without --require-encryption."
"""The remedy for a network config that sends packets in clear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """The network config in the store, until the host uses it."""

    text: str
    config: NetworkConfig
    backend: Backend
    revision: int


class Supervisor:
    """One host of one network."""

    def __init__(self, world: World, options: HostOptions) -> None:
        self._world = world
        self._options = options
        self._previous = _previous(options)
        self._prerequisites = asyncio.Event()
        self._needs_last_known = asyncio.Event()
        self._has_last_known = False
        self._candidate: _Candidate | None = None
        self._refusals = LogLimit(log, world.clock, "network configs that this host refuses")
        self._is_surrounded = asyncio.Event()
        self._notified_status = ""
        self._keeper: LeaseKeeper | None = None
        now = world.clock.now()
        self.is_ready = False
        self.condition = HostCondition(
            identity=options.identity,
            inputs=Inputs(owner=options.identity.owner),
            lease=LeaseCondition(since_s=now),
            store=StoreCondition(since_s=now),
        )
        self.planner = Planner(options.plan)
        self._plan_log = PlanLog(world.clock)
        self._lease_log = LeaseLog(world.clock)
        self.journal = Journal(world.clock)
        self.reconciler = Reconciler(
            targets=world.targets,
            clock=world.clock,
            draw=world.draw,
            journal=self.journal,
            judge=lambda refused, settled: self.fast_path.judge(
                refused, settled, self.condition.inputs.config
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
            tasks.create_task(self.underlay.run(), name="underlay")
            await self.underlay.is_known.wait()
            tasks.create_task(self._config.run(), name="network config")
            tasks.create_task(self._run_on_last_known(), name="run on last known leases")
            await self._prerequisites.wait()
            self._keeper = self._make_keeper()
            tasks.create_task(self._keeper.run(), name="lease keeper")

    # Queries of the API.

    def known_leases(self) -> Sequence[Lease]:
        """Return all known leases, including this host's, in the order of subnets."""
        return sorted(self.condition.leases, key=lambda lease: lease.subnet)

    @property
    def host_name(self) -> str | None:
        """The host name that this host publishes, or None."""
        return self._options.host_name

    @property
    def refused_owners(self) -> dict[IPv4Network, str]:
        """The owners of the refused leases that have an owner, by subnet."""
        leases = self.condition.leases.by_subnet
        known = ((subnet, leases.get(subnet)) for subnet in self.planner.refused)
        owners = {subnet: lease.attributes.owner for subnet, lease in known if lease is not None}
        return {subnet: owner for subnet, owner in owners.items() if owner is not None}

    async def set_config(self, text: str) -> None:
        """Write the network config to the store.

        Raises:
            StoreError: it was not written, or the outcome is unknown.
        """
        await self._world.store.write(Put(key=CONFIG, value=text.encode(), ttl_s=None, expected=None))

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

    # Starting.

    def _make_keeper(self) -> LeaseKeeper:
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
        inputs = self.condition.inputs
        config, backend, underlay = inputs.config, inputs.backend, inputs.underlay
        assert config is not None
        assert backend is not None
        assert underlay is not None
        attributes = LeaseAttributes(
            public_ip=underlay.public_ip,
            backend_type=backend.lease_type,
            port=backend.port,
            reads=self.fast_path.reads(config),
        )
        return Wanted(
            network=config,
            config_revision=self.condition.config.revision,
            attributes=self._identified(attributes, backend),
            previous=self._previous,
            avoided=self.planner.avoided(config, inputs),
            ttl_s=self._options.lease_ttl_s,
            renew_margin_s=self._options.renew_margin_s,
            renumbers=self._options.renumbers,
        )

    def _identified(self, attributes: LeaseAttributes, backend: Backend) -> LeaseAttributes:
        """Return the attributes of this host's lease, with its current identity as the owner."""
        data = backend.lease_data(self.condition.identity.owner, self.condition.inputs.wireguard)
        return replace(
            attributes,
            owner=self.condition.identity.owner,
            host_name=self.host_name,
            signing_key=self.condition.identity.signing_key,
            backend_data=format_backend_data(data) if isinstance(data, WireguardData) else None,
            vtep=data if isinstance(data, Vtep) else None,
            wireguard=data if isinstance(data, WireguardData) else None,
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
        self._has_last_known = True
        self._examine()

    async def _start_with(self, known: LastKnown) -> None:
        try:
            config, backend = read_config(known.config)
        except ConfigError as error:
            log.warning("Could not use the last known network config: %s", error.in_full)
            return
        while not self._has_asked_about(config):
            self._is_surrounded.clear()
            await self._is_surrounded.wait()
        if self.condition.inputs.config is not None:
            return
        why = self._encryption_objection(backend) or self.planner.objection_to(
            config, backend, self.condition.inputs
        )
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
        self._leases_changed(LeaseSet.of(known.leases))
        self._prerequisites.set()

    def _current(self) -> LastKnown | None:
        """Return the config and leases to save for a start without a store; None while they are stale."""
        held, text = self.condition.held, self.condition.config.text
        if held is None or text is None or self.condition.store.is_stale:
            return None
        return LastKnown(config=text, own=held.lease, leases=tuple(self.condition.leases))

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
        self._candidate = _Candidate(text=text, config=config, backend=backend, revision=revision)
        self._examine()

    def _examine(self) -> None:
        """Use the config in the store, after the routes of the host that it may affect are known.

        A refused config is examined again when the host changes.
        """
        candidate = self._candidate
        if candidate is None or not self._has_asked_about(candidate.config):
            return
        held, config = self.condition.held, candidate.config
        if (why := self._encryption_objection(candidate.backend)) is not None:
            self._refuse(Notice(f"a network config that encrypts: {why}", _ENCRYPT))
            self._fence(config)
            return
        if candidate.backend.is_encrypted and self.condition.inputs.wireguard is UNKNOWN:
            self.wireguard.is_wanted.set()
            return
        if held is None and self._may_run_outside(config):
            self._needs_last_known.set()
            return
        self._refresh_stores()
        why = self.planner.objection_to(config, candidate.backend, self.condition.inputs)
        if why is not None:
            self._refuse(Notice(f"a network config without conflicting routes: {why}", _APART))
        elif held is not None and not config.admits(held.lease.subnet):
            self._refuse(
                Notice(f"a network config that admits this host's subnet {held.lease.subnet}", _RETURN)
            )
        else:
            self._candidate = None
            self._run_on(candidate)

    def _encryption_objection(self, backend: Backend) -> str | None:
        """Return why this host must not run a backend that sends packets in clear; None if it may."""
        if backend.is_encrypted or not self._options.requires_encryption:
            return None
        return f"Backend.Type {backend.lease_type or 'udp'} does not, and --require-encryption is set"

    def _fence(self, config: NetworkConfig) -> None:
        """Remove objects that send packets in clear, unless the last known config runs."""
        may_run_on_last_known = self._previous is not None and not self._has_last_known
        if self.condition.inputs.config is None and not may_run_on_last_known and config.network is not None:
            protocol = route_protocol(self._options.plan.device)
            self.reconciler.follow(Replaced(State.of(plan_fence(config.network, protocol))))

    def _has_asked_about(self, config: NetworkConfig) -> bool:
        """Return whether the host's routes to the config's network are known; if not, request them."""
        inputs, candidate = self.condition.inputs, self._candidate
        configs = (config, inputs.config, None if candidate is None else candidate.config)
        wanted = {one.network for one in configs if one is not None and one.network is not None}
        if wanted <= inputs.surroundings.networks:
            return True
        self.underlay.ask_about(wanted)
        return False

    def _refuse(self, trouble: Notice) -> None:
        """Keep running with the last valid config, if there is one."""
        is_first, is_news = self.condition.inputs.config is None, trouble != self.condition.config.trouble
        self._change_store(is_stale=False)
        self._change_config(revision=None, trouble=trouble, store_trouble=None)
        self._inputs_changed()
        if is_news:
            how = "waiting for" if is_first else "keeping the last valid one, waiting for"
            text = sentences(trouble.text, trouble.hint)
            self._refusals.line(logging.ERROR, "Refused the network config, %s %s", how, text)
        if is_first and self._previous is not None:
            self._needs_last_known.set()

    def _run_on(self, candidate: _Candidate) -> None:
        config, backend, inputs = candidate.config, candidate.backend, self.condition.inputs
        is_stale = self.condition.store.is_stale
        self._change_store(is_stale=False)
        if config != inputs.config or backend != inputs.backend or is_stale:
            log.info("Found network config - Backend type: %s", config.backend_type)
            if backend.config_line is not None:
                log.info("%s", backend.config_line)
            for warning in backend.config_warnings:
                log.warning("Network config: %s", warning)
        self._change(config=ConfigCondition(text=candidate.text, revision=candidate.revision))
        self._change_inputs(config=config, backend=backend)
        self._inputs_changed()

    def _may_run_outside(self, config: NetworkConfig) -> bool:
        """Return whether containers may run in a subnet that a config does not admit.

        The last known leases show it, so they must be loaded first.
        """
        return self._previous is not None and not (self._has_last_known or config.admits(self._previous))

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
        config = self.condition.inputs.config
        self.fast_path.examine(config)
        has_fast_path = self.fast_path.is_on(config)
        self._change_inputs(has_fast_path=has_fast_path)
        if has_fast_path:
            self._bridges.is_wanted.set()
        else:
            self._bridges.is_wanted.clear()
        backend, wireguard = self.condition.inputs.backend, self.condition.inputs.wireguard
        if backend is not None and backend.is_encrypted:
            self.wireguard.is_wanted.set()
        if self._keeper is not None and not (backend and backend.is_encrypted and wireguard.problem):
            self._keeper.order(self._wanted())
        self._replan()
        if self.condition.inputs.backend is not None and not self.condition.obstacle:
            self._prerequisites.set()

    def _wireguard_changed(self, facts: WireguardFacts) -> None:
        self._change_inputs(wireguard=facts)
        self._inputs_changed()
        self._examine()

    def _leases_changed(self, leases: LeaseSet) -> None:
        self._grace.update(leases)
        self._change(leases=leases)
        self._replan()

    def _reidentify(self, attributes: LeaseAttributes) -> LeaseAttributes:
        backend = self.condition.inputs.backend
        assert backend is not None  # the lease keeper starts after the backend is known
        identity = self._world.reidentify()
        self._change(identity=identity)
        self._change_inputs(owner=identity.owner)
        log.warning("Created a new identity for this host owner=%s", identity.owner)
        return self._identified(attributes, backend)

    def _report(self, report: Report) -> None:
        """Handle a report of the lease protocol."""
        now, before = self._world.clock.now(), self.condition
        self._change(lease=before.lease.after(report, now), store=before.store.after(report, now))
        self._grace.note_report(report)
        self._lease_log.log_report(report, before)
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
        self._change(obstacle=result.reason if isinstance(result, Blocked) else "")
        self.reconciler.follow(result)
        self._plan_log.log_update(self.planner, result, inputs.backend)
        shared = self.condition.lease.shared
        if shared is not None:
            self._change(lease=self.condition.lease.after_owners(self.refused_owners.values()))
            if self.condition.lease.shared is None:
                log_shared_over(shared)
        self.notify_status()

    def _progressed(self) -> None:
        if self.reconciler.is_clean and not self.is_ready:
            self.is_ready = True
            self._world.notify("READY=1")
        self.wireguard.note_progress()
        self.notify_status()

    def notify_status(self) -> None:
        """Send the status to the service manager, if it has changed."""
        waiting, held = self.waiting_for, self.condition.held
        lease = None if held is None else held.lease.subnet
        status = f"waiting for {waiting}" if waiting else f"lease {lease}, {self.planner.peer_count} peers"
        if status != self._notified_status:
            self._notified_status = status
            self._world.notify(f"STATUS={status}")


def _previous(options: HostOptions) -> IPv4Network | None:
    """Return the subnet of the previous run, from the old subnet.env."""
    if options.subnet_env is None:
        return None
    try:
        return previous_subnet(options.subnet_env)
    except WireError as error:
        log.error(
            "Couldn't parse previous FLANNEL_SUBNET from subnet file at %s: %s",
            options.plan.subnet_file,
            error,
        )
        return None
