"""The decision whether this host uses a network config, and the log lines about this decision.

`store_followers` has parsed the text, so the config is valid here. This host may still refuse the config, for
example because its routes would cut the host off from the store.
"""

import logging

from msgspec import Struct

from pyflannel.engine.condition import HostCondition, Inputs
from pyflannel.engine.pacing import LogLimit
from pyflannel.engine.planner import Planner
from pyflannel.errors import sentences
from pyflannel.model.network_config import IpNetwork, NetworkConfig
from pyflannel.model.route import route_protocol
from pyflannel.model.state import State
from pyflannel.model.status import Notice
from pyflannel.model.wireguard import UNKNOWN
from pyflannel.plan.backends import Backend
from pyflannel.plan.routes import plan_fence
from pyflannel.ports import Clock

log = logging.getLogger(__name__)

_RETURN = (
    "Write the old config again. To change the network, run the new network beside the present network, and"
    " move the containers; or stop the containers, run flannelctl cleanup and start flanneld."
)
"""The remedy for a network config that excludes this host's subnet."""

_APART = "Write a config whose Network does not overlap addresses or routes of any host."
"""The remedy for a network config whose routes this host refuses."""

_ENCRYPT = "Write a config with Backend.Type wireguard, or start flanneld without --require-encryption."
"""The remedy for a network config that sends unencrypted packets."""


class Candidate(Struct, frozen=True, kw_only=True):
    """The network config in the store, until the host uses it. `revision` is the revision of the store's
    key.
    """

    text: str
    config: NetworkConfig
    backend: Backend
    revision: int


class Accepted(Struct, frozen=True):
    """The host uses the config."""


class Refused(Struct, frozen=True):
    """The host keeps the config in force.

    Attributes:
        trouble: the missing condition, and the remedy.
        fence: a plan that removes all objects which send packets of the network unencrypted; None to keep the
            plan in force.
    """

    trouble: Notice
    fence: State | None = None


class NeedsWireguard(Struct, frozen=True):
    """The decision needs the host's WireGuard key, which has not been requested yet."""


class NeedsLastKnown(Struct, frozen=True):
    """The decision needs the last known leases, which show whether containers run in another subnet."""


Verdict = Accepted | Refused | NeedsWireguard | NeedsLastKnown


class ConfigAcceptance:
    """Decides whether this host uses a network config. The decision depends only on its arguments.

    Args:
        planner: the planner, which computes the routes of a config and the addresses in their prefixes.
        previous: subnet of the previous run, in which containers may still run.
        requires_encryption: True to refuse each backend that sends unencrypted packets.
        device: device name that the daemon claims.
    """

    def __init__(
        self, planner: Planner, *, previous: IpNetwork | None, requires_encryption: bool, device: str
    ) -> None:
        self._planner = planner
        self._previous = previous
        self._requires_encryption = requires_encryption
        self._device = device

    def examine(self, candidate: Candidate, condition: HostCondition, *, has_last_known: bool) -> Verdict:
        """Return whether the host uses the config in the store.

        Args:
            candidate: config in the store.
            condition: condition of the host. The host's routes to the network of the config must be known.
            has_last_known: True if the last known leases were loaded, or there are none.
        """
        config, backend, held = candidate.config, candidate.backend, condition.held
        if (why := self._encryption_objection(backend)) is not None:
            fence = self._fence(config, condition.inputs, has_last_known=has_last_known)
            return Refused(Notice(f"a network config that encrypts: {why}", _ENCRYPT), fence)
        if backend.is_encrypted and condition.inputs.wireguard is UNKNOWN:
            return NeedsWireguard()
        may_run_outside = self._previous is not None and not config.admits(self._previous)
        if held is None and may_run_outside and not has_last_known:
            return NeedsLastKnown()
        if (why := self._planner.objection_to(config, backend, condition.inputs)) is not None:
            return Refused(Notice(f"a network config without conflicting routes: {why}", _APART))
        if held is not None:
            for subnet in (held.lease.subnet, held.lease.ipv6_subnet):
                if subnet is not None and not config.admits(subnet):
                    return Refused(
                        Notice(f"a network config that admits this host's subnet {subnet}", _RETURN)
                    )
        return Accepted()

    def objection_to(self, config: NetworkConfig, backend: Backend, inputs: Inputs) -> str | None:
        """Return the reason why the host cannot start with its last known config; None if it can start."""
        return self._encryption_objection(backend) or self._planner.objection_to(config, backend, inputs)

    def _encryption_objection(self, backend: Backend) -> str | None:
        if backend.is_encrypted or not self._requires_encryption:
            return None
        return f"Backend.Type {backend.lease_type or 'udp'} does not, and --require-encryption is set"

    def _fence(self, config: NetworkConfig, inputs: Inputs, *, has_last_known: bool) -> State | None:
        """Return the plan without objects that send packets unencrypted; None if a config is in force or
        may be loaded.
        """
        may_run_on_last_known = self._previous is not None and not has_last_known
        if inputs.config is not None or may_run_on_last_known:
            return None
        networks = (config.range_of(family) for family in config.families)
        protocol = route_protocol(self._device)
        fences = [plan_fence(network, protocol) for network in networks if network is not None]
        return State.of(*fences) if fences else None


class ConfigLog:
    """Logs which network config the host uses. A refusal with the same reason is logged once."""

    def __init__(self, clock: Clock) -> None:
        self._refusals = LogLimit(log, clock, "network configs that this host refuses")

    def log_refused(self, trouble: Notice, before: HostCondition) -> None:
        """Log a refusal; `before` is the condition before the refusal."""
        if trouble == before.config.trouble:
            return
        is_first = before.inputs.config is None
        how = "waiting for" if is_first else "keeping the last valid one, waiting for"
        text = sentences(trouble.text, trouble.hint)
        self._refusals.line(logging.ERROR, "Refused the network config, %s %s", how, text)

    def log_accepted(self, candidate: Candidate, before: HostCondition) -> None:
        """Log the config that the host uses from now on, unless it already used the same config."""
        config, backend, inputs = candidate.config, candidate.backend, before.inputs
        if config == inputs.config and backend == inputs.backend and not before.store.is_stale:
            return
        log.info("Found network config - Backend type: %s", config.backend_type)
        if backend.config_line is not None:
            log.info("%s", backend.config_line)
        for warning in backend.config_warnings:
            log.warning("Network config: %s", warning)
