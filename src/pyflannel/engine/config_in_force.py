"""The network config on which this host runs, which is the config in the store, or the last known config.

`store_followers` reads the config in the store, `config_acceptance` decides whether this host uses it, and
this module makes it the config of the host's condition.
"""

import asyncio
import logging
from collections.abc import Callable

from msgspec import Struct

from pyflannel.engine.condition import ConfigCondition, Inputs, PresentCondition
from pyflannel.engine.config_acceptance import (
    Accepted,
    Candidate,
    ConfigAcceptance,
    ConfigLog,
    NeedsLastKnown,
    NeedsWireguard,
    Refused,
)
from pyflannel.engine.host_followers import UnderlayFollower
from pyflannel.engine.kept_leases import LastKnownLeases
from pyflannel.engine.own_lease import previous_run_subnet
from pyflannel.engine.planner import Planner
from pyflannel.engine.store_followers import ConfigFollower, read_config
from pyflannel.engine.transition import log_change, resumed, with_config
from pyflannel.engine.wireguard_keys import WireguardKeys
from pyflannel.engine.world import HostOptions, World
from pyflannel.errors import ConfigError, NotReadyError, StoreError
from pyflannel.model.lease import LastKnown
from pyflannel.model.lease_protocol import Held
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.state import State
from pyflannel.model.status import Notice
from pyflannel.plan.backends import Backend
from pyflannel.wire.lease_record import KeptChange

log = logging.getLogger(__name__)


class Consequences(Struct, frozen=True, kw_only=True):
    """Functions that are called after a change of the condition.

    Attributes:
        changed: called when the config in force changed.
        fenced: called when the host must drop the network's packets; the argument is the plan for this.
        started: called when the host runs on its last known config and on these leases.
        resume: called to run on the last known leases with a network config that is already known, because it
            is in a file.
        noted: called if only the status changed.
    """

    changed: Callable[[], None]
    fenced: Callable[[State], None]
    started: Callable[[LeaseSet], None]
    resume: Callable[[LastKnown], None]
    noted: Callable[[], None]


class ConfigInForce:
    """Sets the network config of the host's condition.

    Args:
        present: the condition of the host.
        planner: object that knows the routes of a config.
        underlay: object that finds the host's routes to the network of a config.
        wireguard: object that provides the key for a config that needs one.
        last_known: the config and the leases of the previous run.
    """

    def __init__(
        self,
        world: World,
        options: HostOptions,
        *,
        present: PresentCondition,
        planner: Planner,
        underlay: UnderlayFollower,
        wireguard: WireguardKeys,
        last_known: LastKnownLeases,
        then: Consequences,
    ) -> None:
        self._world = world
        self._options = options
        self._present = present
        self._underlay = underlay
        self._wireguard = wireguard
        self._last_known = last_known
        self._then = then
        self._previous = previous_run_subnet(options)
        self._acceptance = ConfigAcceptance(
            planner,
            previous=self._previous,
            requires_encryption=options.requires_encryption,
            device=options.plan.device,
        )
        self._log = ConfigLog(world.clock)
        self._is_assigned = world.own_node is not None
        self._follower = ConfigFollower(
            store=world.store,
            clock=world.clock,
            draw=world.draw,
            store_log=world.store_log,
            found=self._found,
            waiting=self._missing,
            away=self._away,
            is_assigned=self._is_assigned,
        )
        self._candidate: Candidate | None = None
        self._change_of_last_run = KeptChange()
        self._needs_last_known = asyncio.Event()
        self._has_last_known = False
        self._host_changed = asyncio.Event()

    async def run(self) -> None:
        """Follow the config in the store, until cancelled. Before this call, the host's interfaces must be
        observed.
        """
        if self._previous is not None:
            self._change_of_last_run = await self._last_known.load_change()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follower.run(), name="network config")
            tasks.create_task(self._run_on_last_known(), name="run on last known leases")

    def host_changed(self) -> None:
        """Check the config in the store again, because the host or its condition changed."""
        self._host_changed.set()
        self._examine()

    def need_last_known(self) -> None:
        """Start with the last known leases, if there are any, because the store does not provide leases."""
        self._needs_last_known.set()

    def inputs_with(self, text: str) -> Inputs:
        """Return the inputs of the plan with this config, without any other consequence of the change.

        Raises:
            ConfigError: the config is invalid, or this host would refuse it.
            NotReadyError: this host does not have the key that the config needs.
        """
        config, backend = read_config(text, is_assigned=self._is_assigned)
        candidate = Candidate(text=text, config=config, backend=backend, revision=0)
        condition = self._present.condition
        match self._acceptance.examine(candidate, condition, has_last_known=True):
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
        return with_config(condition.inputs, config, backend, condition.config.text or "")

    # The network config in the store.

    def _found(self, text: str, config: NetworkConfig, backend: Backend, revision: int) -> None:
        self._present.change_store(has_answered=True)
        self._candidate = Candidate(text=text, config=config, backend=backend, revision=revision)
        self._examine()

    def _missing(self, trouble: Notice) -> None:
        self._candidate = None
        self._present.change_store(has_answered=True, is_stale=False)
        self._present.change_config(trouble=trouble, store_trouble=None)
        if self._present.inputs.config is not None:
            log.warning("Keeping the last valid network config")
        elif self._previous is not None:
            self._needs_last_known.set()
        self._then.noted()

    def _away(self, error: StoreError) -> None:
        if self._present.inputs.config is None:
            self._present.change_store(has_answered=False)
            self._present.change_config(trouble=None, store_trouble=str(error))
        self._needs_last_known.set()
        self._then.noted()

    def _examine(self) -> None:
        """Use the config in the store if this host accepts it.

        The host's interface and the routes that the config may affect must be known before the call. A
        refused config is checked again when the host changes.
        """
        candidate = self._candidate
        if candidate is None or not self._knows_host_in(candidate.config):
            return
        self._present.note_stores(self._world.store.addresses())
        condition = self._present.condition
        match self._acceptance.examine(candidate, condition, has_last_known=self._has_last_known):
            case Accepted():
                self._candidate = None
                self._run_on(candidate)
            case Refused(trouble, fence):
                self._refuse(trouble)
                if fence is not None:
                    self._then.fenced(fence)
            case NeedsWireguard():
                self._wireguard.is_wanted.set()
            case NeedsLastKnown():
                self._needs_last_known.set()

    def _knows_host_in(self, config: NetworkConfig) -> bool:
        """Return whether the host's interface and its routes to the config's network are known; if they are
        unknown, request them.
        """
        inputs, candidate = self._present.inputs, self._candidate
        configs = (config, inputs.config, None if candidate is None else candidate.config)
        ranges = (one.range_of(family) for one in configs if one is not None for family in one.families)
        wanted = {network for network in ranges if network is not None}
        if wanted <= inputs.surroundings.networks:
            underlay = inputs.underlay
            return underlay is not None and underlay.address.version == config.families[0]
        self._underlay.ask_about(wanted)
        return False

    def _refuse(self, trouble: Notice) -> None:
        """Keep running with the last valid config, if there is a valid config."""
        before = self._present.condition
        self._present.change_store(is_stale=False)
        self._present.change_config(revision=None, trouble=trouble, store_trouble=None)
        self._then.changed()
        self._log.log_refused(trouble, before)
        if before.inputs.config is None and self._previous is not None:
            self._needs_last_known.set()

    def _run_on(self, candidate: Candidate) -> None:
        before = self._present.condition
        self._log.log_accepted(candidate, before)
        self._present.change_store(is_stale=False)
        self._present.change(config=ConfigCondition(text=candidate.text, revision=candidate.revision))
        inputs = with_config(before.inputs, candidate.config, candidate.backend, before.config.text or "")
        if inputs.previous and inputs.previous is not before.inputs.previous:
            log_change(inputs)
            self._last_known.backend_changed()
        self._present.change(inputs=inputs)
        if before.inputs.config is None:
            self._continue_change(self._change_of_last_run)
        self._then.changed()

    def _continue_change(self, kept: KeptChange) -> None:
        """Continue a change of the backend that began during the previous run or while flanneld did not
        run.
        """
        inputs = resumed(self._present.inputs, kept, requires_encryption=self._options.requires_encryption)
        if inputs.previous:
            log_change(inputs)
        self._present.change(inputs=inputs)

    # The last known network config.

    async def _run_on_last_known(self) -> None:
        """Start with the last known config and leases if the store has no config that this host can use.

        The host uses these values if the store does not answer, or if its config is missing or excludes the
        subnet of the running containers.
        """
        await self._needs_last_known.wait()
        known = await self._last_known.load()
        condition = self._present.condition
        is_running = known is not None and known.own.subnet == self._previous
        may_start = is_running or not condition.store.has_answered
        if known is not None and condition.inputs.config is None and may_start:
            await self._start_with(known)
        elif known is not None:
            self._then.resume(known)
        self._has_last_known = True
        self._examine()

    async def _start_with(self, known: LastKnown) -> None:
        try:
            config, backend = read_config(known.config, is_assigned=self._is_assigned)
        except ConfigError as error:
            log.warning("Could not use the last known network config: %s", error.in_full)
            return
        while not self._knows_host_in(config):
            self._host_changed.clear()
            await self._host_changed.wait()
        if self._present.inputs.config is not None:
            return
        why = self._acceptance.objection_to(config, backend, self._present.inputs)
        if why is not None:
            log.error("Refused the last known network config: %s", why)
            return
        if backend.is_encrypted:
            self._wireguard.is_wanted.set()
            await self._wireguard.is_usable.wait()
        has_answered = self._present.condition.store.has_answered
        log.warning(
            "%s: starting with the last known config and leases lease=%s peers=%d",
            "No usable network config" if has_answered else "Store unreachable",
            known.own.subnet,
            len(known.leases) - 1,
        )
        self._present.change_store(is_stale=not has_answered)
        self._present.change_config(text=known.config)
        self._present.change(held=Held(lease=known.own))
        self._present.change_inputs(config=config, backend=backend, lease=known.own)
        self._continue_change(KeptChange(known.config, known.previous, known.is_prepared))
        self._then.started(LeaseSet.of(known.leases))
